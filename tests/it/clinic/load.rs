//! Mixed traffic at two processes while Redis and Postgres fall and come back. Two seconds a fault by default;
//! `CLINIC_LOAD_SECONDS=60` runs the long form.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Row;

use super::text;
use crate::support::{Browser, PostgresServer, Program, RedisServer, Reply};

/// How many visitors come and go at a time.
const VISITORS: u64 = 8;

/// What the visitors saw, to be held against what is kept in the end.
#[derive(Default)]
struct Seen {
    /// Reservation → who may look at it, and whether the provider has the money.
    paid: Mutex<Vec<(Browser, String)>>,
    /// Answers that no page of the contract knows.
    strange: Mutex<Vec<String>>,
    answers: Mutex<BTreeMap<u16, u64>>,
}

impl Seen {
    fn look(&self, path: &str, reply: &Reply) {
        let status = reply.status.as_u16();
        *self.answers.lock().unwrap().entry(status).or_default() += 1;
        let known = match status {
            // Health says so in its own form, pages in HTML.
            503 => {
                let text = reply.text();
                let codes = ["STORE_UNAVAILABLE", "CONTENTION", "\"down\""];
                codes.iter().any(|code| text.contains(code))
            }
            status => status < 500,
        };
        if !known {
            let text = format!("{path}: {status} {}", reply.text());
            self.strange.lock().unwrap().push(text);
        }
    }
}

/// Numbers without a pattern, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// One visitor after another, until it is over.
async fn visit(
    clinics: [std::net::SocketAddr; 2],
    number: u64,
    days: &[String],
    until: Instant,
    seen: &Seen,
) {
    let (mut dice, mut guest) = (Dice(number), 0);
    while Instant::now() < until {
        guest += 1;
        let browser = Browser::new(clinics[usize::from(guest % 2 == 0)]);
        let other = browser.at(clinics[usize::from(guest % 2 != 0)]);
        let address = format!("10.{number}.{}.{}", guest / 250, guest % 250 + 1);
        let from = ("x-forwarded-for", address.as_str());
        let get = async |path: &str| {
            let reply = browser.send(Method::GET, path, &[from], None).await;
            seen.look(path, &reply);
            reply
        };
        let day = &days[dice.below(days.len() as u64) as usize];
        get("/api/guest").await;
        get("/").await;
        get(&format!("/expert/e1?service=s60&day={day}")).await;
        get(&format!("/api/experts/e2/slots?service=s30&day={day}")).await;
        get("/api/health").await;
        let (expert, price) = [("e1", 7000), ("e2", 9000)][dice.below(2) as usize];
        let start = format!("{day}T{:02}:00:00Z", 9 + dice.below(8));
        let wish = json!({
            "expert_id": expert, "service_id": "s60", "start": start, "price_cents": price,
            "guest": { "name": "G", "email": "g@example.org" },
        });
        // Twice at once, at both processes: a double click.
        let path = "/api/create-payment-intent";
        let headers = [("idempotency-key", "k"), from];
        let replies = tokio::join!(
            browser.post(path, &headers, &wish),
            other.post(path, &headers, &wish)
        );
        seen.look(path, &replies.0);
        seen.look(path, &replies.1);
        let held = [replies.0, replies.1]
            .into_iter()
            .find(|reply| reply.status == StatusCode::CREATED);
        let Some(held) = held.map(|reply| reply.json()) else {
            continue;
        };
        let reservation = format!("/api/reservations/{}", text(&held, "reservation_id"));
        if dice.below(4) == 0 {
            let given_back = browser
                .send(Method::DELETE, &reservation, &[from], None)
                .await;
            seen.look(&reservation, &given_back);
            continue;
        }
        let pay = format!("/fakepay/{}", text(&held, "payment_id"));
        let paid = browser
            .post(&pay, &[from], &json!({ "outcome": "succeeded" }))
            .await;
        seen.look(&pay, &paid);
        if paid.status == StatusCode::OK {
            seen.paid.lock().unwrap().push((other, reservation));
        }
    }
}

/// Redis falls and comes back, then is slow to the point of silence; Postgres falls and comes back.
async fn trouble(redis: &mut RedisServer, postgres: &mut PostgresServer, step: Duration) {
    tokio::time::sleep(step).await;
    redis.kill();
    tokio::time::sleep(step / 2).await;
    redis.restart();
    tokio::time::sleep(step).await;
    redis.pause();
    tokio::time::sleep(step / 4).await;
    redis.resume();
    tokio::time::sleep(step).await;
    postgres.kill();
    tokio::time::sleep(step / 4).await;
    postgres.restart();
    tokio::time::sleep(step).await;
}

/// The provider's books against ours, in both directions: what must have no row in the end.
const BALANCED: [(&str, &str); 4] = [
    (
        "a booking or a refund, and not both, for all money taken",
        "select 1 from provider_session \
         left join clinic_payment using (payment_id) left join provider_refund r using (payment_id) \
         where state = 'paid' and (booking_id is null) = (r.payment_id is null)",
    ),
    (
        "money for every booking",
        "select 1 from clinic_payment left join provider_session using (payment_id) \
         where booking_id is not null and state is distinct from 'paid'",
    ),
    (
        "no money back that was never taken",
        "select 1 from provider_refund left join provider_session using (payment_id) \
         where state is distinct from 'paid'",
    ),
    (
        "nobody waits to be told of money",
        "select 1 from provider_session where untold is not null",
    ),
];

/// Waits for what comes by itself once all is well again: a lock whose process lost it lasts a minute, a job's lease half
/// of one, and an event that was refused waits up to 80 seconds more.
async fn at_last<T>(what: &str, mut ask: impl AsyncFnMut() -> Result<T, String>) -> T {
    let until = Instant::now() + Duration::from_secs(240);
    loop {
        match ask().await {
            Ok(found) => return found,
            Err(why) => assert!(Instant::now() < until, "{what}: {why}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_of_the_stores_books_twice_loses_a_payment_or_tells_anything_twice() {
    let seconds = std::env::var("CLINIC_LOAD_SECONDS").map_or(9.0, |text| text.parse().unwrap());
    // Both keep what they have acknowledged.
    let durable = ["--appendonly", "yes", "--appendfsync", "always"];
    let (mut redis, mut postgres) = tokio::join!(
        RedisServer::start_with(&durable),
        PostgresServer::start_durable()
    );
    let (store, db) = (redis.tcp_url(), postgres.database().await);
    let options = [
        "--listen",
        "127.0.0.1:0",
        "--trusted-hops",
        "1",
        "--secret",
        "s",
        "--webhook-secret",
        "w",
        "--health-seconds",
        "5",
        "--store",
        &store,
        "--db",
        &db,
    ];
    let clinics = [
        Program::start("clinic", &options),
        Program::start("clinic", &options),
    ];
    let addresses = [clinics[0].address(), clinics[1].address()];
    let seen = Seen::default();
    let days: Vec<String> = {
        // Two weeks from now on, weekends and all: those are refused, which is traffic too.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let today = now.unwrap().as_secs() / 86_400;
        let day =
            |after: u64| tower_keep::core::Timestamp::from_millis((today + after) * 86_400_000);
        (1..=14)
            .map(|after| day(after).to_string()[..10].to_owned())
            .collect()
    };
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    let sixth = Duration::from_secs_f64(seconds / 6.0);
    let visitors =
        join_all((0..VISITORS).map(|number| visit(addresses, number, &days, until, &seen)));
    let memory = || clinics.iter().map(Program::memory).max().unwrap();
    let measured = async {
        let mut samples = vec![memory()];
        for _ in 0..6 {
            tokio::time::sleep(sixth).await;
            samples.push(memory());
        }
        samples
    };
    let troubles = trouble(
        &mut redis,
        &mut postgres,
        Duration::from_secs_f64(seconds / 5.5),
    );
    let ((), (), samples) = tokio::join!(
        async {
            visitors.await;
        },
        troubles,
        measured
    );
    // By half time everything has been used once.
    let (before, after) = (samples[3], memory());
    let strange = seen.strange.lock().unwrap().clone();
    assert!(
        strange.is_empty(),
        "{} of {:?}, such as {}",
        strange.len(),
        seen.answers,
        strange[0]
    );

    // No lost payment: whatever the provider has money for is booked, at once or by a redelivered event.
    let paid = std::mem::take(&mut *seen.paid.lock().unwrap());
    assert!(!paid.is_empty(), "{:?}", seen.answers);
    for (browser, reservation) in &paid {
        at_last(reservation, async || {
            let reply = browser.get(reservation).await;
            let state = reply.status == StatusCode::OK && reply.json()["state"] == "confirmed";
            state.then_some(()).ok_or(reply.text().to_owned())
        })
        .await;
    }
    // Nor is anything lost that nobody was told of: what the provider has taken is booked, or given back.
    let pool = sqlx::PgPool::connect(&db).await.unwrap();
    for (what, sql) in BALANCED {
        at_last(what, async || {
            let wrong = sqlx::query(sql).fetch_all(&pool).await.unwrap().len();
            (wrong == 0).then_some(()).ok_or(format!("{wrong}"))
        })
        .await;
    }
    // No double booking.
    let mut bookings = 0;
    for expert in ["ana", "ben"] {
        // The end of the outages is told by the first answer that is one.
        let mut attempt = 0;
        let login = at_last("a login", async || {
            attempt += 1;
            let browser = Browser::new(addresses[0]);
            let address = format!("10.99.{}.{}", attempt / 250, attempt % 250 + 1);
            let from = [("x-forwarded-for", address.as_str())];
            let credentials =
                json!({ "email": format!("{expert}@clinic.test"), "password": "test" });
            let reply = browser.post("/api/login", &from, &credentials).await;
            let is_in = reply.status == StatusCode::OK;
            is_in.then_some(browser).ok_or(reply.text().to_owned())
        });
        let browser = login.await;
        let calendar = browser.get("/api/appointments").await.json();
        let calendar = calendar["appointments"].as_array().unwrap();
        let mut starts = BTreeSet::new();
        for booking in calendar {
            assert!(starts.insert(text(booking, "start")), "twice: {booking}");
        }
        bookings += calendar.len();
    }
    assert!(bookings >= paid.len(), "{bookings} of {}", paid.len());
    // Every booking was told, and nothing twice.
    at_last("a notice for each booking", async || {
        let rows = sqlx::query("select body from clinic_mail")
            .fetch_all(&pool)
            .await;
        let mut told = BTreeMap::<(String, String), u64>::new();
        for row in rows.unwrap() {
            let mail: Value = serde_json::from_str(&row.get::<String, _>(0)).unwrap();
            *told
                .entry((text(&mail, "type"), text(&mail, "reservation_id")))
                .or_default() += 1;
        }
        assert!(told.values().all(|times| *times == 1), "{told:?}");
        let confirmed = told
            .keys()
            .filter(|(kind, _)| kind == "booking_confirmed")
            .count();
        (confirmed == bookings)
            .then_some(())
            .ok_or(format!("{confirmed} of {bookings}"))
    })
    .await;
    // What went wrong is held against a store for five seconds, however little is asked afterwards.
    for address in addresses {
        at_last("health", async || {
            let health = Browser::new(address).get("/api/health").await;
            let is_healthy = health.json()["status"] == "healthy";
            is_healthy.then_some(()).ok_or(health.text().to_owned())
        })
        .await;
    }
    assert!(
        after < before * 3 / 2 + 20_000,
        "from {before} KiB to {after} KiB"
    );
    let line = format!(
        "{seconds} s: {} bookings, answers {:?}, memory {samples:?} {after} KiB",
        bookings,
        seen.answers.lock().unwrap()
    );
    drop(std::fs::write(
        std::env::temp_dir().join("clinic_load.txt"),
        line,
    ));
}
