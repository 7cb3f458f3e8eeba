//! A COMMIT that nobody answered in time: what is told, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Json;
use http::StatusCode;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::mpsc;
use tower_keep::backend::sql::{
    AnyLease, Proof, RequestTransaction, SqlStore, SqlStoreBuilder, Sqlite, TransactionErrorKind,
};
use tower_keep::core::RollbackCause;
use tower_keep::reservation::{
    EventSet, Hold, HoldId, ReservationError, ReservationGuard, ReservationLayer,
    ReservationRejection, ReservationStore, Reservations,
};

use crate::reservation::{App, check, clock, slot};

/// A file in rollback mode, where a reader holds up the COMMIT of a writer.
pub struct Held {
    pub db: SqlStore,
    reader: SqliteConnection,
    file: std::path::PathBuf,
    _folder: tempfile::TempDir,
}

impl Held {
    pub async fn new(lock_timeout: Duration) -> Self {
        Self::of(lock_timeout, |db| {
            db.commit_timeout(Duration::from_millis(150))
        })
        .await
    }

    async fn of(
        lock_timeout: Duration,
        set: impl FnOnce(SqlStoreBuilder) -> SqlStoreBuilder,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("held.db");
        let db = SqlStore::builder(&format!("sqlite:{}", file.display()))
            .clock(clock())
            .max_connections(1)
            .lock_timeout(lock_timeout);
        let db = set(db).open().await.unwrap();
        let pool = db.pool::<Sqlite>().unwrap();
        // The tables first, then the mode: a reader of a WAL would hold nobody up.
        drop(ReservationStore::open(&db, None));
        db.migrate().await.unwrap();
        let made = "create table t (n integer); pragma journal_mode = delete";
        sqlx::raw_sql(made).execute(pool).await.unwrap();
        let options = SqliteConnectOptions::new().filename(&file);
        let reader = SqliteConnection::connect_with(&options).await.unwrap();
        Self {
            db,
            reader,
            file,
            _folder: folder,
        }
    }

    pub async fn read(&mut self) {
        let sql = "begin; select count(*) from t";
        sqlx::raw_sql(sql)
            .fetch_all(&mut self.reader)
            .await
            .unwrap();
    }

    /// Waits until the writer has given up waiting for the reader, who stays.
    pub async fn writer_gave_up(&self) {
        let options = SqliteConnectOptions::new()
            .filename(&self.file)
            .busy_timeout(Duration::ZERO);
        let mut other = SqliteConnection::connect_with(&options).await.unwrap();
        while sqlx::raw_sql("begin immediate")
            .execute(&mut other)
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    }

    pub async fn let_go(&mut self) {
        sqlx::raw_sql("commit")
            .execute(&mut self.reader)
            .await
            .unwrap();
    }
}

async fn book(
    mut guard: ReservationGuard,
) -> Result<(StatusCode, Json<Hold>), ReservationRejection> {
    let hold = guard.hold(slot("a"), "ann").await?;
    Ok((StatusCode::CREATED, Json(hold)))
}

/// The handler, telling how its transaction ended.
fn telling(db: &SqlStore) -> (App, mpsc::UnboundedReceiver<&'static str>) {
    let (told, heard) = mpsc::unbounded_channel();
    let app = App::with(
        ReservationLayer::new(db.clone()),
        move |mut guard: ReservationGuard| {
            let (kept, undone) = (told.clone(), told.clone());
            async move {
                guard.after_commit(async move { kept.send("committed").unwrap() });
                guard.after_rollback(move |_| async move { undone.send("rolled back").unwrap() });
                book(guard).await
            }
        },
    );
    (app, heard)
}

/// The one hold that the answer names.
fn named(answer: &crate::support::http::Answer) -> HoldId {
    let holds = answer.json()["holds"].clone();
    assert_eq!(holds.as_array().unwrap().len(), 1);
    holds[0].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn an_unknown_commit_is_told_with_its_hold_and_its_hooks_run_when_it_is_known() {
    let mut held = Held::new(Duration::from_secs(20)).await;
    let (app, mut heard) = telling(&held.db);
    held.read().await;
    let answer = app.post().await;
    crate::reservation::check(&answer, StatusCode::SERVICE_UNAVAILABLE, "COMMIT_UNKNOWN");
    assert_eq!(answer.header("retry-after"), "5");
    let hold = named(&answer);
    assert!(
        heard.try_recv().is_err(),
        "nothing is told before it is known"
    );
    held.let_go().await;
    assert_eq!(heard.recv().await, Some("committed"));
    assert!(app.own.find(hold).await.unwrap().is_some());
    // The same wish again meets the hold that the lost answer would have named.
    assert_eq!(app.post().await.json()["id"], hold.to_string());
}

#[tokio::test]
async fn an_unknown_commit_that_failed_is_resolved_as_rolled_back_by_its_hold() {
    let mut held = Held::new(Duration::from_millis(600)).await;
    let (app, mut heard) = telling(&held.db);
    held.read().await;
    let answer = app.post().await;
    crate::reservation::check(&answer, StatusCode::SERVICE_UNAVAILABLE, "COMMIT_UNKNOWN");
    held.writer_gave_up().await;
    held.let_go().await;
    assert_eq!(heard.recv().await, Some("rolled back"));
    assert!(app.own.find(named(&answer)).await.unwrap().is_none());
    assert_eq!(app.post().await.status, StatusCode::CREATED);
}

#[tokio::test]
async fn a_hold_of_its_own_step_is_named_when_its_commit_is_unknown() {
    let mut held = Held::new(Duration::from_secs(20)).await;
    // A hold whose making is told takes a transaction.
    let layer = ReservationLayer::new(held.db.clone()).record(EventSet::all());
    let own = layer.reservations();
    held.read().await;
    let refused = own.hold(slot("a"), "ann").await.unwrap_err();
    let ReservationError::CommitUnknown { holds } = refused else {
        panic!("{refused:?}");
    };
    held.let_go().await;
    assert!(own.find(holds[0]).await.unwrap().is_some());
}

/// Counts the runs of a body that holds a slot.
async fn attempts(own: &Reservations) -> (usize, ReservationError) {
    let calls = AtomicUsize::new(0);
    let counted = &calls;
    let refused = own.run(|mut guard: ReservationGuard| async move {
        counted.fetch_add(1, Ordering::SeqCst);
        guard.hold(slot("a"), "ann").await
    });
    let refused = refused.await.unwrap_err();
    (calls.load(Ordering::SeqCst), refused)
}

#[tokio::test]
async fn a_run_whose_commit_is_unknown_is_not_run_again() {
    let mut held = Held::new(Duration::from_secs(20)).await;
    let own = ReservationLayer::new(held.db.clone()).reservations();
    held.read().await;
    let (calls, refused) = attempts(&own).await;
    assert!(
        matches!(refused, ReservationError::CommitUnknown { .. }),
        "{refused:?}"
    );
    assert_eq!(calls, 1);
    held.let_go().await;
}

#[tokio::test]
async fn a_run_that_has_waited_for_a_lock_is_not_run_again() {
    use tower_keep::backend::sql::Postgres;
    let url = crate::support::postgres::shared().await.database().await;
    let db = SqlStore::builder(&url)
        .clock(clock())
        .acquire_timeout(Duration::from_secs(20))
        .lock_timeout(Duration::from_millis(50));
    let db = db.open().await.unwrap();
    let own = ReservationLayer::new(db.clone()).reservations();
    own.migrate().await.unwrap();
    let mut other = db.pool::<Postgres>().unwrap().begin().await.unwrap();
    let locked = sqlx::raw_sql("lock table keep_hold in exclusive mode");
    locked.execute(&mut *other).await.unwrap();
    let (calls, refused) = attempts(&own).await;
    assert!(
        matches!(refused, ReservationError::Contention { again: false }),
        "{refused:?}"
    );
    assert_eq!(calls, 1);
}

/// A statement that is a transaction of its own is undone where it cannot commit, and says so.
#[tokio::test]
async fn a_hold_of_one_statement_that_cannot_commit_is_refused_and_not_kept() {
    let mut held = Held::new(Duration::from_millis(200)).await;
    let own = ReservationLayer::new(held.db.clone()).reservations();
    held.read().await;
    let refused = own.hold(slot("a"), "ann").await.unwrap_err();
    assert!(
        matches!(refused, ReservationError::Contention { .. }),
        "{refused:?}"
    );
    held.let_go().await;
    own.hold(slot("a"), "bob").await.unwrap();
}

/// Where nobody says, a COMMIT is waited for ten seconds, and its owner asked for as long again. In paused time, but for the
/// database.
#[tokio::test]
async fn a_commit_is_waited_for_ten_seconds_and_asked_after_for_ten_more() {
    let mut held = Held::of(Duration::from_secs(20), |db| db).await;
    let (transaction, mut finisher) = RequestTransaction::alone(&held.db);
    let mut lease = transaction.lease::<Sqlite>().await.unwrap();
    let written = sqlx::query("insert into t values (7)");
    written.execute(&mut *lease).await.unwrap();
    drop(lease);
    // The sentinel asks now, so that the next request is COMMIT itself.
    finisher.mark().await.unwrap();
    finisher.proof(|_| Box::pin(std::future::ready(Ok(Proof::Open))));
    held.read().await;
    tokio::time::pause();
    let started = tokio::time::Instant::now();
    let told = finisher.commit().await.unwrap_err();
    let took = started.elapsed();
    tokio::time::resume();
    assert_eq!(told.kind(), TransactionErrorKind::Unknown);
    let both = Duration::from_secs(20)..Duration::from_secs(21);
    assert!(both.contains(&took), "{took:?}");
    held.let_go().await;
}

#[tokio::test]
async fn a_commit_that_a_reader_holds_up_for_too_long_is_told_as_contention() {
    let mut held = Held::new(Duration::from_millis(100)).await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let app = App::new(held.db.clone(), async move |mut guard: ReservationGuard| {
        let told = told.clone();
        guard.after_rollback(async move |why| told.send(why).unwrap());
        guard.hold(slot("a"), "ann").await.unwrap();
        StatusCode::OK
    });
    held.read().await;
    let answer = app.post().await;
    check(&answer, StatusCode::SERVICE_UNAVAILABLE, "CONTENTION");
    assert_eq!(heard.recv().await, Some(RollbackCause::Contention));
    held.let_go().await;
}

#[tokio::test]
async fn an_owner_proves_what_became_of_its_commit() {
    let mut held = Held::new(Duration::from_secs(20)).await;
    let (transaction, mut finisher) = RequestTransaction::alone(&held.db);
    {
        let mut lease = transaction.lease::<Sqlite>().await.unwrap();
        let made = sqlx::query("insert into t values (7)");
        made.execute(&mut *lease).await.unwrap();
    }
    finisher.proof(|lease| {
        Box::pin(async move {
            let AnyLease::Sqlite(connection) = lease else {
                return Ok(Proof::Open);
            };
            let found = sqlx::query("select n from t where n = 7");
            let found = found.fetch_optional(connection).await?;
            Ok(found.map_or(Proof::RolledBack, |_| Proof::Committed))
        })
    });
    let (told, mut heard) = mpsc::unbounded_channel();
    transaction.after_commit(async move { told.send(()).unwrap() });
    held.read().await;
    let lost = finisher.commit().await.unwrap_err();
    assert_eq!(lost.kind(), TransactionErrorKind::Unknown);
    held.let_go().await;
    assert_eq!(heard.recv().await, Some(()));
}

#[tokio::test]
async fn without_a_proof_an_unknown_commit_stays_unknown_and_runs_no_hook() {
    let mut held = Held::new(Duration::from_secs(20)).await;
    let (transaction, finisher) = RequestTransaction::alone(&held.db);
    {
        let mut lease = transaction.lease::<Sqlite>().await.unwrap();
        let made = sqlx::query("insert into t values (7)");
        made.execute(&mut *lease).await.unwrap();
    }
    let told = Arc::new(());
    let kept = Arc::clone(&told);
    transaction.after_commit(async move { drop(kept) });
    held.read().await;
    let lost = finisher.commit().await.unwrap_err();
    assert_eq!(lost.kind(), TransactionErrorKind::Unknown);
    held.let_go().await;
    held.db.close(Duration::from_secs(10)).await;
    assert_eq!(Arc::strong_count(&told), 1, "the hook was dropped, not run");
}

/// By this error a server says that it never gave out such a number: the rows have to tell then.
#[tokio::test]
async fn postgres_refuses_to_tell_of_a_transaction_that_another_server_has_made() {
    let url = crate::support::postgres::shared().await.database().await;
    let db = SqlStore::connect(&url).await.unwrap();
    let pool = db.pool::<tower_keep::backend::sql::Postgres>().unwrap();
    let asked = sqlx::query("select pg_xact_status('999999999999'::xid8)");
    let refused = asked.fetch_one(pool).await.unwrap_err();
    let code = refused
        .as_database_error()
        .unwrap()
        .code()
        .unwrap()
        .into_owned();
    assert_eq!(code, "22023");
}

/// A server that crashed gives out again the numbers that had not reached its disk: what another
/// transaction did under ours says nothing of ours.
#[tokio::test]
async fn a_number_that_a_crashed_server_gave_out_again_proves_nothing() {
    let mut server = crate::support::postgres::PostgresServer::start_durable().await;
    let url = server.database().await;
    let db = SqlStore::builder(&url)
        .commit_timeout(Duration::from_secs(1))
        .acquire_timeout(Duration::from_secs(20));
    let db = db.open().await.unwrap();
    let pool = db.pool::<tower_keep::backend::sql::Postgres>().unwrap();
    let made = "create table t (n integer); checkpoint";
    sqlx::raw_sql(made).execute(pool).await.unwrap();
    let (transaction, mut finisher) = RequestTransaction::alone(&db);
    let number: String = {
        let lease = transaction.lease::<tower_keep::backend::sql::Postgres>();
        let mut lease = lease.await.unwrap();
        let made = sqlx::query_scalar("insert into t values (7) returning xmin::text");
        made.fetch_one(&mut *lease).await.unwrap()
    };
    // The sentinel asks now, so that the next request is COMMIT itself.
    finisher.mark().await.unwrap();
    server.restart();
    let mut others = Vec::new();
    while others.len() < 20 {
        let other = sqlx::query_scalar("insert into t values (8) returning xmin::text");
        others.extend(
            other
                .fetch_one(pool)
                .await
                .ok()
                .into_iter()
                .collect::<Vec<String>>(),
        );
    }
    assert!(others.contains(&number), "{number} is among {others:?}");
    let told = finisher.commit().await.unwrap_err();
    assert_eq!(told.kind(), TransactionErrorKind::Unknown);
    let kept = sqlx::query("select n from t where n = 7");
    assert!(kept.fetch_optional(pool).await.unwrap().is_none());
}
