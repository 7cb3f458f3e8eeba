//! No statement of any part reads a whole table, however large it has grown: every suite runs, and the engines tell.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection};
use tower_keep::backend::sql::{Postgres, SqlStore};
use tower_keep::conformance::{idempotency, lock, once, queue, reservation, session};
use tower_keep::core::{ManualClock, Timestamp};
use tower_keep::reservation::{
    EventSet, ReservationError, ReservationGuard, ReservationLayer, Reservations, Slot,
};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::support::postgres::shared;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T09:00:00Z".parse::<Timestamp>().unwrap())
}

/// Everything that the parts ask a database.
async fn all_suites(url: &str) {
    let clock = clock();
    // So that other tests' statements are told apart.
    let db = SqlStore::builder(url).table_prefix("plan_");
    let db = db.clock(clock.clone()).open();
    let db = Arc::new(db.await.unwrap());
    reservation::reservation(db.clone(), &clock).await;
    session::session(db.clone(), &clock).await;
    idempotency::idempotency(db.clone(), &clock).await;
    once::once(db.clone(), &clock).await;
    lock::lock(db.clone(), &clock).await;
    queue::queue(db.clone(), &clock).await;
    db.close(std::time::Duration::from_secs(30)).await;
}

/// Tables of which rows were read by going through all of them; what the handle that is closed by now did is counted.
async fn scanned(admin: &mut PgConnection, url: &str) -> Vec<String> {
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    while number(admin, others).await > 0 {
        tokio::task::yield_now().await;
    }
    // Before Postgres 15 counts come late, but in order: once a reading of our own is told of, all before it are.
    let told = "SELECT coalesce(sum(seq_scan), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'marker'";
    let before = number(admin, told).await;
    let mut other = PgConnection::connect(url).await.unwrap();
    sqlx::raw_sql("CREATE TABLE IF NOT EXISTS marker (n int); SELECT n FROM marker")
        .execute(&mut other)
        .await
        .unwrap();
    other.close().await.unwrap();
    while number(admin, told).await == before {
        tokio::task::yield_now().await;
    }
    let sql = "SELECT relname::text FROM pg_stat_user_tables WHERE seq_tup_read > 0 ORDER BY 1";
    sqlx::query_scalar(sql).fetch_all(admin).await.unwrap()
}

async fn number(admin: &mut PgConnection, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(admin).await.unwrap()
}

#[tokio::test]
async fn no_statement_reads_a_whole_table_of_postgres() {
    let url = shared().await.database().await;
    let mut admin = PgConnection::connect(&url).await.unwrap();
    // From here on it is the planner's last resort.
    let name: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&mut admin)
        .await
        .unwrap();
    let rare = format!("ALTER DATABASE {name} SET enable_seqscan = off");
    sqlx::raw_sql(AssertSqlSafe(rare))
        .execute(&mut admin)
        .await
        .unwrap();
    all_suites(&url).await;
    assert_eq!(scanned(&mut admin, &url).await, [""; 0]);
    // The check can fail.
    let mut other = PgConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("SELECT count(*) FROM plan_event WHERE attempts > 1")
        .execute(&mut other)
        .await
        .unwrap();
    other.close().await.unwrap();
    assert_eq!(scanned(&mut admin, &url).await, ["plan_event"]);
}

/// The statements that sqlx tells of.
#[derive(Clone, Default)]
struct Statements(Arc<Mutex<BTreeSet<String>>>);

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut told = Told::default();
        event.record(&mut told);
        let text = match told.statement.trim() {
            "" => told.summary,
            text => text.to_owned(),
        };
        let verbs = ["SELECT", "INSERT", "UPDATE", "DELETE", "WITH"];
        if text.contains("plan_") && verbs.iter().any(|verb| text.starts_with(verb)) {
            self.0.lock().unwrap().insert(text);
        }
    }
}

#[derive(Default)]
struct Told {
    summary: String,
    statement: String,
}

impl tracing::field::Visit for Told {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        match field.name() {
            "summary" => self.summary = value.to_owned(),
            "db.statement" => self.statement = value.to_owned(),
            _ => {}
        }
    }

    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
}

/// The steps of all plans that go through a whole table; constants and what another step has found are none.
async fn whole_tables(file: &mut SqliteConnection, statements: &BTreeSet<String>) -> Vec<String> {
    let mut found = Vec::new();
    for statement in statements {
        let plan = format!("EXPLAIN QUERY PLAN {statement}");
        let steps: Vec<(i64, i64, i64, String)> = sqlx::query_as(AssertSqlSafe(plan))
            .fetch_all(&mut *file)
            .await
            .unwrap();
        let steps = steps.into_iter().map(|(_, _, _, step)| step);
        found.extend(steps.filter(|step| {
            let read = step.strip_prefix("SCAN ");
            read.is_some_and(|of| {
                !(of.contains("INDEX")
                    || of.starts_with('(')
                    || ["CONSTANT ROW", "t", "spare", "own"].contains(&of))
            })
        }));
    }
    found
}

#[tokio::test]
async fn no_statement_reads_a_whole_table_of_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("keep.db").display());
    let statements = Statements::default();
    let queries = Targets::new().with_target("sqlx::query", LevelFilter::TRACE);
    let listening = tracing_subscriber::registry().with(statements.clone().with_filter(queries));
    // For all threads: a connection's own one runs what it is asked.
    tracing::subscriber::set_global_default(listening).unwrap();
    all_suites(&url).await;
    let mut file = SqliteConnection::connect(&url).await.unwrap();
    let statements = statements.0.lock().unwrap().clone();
    let of = |part: &str| statements.iter().any(|text| text.contains(part));
    let parts = [
        "hold",
        "event",
        "session",
        "idempotency",
        "once",
        "lock",
        "queue",
    ];
    assert!(
        parts.iter().all(|part| of(&format!("plan_{part}"))),
        "{statements:#?}"
    );
    assert_eq!(whole_tables(&mut file, &statements).await, [""; 0]);
    // The check can fail.
    sqlx::raw_sql("DROP INDEX plan_event_delivered")
        .execute(&mut file)
        .await
        .unwrap();
    let found = whole_tables(&mut file, &statements).await;
    assert_eq!(found, ["SCAN plan_event"]);
}

/// A calendar as it is after a while, as far as the planner is concerned.
async fn fill(pool: &sqlx::PgPool) {
    let sql = "INSERT INTO keep_hold (hold_id, part, resource, unit, starts, ends, block_start, block_end, units, \
         capacity, counted, holder, wish_key, token_hash, state, version, created_at, expires_at, changed_at) \
         SELECT gen_random_uuid(), 0, 'room ' || n % 100, '', n, n + 1, n, n + 1, 1, 0, false, 'guest ' || n, '', \
         '', 3, 1, n, NULL, n FROM generate_series(1, 20000) n; ANALYZE";
    sqlx::raw_sql(sql).execute(pool).await.unwrap();
}

/// A booking with all that belongs to it, and another who comes too late, each alone and in a request.
async fn book(own: &Reservations, nth: u64) -> Result<(), ReservationError> {
    let from = Timestamp::from_millis(4_102_444_800_000 + nth * 60_000);
    let slot = |room: &str| Slot::new(room, from..from.plus(std::time::Duration::from_secs(60)));
    own.hold(slot("room 1"), "ann").await?;
    own.hold(slot("room 1"), "bob").await.unwrap_err();
    let held = own.run(|mut guard: ReservationGuard<Postgres>| async move {
        guard.hold(slot("room 2"), "ann").await
    });
    let held = held.await?.id();
    let late = own.run(|mut guard: ReservationGuard<Postgres>| async move {
        guard.hold(slot("room 2"), "bob").await.map(drop)
    });
    late.await.unwrap_err();
    own.find(held).await?.unwrap();
    own.run(|mut guard: ReservationGuard<Postgres>| async move {
        guard
            .extend(held, "ann", std::time::Duration::from_secs(900))
            .await?;
        guard.confirm(held).await?;
        guard.cancel(held, "ann").await.map(drop)
    })
    .await?;
    own.availability(
        "room 2",
        from..from.plus(std::time::Duration::from_secs(60)),
    )
    .await
    .map(drop)
}

#[tokio::test]
async fn postgres_plans_once_what_it_is_asked_again_and_again() {
    let url = shared().await.database().await;
    let db = SqlStore::builder(&url)
        .max_connections(1)
        .open()
        .await
        .unwrap();
    let pool = db.pool::<Postgres>().unwrap().clone();
    for (run, events) in [EventSet::NONE, EventSet::all()].into_iter().enumerate() {
        let layer = ReservationLayer::new(db.clone()).record(events);
        let own = layer.reservations();
        own.migrate().await.unwrap();
        if run == 0 {
            fill(&pool).await;
        }
        for nth in 0..12 {
            book(&own, nth + 100 * run as u64).await.unwrap();
        }
    }
    let plans = "SELECT statement, generic_plans, custom_plans FROM pg_prepared_statements \
         WHERE generic_plans + custom_plans > 10 AND statement LIKE '%keep_%'";
    let plans: Vec<(String, i64, i64)> = sqlx::query_as(plans).fetch_all(&pool).await.unwrap();
    assert!(plans.len() > 5, "{plans:#?}");
    // The first five are planned each for itself, to compare.
    let anew: Vec<_> = plans.iter().filter(|(_, kept, _)| *kept == 0).collect();
    assert!(anew.is_empty(), "{anew:#?}");
}
