//! Round trips to Postgres, counted by a proxy; statements of SQLite, which sqlx tells of.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::extract::Query;
use http::{Request, StatusCode};
use tower::ServiceExt;
use tower_keep::backend::sql::{Postgres, SqlStore};
use tower_keep::core::ManualClock;
use tower_keep::reservation::{
    EventSet, HoldId, HoldRef, Payment, ReservationGuard, ReservationLayer, ReservationRejection,
    Settled, Slot,
};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::{App, MINUTE, clock, slot};
use crate::support::{PostgresServer, Proxy};

/// A Postgres behind a proxy, with one connection.
struct Line {
    db: SqlStore,
    proxy: Proxy,
    clock: ManualClock,
    _server: PostgresServer,
}

impl Line {
    async fn new() -> Self {
        let server = PostgresServer::start().await;
        let database = server.database().await;
        let name = database.rsplit('/').next().unwrap();
        let proxy = Proxy::before(server.address()).await;
        let url = format!("postgres://postgres@{}/{name}", proxy.address());
        let clock = clock();
        let db = SqlStore::builder(&url)
            .max_connections(1)
            .acquire_timeout(Duration::from_secs(20))
            .clock(clock.clone())
            .open()
            .await
            .unwrap();
        Self {
            db,
            proxy,
            clock,
            _server: server,
        }
    }

    /// Round trips of one `work`. The first runs prepare its statements; the pool pings a connection
    /// that comes back, which no request waits for and which is left out here.
    async fn of<F: Future<Output = ()>>(&self, mut work: impl FnMut(u32) -> F) -> u64 {
        for n in 0..3 {
            work(n).await;
        }
        let before = self.proxy.round_trips();
        for n in 3..13 {
            work(n).await;
        }
        (self.proxy.round_trips() - before + 5) / 10 - 1
    }
}

fn lane(what: &str, n: u32) -> Slot {
    slot(&format!("{what} {n}"))
}

#[derive(serde::Deserialize)]
struct Wish {
    lane: String,
    #[serde(default)]
    counted: bool,
}

async fn book(
    Query(wish): Query<Wish>,
    mut guard: ReservationGuard<Postgres>,
) -> Result<StatusCode, ReservationRejection> {
    let slot = slot(&wish.lane);
    let slot = if wish.counted {
        slot.units(1).of(2)
    } else {
        slot
    };
    guard.hold(slot, "ann").await?;
    Ok(StatusCode::CREATED)
}

async fn post(app: &App, uri: String, status: StatusCode) {
    let request = Request::post(uri).body(axum::body::Body::empty()).unwrap();
    let answer = app.router.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), status);
}

#[tokio::test]
async fn a_hold_alone_is_one_round_trip_and_in_a_request_three() {
    let line = Line::new().await;
    let app = App::new(line.db.clone(), book);
    let own = &app.own;
    let alone = line.of(async |n| drop(own.hold(lane("alone", n), "ann").await.unwrap()));
    assert_eq!(alone.await, 1, "INSERT");
    let refused = line.of(async |n| drop(own.hold(lane("alone", n), "bob").await.unwrap_err()));
    assert_eq!(refused.await, 1, "INSERT, which says what is in the way");
    let made = line.of(|n| post(&app, format!("/?lane=a{n}"), StatusCode::CREATED));
    assert_eq!(made.await, 3, "BEGIN, INSERT, COMMIT");
    let refused = line.of(async |n| {
        own.hold(lane("taken", n), "bob").await.unwrap();
        post(&app, format!("/?lane=taken%20{n}"), StatusCode::CONFLICT).await;
    });
    assert_eq!(refused.await - 2, 3, "BEGIN, INSERT, ROLLBACK");
    let counted = line.of(|n| {
        post(
            &app,
            format!("/?lane=c{n}&counted=true"),
            StatusCode::CREATED,
        )
    });
    assert_eq!(counted.await, 5, "BEGIN, lock, SELECT, INSERT, COMMIT");
}

#[tokio::test]
async fn a_take_over_is_five_round_trips_its_event_included() {
    let line = Line::new().await;
    let app = App::new(line.db.clone(), book);
    for n in 0..13 {
        app.own.hold(lane("late", n), "bob").await.unwrap();
    }
    line.clock.advance(10 * MINUTE);
    let taken = line.of(|n| post(&app, format!("/?lane=late%20{n}"), StatusCode::CREATED));
    assert_eq!(
        taken.await,
        5,
        "BEGIN, INSERT, SELECT, one statement, COMMIT"
    );
    let told = tower_keep::reservation::ReservationStore::take_events(&line.db, 100, MINUTE);
    assert_eq!(told.await.unwrap().len(), 13);
}

#[tokio::test]
async fn a_confirmation_in_time_is_three_round_trips_its_event_included() {
    let line = Line::new().await;
    let layer = ReservationLayer::new(line.db.clone()).record(EventSet::all());
    let own = layer.reservations();
    let mut holds: Vec<HoldId> = Vec::new();
    for n in 0..13 {
        holds.push(own.hold(lane("x", n), "ann").await.unwrap().id());
    }
    let payment = |n: u32| Payment::new(format!("pay-{n}"));
    let attached = line.of(async |n| {
        let hold = holds[n as usize];
        own.run(|mut guard: ReservationGuard| async move {
            guard.attach_payment(hold, payment(n)).await
        })
        .await
        .unwrap();
    });
    assert_eq!(attached.await, 5, "BEGIN, lock, payments, write, COMMIT");
    let confirmed = line.of(async |n| {
        let done = own.run(|mut guard: ReservationGuard| async move {
            guard.confirm(HoldRef::payment(format!("pay-{n}"))).await
        });
        assert!(matches!(done.await.unwrap(), Settled::Confirmed(_)));
    });
    assert_eq!(confirmed.await, 3, "BEGIN, one statement, COMMIT");
    let cancelled = line.of(async |n| {
        let hold = holds[n as usize];
        own.run(|mut guard: ReservationGuard| async move { guard.cancel(hold, "ann").await })
            .await
            .unwrap();
    });
    assert_eq!(cancelled.await, 4, "BEGIN, lock, write, COMMIT");
}

#[tokio::test]
async fn the_handlers_own_sql_costs_its_statement_and_one_question_before_the_commit() {
    let line = Line::new().await;
    let app = App::new(
        line.db.clone(),
        async |mut guard: ReservationGuard<Postgres>| {
            let mut lease = guard.transaction().await.unwrap();
            let done = sqlx::query("select 1").execute(&mut *lease).await;
            assert!(done.is_ok());
            StatusCode::OK
        },
    );
    let trips = line.of(|_| post(&app, "/".to_owned(), StatusCode::OK));
    assert_eq!(trips.await, 4, "BEGIN, its statement, the question, COMMIT");
}

#[tokio::test]
async fn a_hold_alone_waits_for_a_competitor_as_long_as_a_lock_may_take() {
    let url = crate::support::postgres::shared().await.database().await;
    let patient = super::ReservationLayer::new(SqlStore::connect(&url).await.unwrap());
    let hasty = SqlStore::builder(&url)
        .lock_timeout(Duration::from_millis(200))
        .statement_timeout(Duration::from_secs(600));
    let hasty = ReservationLayer::new(hasty.open().await.unwrap()).reservations();
    let day = tower_keep::core::Timestamp::MAX.minus(Duration::from_secs(720_000));
    let slot = Slot::new("a", day..day.plus(MINUTE));
    let wish = slot.clone();
    patient
        .reservations()
        .run(move |mut guard: ReservationGuard| {
            let (wish, hasty) = (wish.clone(), hasty.clone());
            async move {
                guard.hold(wish.clone(), "ann").await?;
                // The statement is a transaction of its own and gives up by itself.
                let refused = hasty.hold(wish, "bob").await.unwrap_err();
                assert_eq!(refused.code(), "CONTENTION");
                Ok::<_, tower_keep::reservation::ReservationError>(())
            }
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_hold_alone_whose_reply_is_lost_is_made_once_and_answered() {
    let line = Line::new().await;
    let own = ReservationLayer::new(line.db.clone()).reservations();
    for n in 0..3 {
        own.hold(lane("before", n), "ann").await.unwrap();
        line.proxy.cut_at_next_reply();
        let hold = own.hold(lane("lost", n), "ann").await.unwrap();
        assert!(hold.token().is_some(), "it is told as made");
        let held = own.find(hold.id()).await.unwrap().unwrap();
        assert_eq!(held.slots().len(), 1);
        let day = slot("x").blocks();
        let calendar = own.availability(&format!("lost {n}"), day).await.unwrap();
        assert_eq!(calendar.spans().len(), 1);
    }
}

/// How many statements sqlx has told of.
#[derive(Clone, Default)]
pub(super) struct Statements(Arc<AtomicU64>);

impl<S: tracing::Subscriber> Layer<S> for Statements {
    fn on_event(&self, _: &tracing::Event<'_>, _: Context<'_, S>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Statements {
    /// Counts those of all threads of this process.
    pub(super) fn listen() -> Self {
        let statements = Self::default();
        let queries = Targets::new().with_target("sqlx::query", LevelFilter::TRACE);
        let listening = statements.clone().with_filter(queries);
        let listening = tracing_subscriber::registry().with(listening);
        tracing::subscriber::set_global_default(listening).unwrap();
        statements
    }

    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    async fn of(&self, work: impl Future<Output = ()>) -> u64 {
        let before = self.count();
        work.await;
        self.count() - before
    }
}

#[tokio::test]
async fn a_hold_alone_on_sqlite_is_one_statement_and_a_refused_one_two() {
    let statements = Statements::listen();
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("keep.db").display());
    for url in ["sqlite::memory:", &file] {
        let clock = clock();
        let db = SqlStore::builder(url).clock(clock.clone()).open();
        let own = ReservationLayer::new(db.await.unwrap()).reservations();
        own.hold(slot("first"), "ann").await.unwrap();
        let made = statements.of(async { drop(own.hold(slot("one"), "ann").await.unwrap()) });
        assert_eq!(made.await, 1, "INSERT");
        let late = statements.of(async { drop(own.hold(slot("one"), "bob").await.unwrap_err()) });
        assert_eq!(late.await, 2, "INSERT, SELECT");
        clock.advance(20 * MINUTE);
        // What is over is written so, which takes a transaction.
        let over = statements.of(async { drop(own.hold(slot("one"), "bob").await.unwrap()) });
        assert!(over.await > 4);
    }
}
