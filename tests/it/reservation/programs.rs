//! The example as it runs: alone, two on one database, killed in the middle.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::{ManualClock, SystemClock, Timestamp};
use tower_keep::reservation::{EventKind, ReservationLayer, Sweeper};

use crate::support::launch::wait_until;
use crate::support::postgres::shared;
use crate::support::{PostgresServer, Program};

/// Sends requests to a program that may die.
#[derive(Clone)]
struct Guests {
    client: Client<HttpConnector, Empty<Bytes>>,
}

type Answer = (StatusCode, Value);

impl Guests {
    fn new() -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    /// The whole answer, or `None` if there was none.
    async fn send(&self, to: SocketAddr, method: Method, path: &str, who: &str) -> Option<Answer> {
        let request = Request::builder()
            .method(method)
            .uri(format!("http://{to}{path}"))
            .header("x-guest", who)
            .body(Empty::new())
            .unwrap();
        let answer = self.client.request(request).await.ok()?;
        let status = answer.status();
        let body = answer.into_body().collect().await.ok()?.to_bytes();
        Some((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    async fn book(
        &self,
        to: SocketAddr,
        room: impl std::fmt::Display,
        who: &str,
    ) -> Option<Answer> {
        let path = format!("/rooms/{room}/2130-01-01T10:00:00Z");
        self.send(to, Method::POST, &path, who).await
    }

    async fn state(&self, at: SocketAddr, hold: &str) -> Option<String> {
        let path = format!("/holds/{hold}");
        let (status, hold) = self.send(at, Method::GET, &path, "anybody").await.unwrap();
        (status == StatusCode::OK).then(|| hold["state"].as_str().unwrap().to_owned())
    }
}

fn start(database: &str, folder: &Path, seconds: u32) -> Program {
    let file = folder.join("pay-back.txt").display().to_string();
    let seconds = seconds.to_string();
    Program::start("reservation", &["127.0.0.1:0", database, &file, &seconds])
}

fn sqlite_in(folder: &Path) -> String {
    format!("sqlite:{}", folder.join("rooms.db").display())
}

#[tokio::test]
async fn the_example_holds_confirms_and_gives_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut program = start("sqlite::memory:", folder.path(), 600);
    let (guests, at) = (Guests::new(), program.address());
    let (status, booked) = guests.book(at, 1, "ann").await.unwrap();
    assert_eq!(status, StatusCode::CREATED);
    let (status, refused) = guests.book(at, 1, "bob").await.unwrap();
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(refused["code"], "SLOT_TEMPORARILY_RESERVED");
    let payment = format!("/payments/{}", booked["payment"].as_str().unwrap());
    for word in ["confirmed", "already confirmed"] {
        let (status, settled) = guests
            .send(at, Method::POST, &payment, "provider")
            .await
            .unwrap();
        assert_eq!(
            (status, settled["settled"].as_str()),
            (StatusCode::OK, Some(word))
        );
    }
    let (_, refused) = guests.book(at, 1, "bob").await.unwrap();
    assert_eq!(refused["code"], "SLOT_ALREADY_BOOKED");
    let (_, other) = guests.book(at, 2, "bob").await.unwrap();
    let hold = format!("/holds/{}", other["hold"]["id"].as_str().unwrap());
    let (foreign, _) = guests.send(at, Method::DELETE, &hold, "ann").await.unwrap();
    assert_eq!(foreign, StatusCode::NOT_FOUND);
    let (own, _) = guests.send(at, Method::DELETE, &hold, "bob").await.unwrap();
    assert_eq!(own, StatusCode::OK);
    let day = "/rooms/1/2130-01-01T00:00:00Z";
    let (_, calendar) = guests.send(at, Method::GET, day, "ann").await.unwrap();
    assert_eq!(calendar["busy"].as_array().unwrap().len(), 1);
    program.signal("INT");
    assert!(program.wait().success());
}

/// One slot, two processes, a thousand guests at once.
async fn crowd(database: &str, folder: &Path) {
    let programs = [start(database, folder, 600), start(database, folder, 600)];
    let guests = Guests::new();
    let asking: Vec<_> = (0..1_000)
        .map(|n| {
            let (guests, to) = (guests.clone(), programs[n % 2].address());
            tokio::spawn(async move { guests.book(to, "hot", &format!("guest {n}")).await })
        })
        .collect();
    let (mut won, mut lost) = (0, 0);
    for asked in asking {
        let (status, body) = asked.await.unwrap().expect("an answer");
        match (status, body["code"].as_str()) {
            (StatusCode::CREATED, _) => won += 1,
            (StatusCode::CONFLICT, Some("SLOT_TEMPORARILY_RESERVED")) => lost += 1,
            other => panic!("{other:?}: {body}"),
        }
    }
    assert_eq!((won, lost), (1, 999));
    // Nobody is stuck: both serve on at once.
    for program in &programs {
        let booked = guests
            .book(program.address(), program.address(), "ann")
            .await;
        assert_eq!(booked.unwrap().0, StatusCode::CREATED);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_guests_in_two_processes_one_gets_the_slot_on_postgres() {
    let (folder, url) = (
        tempfile::tempdir().unwrap(),
        shared().await.database().await,
    );
    crowd(&url, folder.path()).await;
    let db = SqlStore::connect(&url).await.unwrap();
    let stuck = "select count(*) from pg_stat_activity \
                 where state like 'idle in transaction%' and datname = current_database()";
    let pool = db.pool::<tower_keep::backend::sql::Postgres>().unwrap();
    let stuck: i64 = sqlx::query_scalar(stuck).fetch_one(pool).await.unwrap();
    assert_eq!(stuck, 0);
    let deadlocks = "select deadlocks from pg_stat_database where datname = current_database()";
    let deadlocks: i64 = sqlx::query_scalar(deadlocks).fetch_one(pool).await.unwrap();
    assert_eq!(deadlocks, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_guests_in_two_processes_one_gets_the_slot_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    crowd(&sqlite_in(folder.path()), folder.path()).await;
}

/// Kills the server while guests book, starts another, and looks for what they were told.
async fn killed(database: &str, folder: &Path) {
    let guests = Guests::new();
    for round in 0..4 {
        let mut program = start(database, folder, 600);
        let told = Arc::new(Mutex::new(Vec::new()));
        let booking: Vec<_> = (0..6)
            .map(|guest| {
                let (guests, told, to) = (guests.clone(), Arc::clone(&told), program.address());
                tokio::spawn(async move {
                    for n in 0.. {
                        let room = format!("{round}-{guest}-{n}");
                        let Some(answer) = guests.book(to, room, "ann").await else {
                            return;
                        };
                        told.lock().unwrap().push(answer);
                    }
                })
            })
            .collect();
        while told.lock().unwrap().len() < 10 * (round + 1) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        program.signal("KILL");
        program.wait();
        for booking in booking {
            booking.await.unwrap();
        }
        let again = start(database, folder, 600);
        let told = told.lock().unwrap().clone();
        for (status, booked) in told {
            assert_eq!(status, StatusCode::CREATED, "{booked}");
            let hold = booked["hold"]["id"].as_str().unwrap();
            let found = guests.state(again.address(), hold).await;
            assert_eq!(found.as_deref(), Some("held"));
        }
    }
}

#[tokio::test]
async fn what_a_killed_server_has_told_is_there_on_postgres() {
    let (folder, url) = (
        tempfile::tempdir().unwrap(),
        shared().await.database().await,
    );
    killed(&url, folder.path()).await;
}

#[tokio::test]
async fn what_a_killed_server_has_told_is_there_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    killed(&sqlite_in(folder.path()), folder.path()).await;
}

/// Expiries are told to a program that is killed again and again; somebody else tells the rest.
async fn told_at_least_once(database: &str, folder: &Path) {
    const HOLDS: usize = 60;
    let (guests, file) = (Guests::new(), folder.join("pay-back.txt"));
    let mut holds = BTreeSet::new();
    {
        let program = start(database, folder, 1);
        for n in 0..HOLDS {
            let (status, booked) = guests.book(program.address(), n, "ann").await.unwrap();
            assert_eq!(status, StatusCode::CREATED);
            holds.insert(booked["hold"]["id"].as_str().unwrap().to_owned());
        }
        // Killed as soon as it has begun to tell.
        wait_until("the first event", || file.exists());
    }
    let seen = Arc::new(Mutex::new(told_of(&file)));
    // An hour later, by the clock: what the dead program had taken is free again.
    let later = ManualClock::at(Timestamp::of(&SystemClock).plus(Duration::from_secs(3_600)));
    let db = SqlStore::builder(database)
        .clock(later)
        .open()
        .await
        .unwrap();
    let own = ReservationLayer::new(db).reservations();
    let hearing = Arc::clone(&seen);
    let sweeper = Sweeper::new(&own).on_event(move |event| {
        assert_eq!(event.kind, EventKind::Expired);
        hearing.lock().unwrap().insert(event.hold.to_string());
        async { Ok(()) }
    });
    sweeper.once().await.unwrap();
    assert_eq!(*seen.lock().unwrap(), holds);
}

/// The holds in a file of "<hold>:<version> expired -"; the last line may be torn.
fn told_of(file: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let whole = text
        .split_inclusive('\n')
        .filter(|line| line.ends_with('\n'));
    whole
        .map(|line| line.split(':').next().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn an_expiry_is_told_although_its_teller_is_killed_on_postgres() {
    let (folder, url) = (
        tempfile::tempdir().unwrap(),
        shared().await.database().await,
    );
    told_at_least_once(&url, folder.path()).await;
}

#[tokio::test]
async fn an_expiry_is_told_although_its_teller_is_killed_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    told_at_least_once(&sqlite_in(folder.path()), folder.path()).await;
}

/// The database dies under a server that lives, and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_told_is_there_after_postgres_was_killed_and_what_was_refused_is_not() {
    use axum::extract::Path;
    use axum::routing::post;
    use tower::ServiceExt;
    use tower_keep::backend::sql::Postgres;
    use tower_keep::reservation::{ReservationGuard, ReservationRejection, Slot};

    fn slot(n: u32) -> Slot {
        let day: Timestamp = "2130-01-01T10:00:00Z".parse().unwrap();
        Slot::new(format!("room {n}"), day..day.plus(super::MINUTE))
    }
    async fn book(
        Path(n): Path<u32>,
        mut guard: ReservationGuard<Postgres>,
    ) -> Result<StatusCode, ReservationRejection> {
        guard.hold(slot(n), "ann").await?;
        sqlx::query("insert into visits values ($1)")
            .bind(n.to_string())
            .execute(&mut *guard.transaction().await?)
            .await?;
        Ok(StatusCode::CREATED)
    }
    let mut server = PostgresServer::start_durable().await;
    let url = server.database().await;
    let db = SqlStore::builder(&url)
        .commit_timeout(Duration::from_secs(20))
        .acquire_timeout(Duration::from_secs(20));
    let db = db.open().await.unwrap();
    let pool = db.pool::<Postgres>().unwrap();
    let made = sqlx::query("create table visits (guest text unique)");
    made.execute(pool).await.unwrap();
    let layer = ReservationLayer::new(db.clone());
    let own = layer.reservations();
    own.migrate().await.unwrap();
    let router = axum::Router::new().route("/{n}", post(book)).layer(layer);

    let told = Arc::new(Mutex::new(Vec::new()));
    let next = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let booking: Vec<_> = (0..6)
        .map(|_| {
            let (router, told) = (router.clone(), Arc::clone(&told));
            let (next, over) = (Arc::clone(&next), Arc::clone(&over));
            tokio::spawn(async move {
                while !over.load(std::sync::atomic::Ordering::SeqCst) {
                    let n = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let request = Request::post(format!("/{n}")).body(axum::body::Body::empty());
                    let answer = router.clone().oneshot(request.unwrap()).await.unwrap();
                    let good = answer.status() == StatusCode::CREATED;
                    told.lock().unwrap().push((n, answer.status()));
                    if !good {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            })
        })
        .collect();
    for round in 1..=2 {
        while told.lock().unwrap().len() < 40 * round {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.restart();
        let good = |told: &[(u32, StatusCode)]| {
            told.iter()
                .filter(|(_, status)| *status == StatusCode::CREATED)
                .count()
        };
        let before = good(&told.lock().unwrap());
        while good(&told.lock().unwrap()) < before + 5 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    over.store(true, std::sync::atomic::Ordering::SeqCst);
    for booking in booking {
        booking.await.unwrap();
    }
    let kept: Vec<String> = sqlx::query_scalar("select guest from visits")
        .fetch_all(pool)
        .await
        .unwrap();
    let kept: BTreeSet<String> = kept.into_iter().collect();
    let told = told.lock().unwrap().clone();
    for (n, status) in &told {
        let calendar = own
            .availability(&format!("room {n}"), slot(*n).blocks())
            .await
            .unwrap();
        let is_held = !calendar.spans().is_empty();
        let expected = *status == StatusCode::CREATED;
        assert_eq!(
            (is_held, kept.contains(&n.to_string())),
            (expected, expected),
            "{n}: {status}"
        );
    }
}
