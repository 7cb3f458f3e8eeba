//! A server that says nothing any more: everything that waits for it ends, and no connection is lost to the pool.

use std::time::Duration;

use tower_keep::backend::sql::{
    Postgres, RequestTransaction, SqlStore, SqlStoreBuilder, TransactionErrorKind,
};
use tower_keep::core::RollbackCause;
use tower_keep::reservation::{ReservationError, ReservationGuard, ReservationLayer};

use super::insert;
use crate::reservation::slot;
use crate::support::{PostgresServer, Proxy};

/// Longer than anything may take that waits for a server.
const FOR_EVER: Duration = Duration::from_secs(25);

/// A server behind a proxy that can fall silent.
struct Far {
    db: SqlStore,
    proxy: Proxy,
    server: PostgresServer,
}

async fn far(settings: impl FnOnce(SqlStoreBuilder) -> SqlStoreBuilder) -> Far {
    let server = PostgresServer::start().await;
    let database = server.database().await;
    let name = database.rsplit('/').next().unwrap();
    let proxy = Proxy::before(server.address()).await;
    let url = format!("postgres://postgres@{}/{name}", proxy.address());
    let short = Duration::from_secs(2);
    let db = SqlStore::builder(&url).lock_timeout(short);
    let db = settings(db.statement_timeout(short));
    let db = db.open().await.unwrap();
    let made = sqlx::raw_sql("create table t (n integer unique)");
    made.execute(db.pool::<Postgres>().unwrap()).await.unwrap();
    Far { db, proxy, server }
}

impl Far {
    /// Waits until so many connections lie in the pool.
    async fn warm(&self, connections: usize) {
        let pool = self.db.pool::<Postgres>().unwrap();
        let mut taken = Vec::new();
        for _ in 0..connections {
            taken.push(pool.acquire().await.unwrap());
        }
        drop(taken);
        while pool.num_idle() < connections {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Begins and commits, again and again until it works.
    async fn works_again(&self) {
        let trying = async {
            loop {
                let (transaction, finisher) = RequestTransaction::alone(&self.db);
                let begun = transaction.lease::<Postgres>().await.is_ok();
                if begun && finisher.commit().await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let works = tokio::time::timeout(Duration::from_secs(40), trying).await;
        works.expect("the pool has its place again");
    }
}

#[tokio::test]
async fn a_begin_that_nobody_answers_ends_and_its_place_is_given_back() {
    let far = far(|db| db.max_connections(1)).await;
    far.warm(1).await;
    far.proxy.freeze();
    let (transaction, _finisher) = RequestTransaction::alone(&far.db);
    let begun = tokio::time::timeout(FOR_EVER, transaction.lease::<Postgres>()).await;
    let refused = begun.expect("it ends").map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), TransactionErrorKind::Unavailable);
    far.works_again().await;
}

/// Who waits less long than a BEGIN may take learns nothing of the server; the breaker does.
#[tokio::test]
async fn begins_that_nobody_waits_for_are_taken_back_and_counted() {
    let wait = Duration::from_secs(3);
    let far = far(|db| db.acquire_timeout(wait).max_connections(8)).await;
    let lease = async |longest: u64| {
        let (transaction, _finisher) = RequestTransaction::alone(&far.db);
        let longest = Duration::from_millis(longest);
        let leased = tokio::time::timeout(longest, transaction.lease::<Postgres>()).await;
        leased.map(|leased| leased.map(drop))
    };
    far.warm(8).await;
    // Where it answers in time, each goes back without a transaction.
    far.proxy.delay(Duration::from_millis(60));
    for _ in 0..8 {
        assert!(lease(20).await.is_err(), "it is too slow for that");
    }
    far.proxy.delay(Duration::ZERO);
    far.works_again().await;
    far.warm(8).await;
    let in_transaction = "select count(*) from pg_stat_activity where state like 'idle in %'";
    assert_eq!(
        crate::support::sql::number(&far.db, in_transaction).await,
        0
    );
    far.server.pause();
    for _ in 0..8 {
        assert!(lease(20).await.is_err(), "nobody answers");
    }
    // Nobody else has asked for as long as one who waits to the end.
    tokio::time::sleep(wait - Duration::from_millis(500)).await;
    let mut refused = None;
    for _ in 0..80 {
        refused = lease(10).await.ok();
        if refused.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    far.server.resume();
    let refused = refused.expect("the breaker is open").unwrap_err();
    assert_eq!(refused.kind(), TransactionErrorKind::Unavailable);
    far.works_again().await;
}

#[tokio::test]
async fn a_commit_whose_check_nobody_answers_was_not_sent() {
    let far = far(|db| db.max_connections(1)).await;
    let (transaction, finisher) = RequestTransaction::alone(&far.db);
    assert!(insert(&transaction, &far.db, 1).await);
    far.proxy.freeze();
    let ended = tokio::time::timeout(FOR_EVER, finisher.commit()).await;
    let refused = ended.expect("it ends").unwrap_err();
    let aborted = TransactionErrorKind::Doomed(RollbackCause::Aborted);
    assert_eq!(refused.kind(), aborted);
    far.works_again().await;
}

#[tokio::test]
async fn a_step_that_nobody_answers_ends_with_the_transactions_time() {
    let time = Duration::from_secs(3);
    let far = far(|db| db.transaction_timeout(time).max_connections(1)).await;
    let own = ReservationLayer::new(far.db.clone()).reservations();
    own.migrate().await.unwrap();
    let server = &far.server;
    let held = own.run(|mut guard: ReservationGuard| async move {
        guard.hold(slot("a"), "ann").await?;
        // Stopped, it does not end the session either.
        server.pause();
        guard.hold(slot("b"), "ann").await
    });
    let held = tokio::time::timeout(FOR_EVER, held).await;
    server.resume();
    let refused = held.expect("it ends").unwrap_err();
    assert!(
        !matches!(refused, ReservationError::Conflict(_)),
        "{refused:?}"
    );
    far.works_again().await;
}

#[tokio::test]
async fn a_request_dropped_on_a_silent_connection_costs_the_pool_no_place() {
    // The server does not end it meanwhile.
    let long = Duration::from_secs(600);
    let far = far(|db| db.transaction_timeout(long).max_connections(1)).await;
    let (transaction, finisher) = RequestTransaction::alone(&far.db);
    assert!(insert(&transaction, &far.db, 1).await);
    far.proxy.freeze();
    drop((transaction, finisher));
    far.works_again().await;
}

#[tokio::test]
async fn a_ping_that_nobody_answers_costs_the_pool_no_place() {
    let far = far(|db| db.max_connections(1)).await;
    far.warm(1).await;
    far.proxy.freeze();
    let pinged = tokio::time::timeout(Duration::from_millis(200), far.db.ping()).await;
    assert!(!matches!(pinged, Ok(Ok(()))));
    far.works_again().await;
}

#[tokio::test]
async fn a_lost_commit_is_asked_after_although_the_other_connections_are_silent_too() {
    let time = Duration::from_secs(1);
    let far = far(|db| db.transaction_timeout(time).max_connections(2)).await;
    far.warm(2).await;
    let (transaction, mut finisher) = RequestTransaction::alone(&far.db);
    assert!(insert(&transaction, &far.db, 1).await);
    // The sentinel asks now, so that the next request is COMMIT itself.
    finisher.mark().await.unwrap();
    far.proxy.freeze();
    // COMMIT never gets there; by when its reply is given up, the server has ended the session.
    let refused = finisher.commit().await.unwrap_err();
    let aborted = TransactionErrorKind::Doomed(RollbackCause::Aborted);
    assert_eq!(refused.kind(), aborted);
}

#[tokio::test]
async fn a_handle_closes_by_its_deadline_whoever_still_has_a_connection() {
    let far = far(|db| db.max_connections(2)).await;
    let (transaction, _finisher) = RequestTransaction::alone(&far.db);
    let lease = transaction.lease::<Postgres>().await.unwrap();
    let closed = far.db.close(Duration::from_millis(100));
    let closed = tokio::time::timeout(Duration::from_secs(20), closed).await;
    assert!(closed.is_ok());
    drop(lease);
}
