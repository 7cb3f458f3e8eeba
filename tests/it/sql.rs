//! The SQL backend: the shared transaction, its marks, its endings, the schema.

mod by_hand;
pub mod lost;
mod own_wait;
mod plans;
mod poolers;
mod pools;
mod settings;
mod silent;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Extensions;
use sqlx::Connection;
use tokio::sync::mpsc;
use tower_keep::backend::sql::{
    Finisher, Migrations, Postgres, RequestTransaction, SqlStore, Sqlite, TransactionErrorKind,
};
use tower_keep::core::{RollbackCause, StoreErrorKind, Vote};
use tower_keep::reservation::{ReservationLayer, Slot};

use crate::support::postgres::shared;
use crate::support::{PostgresServer, Proxy};

async fn sqlite() -> SqlStore {
    let db = SqlStore::connect("sqlite::memory:").await.unwrap();
    let pool = db.pool::<Sqlite>().unwrap();
    sqlx::raw_sql("create table t (n integer unique)")
        .execute(pool)
        .await
        .unwrap();
    db
}

async fn postgres() -> SqlStore {
    let db = SqlStore::connect(&shared().await.database().await)
        .await
        .unwrap();
    let pool = db.pool::<Postgres>().unwrap();
    sqlx::raw_sql("create table t (n integer unique)")
        .execute(pool)
        .await
        .unwrap();
    db
}

fn join(extensions: &mut Extensions, db: &SqlStore) -> (RequestTransaction, Finisher) {
    let (transaction, finisher) = RequestTransaction::join(extensions, db);
    (transaction, finisher.unwrap())
}

/// Inserts into `t`; says whether it worked.
async fn insert(transaction: &RequestTransaction, db: &SqlStore, n: u32) -> bool {
    let sql = sqlx::AssertSqlSafe(format!("insert into t values ({n})"));
    if db.pool::<Sqlite>().is_some() {
        let mut lease = transaction.lease::<Sqlite>().await.unwrap();
        return sqlx::raw_sql(sql).execute(&mut *lease).await.is_ok();
    }
    let mut lease = transaction.lease::<Postgres>().await.unwrap();
    sqlx::raw_sql(sql).execute(&mut *lease).await.is_ok()
}

/// What is in `t`, as others see it.
async fn stored(db: &SqlStore) -> Vec<i32> {
    let sql = "select n from t order by n";
    if let Some(pool) = db.pool::<Sqlite>() {
        return sqlx::query_scalar(sql).fetch_all(pool).await.unwrap();
    }
    let pool = db.pool::<Postgres>().unwrap();
    sqlx::query_scalar(sql).fetch_all(pool).await.unwrap()
}

#[tokio::test]
async fn the_first_to_join_finishes_and_the_others_share_its_transaction() {
    for db in [sqlite().await, postgres().await] {
        let mut extensions = Extensions::new();
        let (first, finisher) = join(&mut extensions, &db);
        let (second, none) = RequestTransaction::join(&mut extensions, &db);
        assert!(none.is_none());
        assert!(insert(&first, &db, 1).await && insert(&second, &db, 2).await);
        finisher.commit().await.unwrap();
        assert_eq!(stored(&db).await, [1, 2]);
        let ended = second.lease::<Sqlite>().await.map(|_| ()).unwrap_err();
        assert_eq!(ended.kind(), TransactionErrorKind::Ended);
        let (_, again) = RequestTransaction::join(&mut extensions, &db);
        assert!(
            again.is_some(),
            "a request that is run again gets a fresh transaction"
        );
    }
}

#[tokio::test]
async fn one_vote_for_a_rollback_decides() {
    for db in [sqlite().await, postgres().await] {
        let (transaction, finisher) = join(&mut Extensions::new(), &db);
        assert_eq!(finisher.verdict(), None);
        assert!(insert(&transaction, &db, 1).await);
        transaction.vote(Vote::Commit);
        assert_eq!(finisher.verdict(), Some(Vote::Commit));
        transaction.vote(Vote::Rollback(RollbackCause::Status(409)));
        transaction.vote(Vote::Commit);
        let cause = RollbackCause::Status(409);
        assert_eq!(finisher.verdict(), Some(Vote::Rollback(cause)));
        let refused = finisher.commit().await.unwrap_err();
        assert_eq!(refused.kind(), TransactionErrorKind::Doomed(cause));
        assert!(stored(&db).await.is_empty());
    }
}

#[tokio::test]
async fn a_rewind_undoes_what_came_after_the_mark_and_keeps_what_came_before() {
    for db in [sqlite().await, postgres().await] {
        let (told, mut heard) = mpsc::unbounded_channel();
        let (transaction, mut finisher) = join(&mut Extensions::new(), &db);
        finisher.begin(Duration::from_millis(250)).await.unwrap();
        assert!(insert(&transaction, &db, 1).await);
        finisher.mark().await.unwrap();
        assert!(insert(&transaction, &db, 2).await);
        assert!(
            !insert(&transaction, &db, 1).await,
            "this poisons a Postgres transaction"
        );
        let (never, undone) = (told.clone(), told.clone());
        transaction.after_commit(async move { never.send("commit").unwrap() });
        transaction.after_rollback(async move |_| undone.send("undone").unwrap());
        transaction.vote(Vote::Rollback(RollbackCause::Status(422)));
        finisher.rewind(RollbackCause::Status(422)).await.unwrap();
        assert_eq!(finisher.verdict(), None);
        assert!(insert(&transaction, &db, 3).await);
        finisher.commit().await.unwrap();
        assert_eq!(stored(&db).await, [1, 3]);
        assert_eq!(heard.recv().await, Some("undone"));
        db.close(Duration::from_secs(5)).await;
        drop((told, transaction));
        assert_eq!(heard.recv().await, None);
    }
}

#[tokio::test]
async fn a_rewind_does_not_wait_for_a_lease_that_leaked() {
    let db = sqlite().await;
    let (transaction, mut finisher) = join(&mut Extensions::new(), &db);
    finisher.begin(Duration::from_millis(250)).await.unwrap();
    finisher.mark().await.unwrap();
    let leaked = transaction.lease::<Sqlite>().await.unwrap();
    let rewound = finisher.rewind(RollbackCause::Status(422));
    let rewound = tokio::time::timeout(Duration::from_secs(5), rewound).await;
    let refused = rewound.expect("it answers at once").unwrap_err();
    let cause = TransactionErrorKind::Doomed(RollbackCause::Leaked);
    assert_eq!(refused.kind(), cause);
    drop(leaked);
    let refused = finisher.commit().await.unwrap_err();
    assert_eq!(refused.kind(), cause);
}

#[tokio::test]
async fn a_rewind_that_ends_past_the_transactions_time_heals_nothing() {
    let server = PostgresServer::start().await;
    let database = server.database().await;
    let name = database.rsplit('/').next().unwrap();
    let proxy = Proxy::before(server.address()).await;
    let url = format!("postgres://postgres@{}/{name}", proxy.address());
    let timeout = Duration::from_secs(3);
    let db = SqlStore::builder(&url).transaction_timeout(timeout);
    let db = db.open().await.unwrap();
    let (transaction, mut finisher) = join(&mut Extensions::new(), &db);
    finisher.begin(Duration::from_millis(250)).await.unwrap();
    finisher.mark().await.unwrap();
    // Doomed for another reason, which a rewind could heal.
    let leaked = transaction.lease::<Postgres>().await.unwrap();
    let refused = finisher.rewind(RollbackCause::Inner).await.unwrap_err();
    let leak = TransactionErrorKind::Doomed(RollbackCause::Leaked);
    assert_eq!(refused.kind(), leak);
    drop(leaked);
    // Two round trips: its time is over on the way.
    proxy.delay(timeout * 2 / 3);
    let refused = finisher.rewind(RollbackCause::Inner).await.unwrap_err();
    let late = TransactionErrorKind::Doomed(RollbackCause::Timeout);
    assert_eq!(refused.kind(), late);
    proxy.delay(Duration::ZERO);
    assert!(transaction.lease::<Postgres>().await.is_err());
    assert!(finisher.commit().await.is_err());
}

#[tokio::test]
async fn a_transaction_that_user_sql_ended_cannot_be_rewound() {
    for db in [sqlite().await, postgres().await] {
        let (transaction, mut finisher) = join(&mut Extensions::new(), &db);
        assert!(insert(&transaction, &db, 1).await);
        finisher.mark().await.unwrap();
        if db.pool::<Sqlite>().is_some() {
            let mut lease = transaction.lease::<Sqlite>().await.unwrap();
            sqlx::raw_sql("rollback")
                .execute(&mut *lease)
                .await
                .unwrap();
        } else {
            let mut lease = transaction.lease::<Postgres>().await.unwrap();
            sqlx::raw_sql("rollback")
                .execute(&mut *lease)
                .await
                .unwrap();
        }
        assert!(finisher.rewind(RollbackCause::Inner).await.is_err());
        assert!(finisher.commit().await.is_err());
        assert!(stored(&db).await.is_empty());
    }
}

#[tokio::test]
async fn a_savepoint_dropped_in_its_round_trip_never_ends_as_a_success() {
    for db in [sqlite().await, postgres().await] {
        let mut dropped_half_way = false;
        for _ in 0..3_000 {
            let (transaction, finisher) = join(&mut Extensions::new(), &db);
            assert!(insert(&transaction, &db, 1).await);
            // A fast answer may be there at once: then the savepoint was whole, and so is the rest.
            dropped_half_way = if db.pool::<Sqlite>().is_some() {
                let mut lease = transaction.lease::<Sqlite>().await.unwrap();
                is_dropped_half_way(lease.begin()).await
            } else {
                let mut lease = transaction.lease::<Postgres>().await.unwrap();
                is_dropped_half_way(lease.begin()).await
            };
            if dropped_half_way {
                assert!(finisher.commit().await.is_err());
                break;
            }
            finisher.rollback(RollbackCause::Inner).await;
        }
        assert!(dropped_half_way);
        assert!(stored(&db).await.is_empty());
        let (transaction, finisher) = join(&mut Extensions::new(), &db);
        assert!(insert(&transaction, &db, 2).await);
        finisher.commit().await.unwrap();
        assert_eq!(stored(&db).await, [2]);
    }
}

/// Polls once, drops, and says whether it had no answer.
async fn is_dropped_half_way<T>(begin: impl Future<Output = T>) -> bool {
    let mut begin = Box::pin(begin);
    std::future::poll_fn(|cx| std::task::Poll::Ready(begin.as_mut().poll(cx).is_pending())).await
}

#[tokio::test]
async fn what_was_committed_so_far_stays_and_the_next_statement_begins_anew() {
    for db in [sqlite().await, postgres().await] {
        let (transaction, mut finisher) = join(&mut Extensions::new(), &db);
        assert!(insert(&transaction, &db, 1).await);
        finisher.commit_so_far().await.unwrap();
        assert_eq!(stored(&db).await, [1]);
        assert!(insert(&transaction, &db, 2).await);
        finisher.rollback(RollbackCause::Inner).await;
        assert_eq!(stored(&db).await, [1]);
    }
}

#[tokio::test]
async fn a_dropped_finisher_rolls_back_and_work_after_it_panics_alone() {
    for db in [sqlite().await, postgres().await] {
        let (told, mut heard) = mpsc::unbounded_channel();
        let (transaction, finisher) = join(&mut Extensions::new(), &db);
        assert!(insert(&transaction, &db, 1).await);
        transaction.after_rollback(async |_| panic!("on purpose"));
        transaction.after_rollback(async move |cause| told.send(cause).unwrap());
        drop(finisher);
        assert_eq!(heard.recv().await, Some(RollbackCause::Cancelled));
        assert!(stored(&db).await.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_one_process_queue_and_none_is_turned_away() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("keep.db").display());
    let db = SqlStore::builder(&url).lock_timeout(Duration::from_secs(20));
    let db = db.open().await.unwrap();
    let pool = db.pool::<Sqlite>().unwrap();
    sqlx::raw_sql("create table t (n integer)")
        .execute(pool)
        .await
        .unwrap();
    let writers: Vec<_> = (0..64)
        .map(|n| {
            let db = db.clone();
            tokio::spawn(async move {
                let (transaction, finisher) = RequestTransaction::alone(&db);
                assert!(insert(&transaction, &db, n).await);
                finisher.commit().await.unwrap();
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(stored(&db).await.len(), 64);
}

#[tokio::test]
async fn a_lock_that_is_not_given_back_is_waited_for_and_no_longer() {
    let db = SqlStore::builder("sqlite::memory:").lock_timeout(Duration::from_millis(40));
    let db = db.open().await.unwrap();
    let (_first, holding) = RequestTransaction::alone(&db);
    holding.begin(Duration::from_secs(1)).await.unwrap();
    let (second, _finisher) = RequestTransaction::alone(&db);
    let refused = second.lease::<Sqlite>().await.map(|_| ()).unwrap_err();
    assert_eq!(refused.kind(), TransactionErrorKind::LockTimeout);
    holding.rollback(RollbackCause::Inner).await;
    assert!(
        second.lease::<Sqlite>().await.is_ok(),
        "a refused begin dooms nothing"
    );
}

#[tokio::test]
async fn tables_are_made_once_however_many_start_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("keep.db").display());
    for url in [file, shared().await.database().await] {
        let starts: Vec<_> = (0..4)
            .map(|_| {
                let url = url.clone();
                tokio::spawn(async move {
                    let db = SqlStore::builder(&url)
                        .table_prefix("shop_")
                        .open()
                        .await
                        .unwrap();
                    let layer = ReservationLayer::new(db.clone());
                    db.migrate().await.unwrap();
                    layer
                })
            })
            .collect();
        for start in starts {
            let _layer = start.await.unwrap();
        }
        let checking = SqlStore::builder(&url).table_prefix("shop_");
        let checking = checking.migrations(Migrations::Check).open().await.unwrap();
        let _layer = ReservationLayer::new(checking.clone());
        checking.migrate().await.unwrap();
        let absent = SqlStore::builder(&url).migrations(Migrations::Check);
        let absent = absent.open().await.unwrap();
        let _layer = ReservationLayer::new(absent.clone());
        let missing = absent.migrate().await.unwrap_err();
        assert_eq!(missing.kind(), StoreErrorKind::Failed);
    }
}

#[tokio::test]
async fn an_overlap_written_by_somebody_else_is_refused_by_the_database() {
    for db in [sqlite().await, postgres().await] {
        let own = ReservationLayer::new(db.clone()).reservations();
        let start = tower_keep::core::Timestamp::MAX.minus(Duration::from_secs(7_200));
        let slot = Slot::new("a", start..start.plus(Duration::from_secs(60)));
        own.hold(slot, "ann").await.unwrap();
        let copied = "hold_id, part, resource, unit, starts, ends, block_start, block_end, units, \
                      capacity, counted, holder, wish_key, token_hash, state, version, created_at, \
                      expires_at, changed_at";
        let sql = format!("insert into keep_hold ({copied}) select {copied} from keep_hold");
        let copy = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        let done = match db.pool::<Sqlite>() {
            Some(pool) => copy.execute(pool).await.map(|_| ()),
            None => copy
                .execute(db.pool::<Postgres>().unwrap())
                .await
                .map(|_| ()),
        };
        assert!(done.is_err());
    }
}

#[tokio::test]
async fn a_commit_whose_reply_is_lost_is_asked_after() {
    let server = PostgresServer::start().await;
    let database = server.database().await;
    let name = database.rsplit('/').next().unwrap();
    let proxy = Proxy::before(server.address()).await;
    let url = format!("postgres://postgres@{}/{name}", proxy.address());
    let db = SqlStore::connect(&url).await.unwrap();
    let pool = db.pool::<Postgres>().unwrap();
    sqlx::raw_sql("create table t (n integer unique)")
        .execute(pool)
        .await
        .unwrap();
    let hooks = Arc::new(AtomicUsize::new(0));
    let (transaction, mut finisher) = RequestTransaction::alone(&db);
    assert!(insert(&transaction, &db, 1).await);
    // The sentinel asks now, so that the next request is COMMIT itself.
    finisher.mark().await.unwrap();
    let counted = Arc::clone(&hooks);
    transaction.after_commit(async move {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    // Before Postgres 15 a number alone proves no commit, and nobody here says how else to look.
    let version = "select current_setting('server_version_num')::int / 10000";
    let version: i32 = sqlx::query_scalar(version).fetch_one(pool).await.unwrap();
    proxy.cut_at_next_reply();
    let told = finisher.commit().await.map_err(|error| error.kind());
    let knows = version >= 15;
    assert_eq!(
        told,
        knows.then_some(()).ok_or(TransactionErrorKind::Unknown)
    );
    assert_eq!(stored(&db).await, [1]);
    db.close(Duration::from_secs(5)).await;
    assert_eq!(hooks.load(Ordering::SeqCst), usize::from(knows));
}

#[tokio::test]
async fn a_session_killed_before_the_commit_is_known_to_be_aborted() {
    killed_before_the_commit(async |finisher| finisher.mark().await.unwrap()).await;
}

/// The next request is the sentinel's: the database went away, and the handler did nothing wrong.
#[tokio::test]
async fn a_session_killed_before_the_check_of_a_commit_may_be_done_again() {
    killed_before_the_commit(async |_| {}).await;
}

async fn killed_before_the_commit(before: impl AsyncFnOnce(&mut Finisher)) {
    let db = postgres().await;
    let (transaction, mut finisher) = RequestTransaction::alone(&db);
    assert!(insert(&transaction, &db, 1).await);
    before(&mut finisher).await;
    let killed = "select pg_terminate_backend(pid) from pg_stat_activity \
                  where state = 'idle in transaction' and datname = current_database()";
    let pool = db.pool::<Postgres>().unwrap();
    sqlx::query(killed).execute(pool).await.unwrap();
    let refused = finisher.commit().await.unwrap_err();
    let aborted = TransactionErrorKind::Doomed(RollbackCause::Aborted);
    assert_eq!(refused.kind(), aborted);
    assert!(refused.is_retryable());
    assert!(stored(&db).await.is_empty());
}
