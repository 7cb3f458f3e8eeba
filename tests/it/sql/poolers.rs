//! Behind a pooler that gives each transaction another session of the server: nobody's statements meet, and a commit's fate
//! is told as it is.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tower_keep::backend::sql::{Postgres, RequestTransaction, SqlStore, TransactionErrorKind};
use tower_keep::conformance::{idempotency, lock, once, queue, reservation, session};
use tower_keep::core::{ManualClock, RollbackCause};

use crate::support::{PgBouncer, PostgresServer, Proxy};

/// What the documentation says of a pooler that does not follow statements.
const KEEPS_NONE: &str = "?statement-cache-capacity=0";

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T09:00:00Z".parse().unwrap())
}

/// Everything that the parts ask a database, all at once, each part on connections of its own.
async fn all_suites(url: &str) {
    let mut parts = JoinSet::new();
    macro_rules! keeps_its_promises {
        ($($part:ident)*) => {$({
            let (clock, url) = (clock(), url.to_owned());
            parts.spawn(async move {
                let db = SqlStore::builder(&url).table_prefix(concat!(stringify!($part), "_"));
                let db = db.acquire_timeout(Duration::from_secs(20)).clock(clock.clone());
                $part::$part(Arc::new(db.open().await.unwrap()), &clock).await;
            });
        })*};
    }
    keeps_its_promises!(reservation session idempotency once lock queue);
    while let Some(part) = parts.join_next().await {
        part.unwrap();
    }
}

#[tokio::test]
async fn every_part_keeps_its_promises_where_each_transaction_has_another_session() {
    let server = PostgresServer::start().await;
    let pooler = PgBouncer::before(&server, "transaction", 20);
    all_suites(&(pooler.url_of(&server.database().await) + KEEPS_NONE)).await;
}

#[tokio::test]
async fn every_part_keeps_its_promises_where_a_connection_keeps_its_session() {
    let server = PostgresServer::start().await;
    let pooler = PgBouncer::before(&server, "session", 100);
    all_suites(&pooler.url_of(&server.database().await)).await;
}

async fn insert(transaction: &RequestTransaction, n: i32) {
    let mut lease = transaction.lease::<Postgres>().await.unwrap();
    let made = sqlx::query("insert into t values ($1)").bind(n);
    made.execute(&mut *lease).await.unwrap();
}

async fn stored(url: &str) -> Vec<i32> {
    let mut direct = <sqlx::PgConnection as sqlx::Connection>::connect(url)
        .await
        .unwrap();
    let sql = "select n from t order by n";
    sqlx::query_scalar(sql)
        .fetch_all(&mut direct)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_lost_commit_is_asked_after_on_another_session() {
    let server = PostgresServer::start().await;
    let direct = server.database().await;
    let pooler = PgBouncer::before(&server, "transaction", 3);
    let proxy = Proxy::before(pooler.address()).await;
    let database = direct.rsplit('/').next().unwrap();
    let url = format!(
        "postgres://postgres@{}/{database}{KEEPS_NONE}",
        proxy.address()
    );
    let db = SqlStore::connect(&url).await.unwrap();
    let pool = db.pool::<Postgres>().unwrap();
    let made = "create table t (n integer unique)";
    sqlx::raw_sql(made).execute(pool).await.unwrap();
    for n in 0..6 {
        let (transaction, mut finisher) = RequestTransaction::alone(&db);
        insert(&transaction, n).await;
        // The check asks now, so that the next request is COMMIT itself.
        finisher.mark().await.unwrap();
        proxy.cut_at_next_reply();
        // Only from Postgres 15 on a number alone proves a commit.
        match finisher.commit().await.map_err(|error| error.kind()) {
            Ok(()) => {}
            Err(kind) => assert_eq!(kind, TransactionErrorKind::Unknown),
        }
        assert_eq!(stored(&direct).await.last(), Some(&n));
    }
    // A session that dies before the COMMIT has kept nothing, and that is what is told.
    let (transaction, finisher) = RequestTransaction::alone(&db);
    insert(&transaction, 99).await;
    let killed = "select pg_terminate_backend(pid) from pg_stat_activity \
                  where state = 'idle in transaction' and datname = current_database()";
    sqlx::raw_sql(killed).execute(pool).await.unwrap();
    let told = finisher.commit().await.unwrap_err();
    let aborted = TransactionErrorKind::Doomed(RollbackCause::Aborted);
    assert_eq!(told.kind(), aborted);
    assert_eq!(stored(&direct).await.last(), Some(&5));
}

#[tokio::test]
async fn statements_of_others_are_not_taken_for_our_own() {
    let server = PostgresServer::start().await;
    let direct = server.database().await;
    let pooler = PgBouncer::before(&server, "transaction", 1);
    let url = pooler.url_of(&direct) + KEEPS_NONE;
    let (ours, theirs) = (SqlStore::connect(&url).await, SqlStore::connect(&url).await);
    for (n, db) in [ours.unwrap(), theirs.unwrap()]
        .iter()
        .cycle()
        .take(6)
        .enumerate()
    {
        let (transaction, finisher) = RequestTransaction::alone(db);
        let mut lease = transaction.lease::<Postgres>().await.unwrap();
        let number: i64 = sqlx::query_scalar("select $1::int8")
            .bind(n as i64)
            .fetch_one(&mut *lease)
            .await
            .unwrap();
        assert_eq!(number, n as i64);
        let left: i64 = sqlx::query_scalar("select count(*) from pg_prepared_statements")
            .fetch_one(&mut *lease)
            .await
            .unwrap();
        // This one and the one before: none stays for ever.
        assert!(left <= 4, "{left}");
        drop(lease);
        finisher.commit().await.unwrap();
    }
}
