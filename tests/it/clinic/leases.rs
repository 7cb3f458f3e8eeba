//! What a process that died had in its hands: nobody else gets it for as long as was said, and not for longer.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgPool};
use tower_keep::core::ManualClock;
use tower_keep::data::queue::Queue;

use super::people::{refused, signed_in, told};
use super::{Guest, advance, hooked, payment_locks, slot, soon, tell, text, wish};
use crate::support::{Browser, PostgresServer, Program, RedisServer, Reply};

/// One clinic on one Redis and one Postgres, whose tables we can keep from it.
struct Scene {
    store: String,
    db: String,
    pool: PgPool,
    _servers: (RedisServer, PostgresServer),
}

impl Scene {
    async fn new() -> Self {
        let (redis, postgres) = tokio::join!(RedisServer::start(), PostgresServer::start());
        let (store, db) = (redis.tcp_url(), postgres.database().await);
        let ours: PgConnectOptions = db.parse().unwrap();
        let ours = ours.application_name("test");
        let pool = PgPoolOptions::new().connect_with(ours).await.unwrap();
        Self {
            store,
            db,
            pool,
            _servers: (redis, postgres),
        }
    }

    /// One more process of the clinic; its clock begins where all of them begin.
    fn process(&self) -> Program {
        let own = ["--secret", "s", "--store", &self.store, "--db", &self.db];
        Program::start("clinic", &hooked(&own))
    }

    /// Kills `clinic` while `order` waits in it for what `keep` keeps from it; says whether that was answered before.
    async fn dies_over(
        &self,
        clinic: Program,
        keep: &'static str,
        order: impl Future<Output = Option<Reply>> + Send + 'static,
    ) -> bool {
        let mut kept = self.pool.begin().await.unwrap();
        sqlx::query(keep).execute(&mut *kept).await.unwrap();
        let order = tokio::spawn(order);
        let waiting = "select count(*) > 0 from pg_locks where not granted";
        soon(async { while !order.is_finished() && !self.answers(waiting).await {} }).await;
        drop(clinic);
        // Whatever the database still does for it ends undone.
        let is_gone = "select count(pg_terminate_backend(pid)) = 0 from pg_stat_activity \
                       where backend_type = 'client backend' and application_name <> 'test'";
        soon(async { while !self.answers(is_gone).await {} }).await;
        kept.rollback().await.unwrap();
        order.await.unwrap().is_some()
    }

    async fn answers(&self, question: &'static str) -> bool {
        let asked = sqlx::query_scalar(AssertSqlSafe(question));
        asked.fetch_one(&self.pool).await.unwrap()
    }
}

/// Lets `browser`'s process work until nothing is due, if it lives that long.
async fn work(browser: Browser) -> Option<Reply> {
    let (path, nothing) = ("/_test/work", Some("null".to_owned()));
    browser.try_send(Method::POST, path, &[], nothing).await
}

#[tokio::test]
async fn a_payment_whose_process_dies_over_an_event_waits_sixty_seconds_for_its_turn() {
    let scene = Scene::new().await;
    let payments = payment_locks(&scene.store).await;
    let mut clinic = scene.process();
    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let payment = text(&held, "payment_id");
    loop {
        // It has its turn, and reads what it is about.
        let browser = guest.browser.at(clinic.address());
        let about = payment.clone();
        let event = async move {
            let event = tokio::spawn(async move {
                // Answered with a panic where the process dies.
                tell(&browser, "evt", "succeeded", &about, 0).await
            });
            event.await.ok()
        };
        let keep = "lock table clinic_payment in access exclusive mode";
        let answered = scene.dies_over(clinic, keep, event).await;
        clinic = scene.process();
        if !answered && payments.inspect(&payment).await.unwrap().is_some() {
            break;
        }
        // No transaction waits for longer than three seconds. Where that was over before the end came: once more.
    }
    let there = guest.browser.at(clinic.address());
    advance(&there, 59).await;
    let early = tell(&there, "evt", "succeeded", &payment, 59).await;
    assert_eq!(
        (told(&early), early.header("retry-after")),
        (refused(503, "STORE_UNAVAILABLE"), "1")
    );
    assert_eq!(slot(&there, "e1", "s60", "10:00").await, "held");
    advance(&there, 1).await;
    let taken = tell(&there, "evt", "succeeded", &payment, 60).await;
    assert_eq!(
        taken.json(),
        json!({ "received": true, "duplicate": false })
    );
    assert_eq!(slot(&there, "e1", "s60", "10:00").await, "booked");
}

#[tokio::test]
async fn an_event_whose_process_dies_over_its_delivery_is_delivered_again_after_thirty_seconds() {
    let scene = Scene::new().await;
    let clinic = scene.process();
    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let failing = json!({ "fail": { "webhook": 1 } });
    guest.browser.post("/_test/fault", &[], &failing).await;
    let paid = guest.settle(&text(&held, "payment_id"), "succeeded").await;
    assert_eq!(paid.json()["webhook_status"], 500, "{:?}", paid.body);
    // It is taken, and its process dies before that is noted.
    let keep = "select 1 from provider_session for update";
    let order = work(guest.browser.clone());
    assert!(!scene.dies_over(clinic, keep, order).await);
    let clinic = scene.process();
    let there = guest.browser.at(clinic.address());
    assert_eq!(slot(&there, "e1", "s60", "10:00").await, "booked");
    let untold = "select untold is not null from provider_session";
    advance(&there, 29).await;
    work(there.clone()).await.unwrap();
    assert!(scene.answers(untold).await, "told again too soon");
    advance(&there, 1).await;
    work(there.clone()).await.unwrap();
    assert!(!scene.answers(untold).await, "never told again");
    // Once is enough: it was known for a repetition.
    let counters = there.get("/_test/counters").await.json();
    assert_eq!(counters["handlers"]["webhook"], 0);
}

#[tokio::test]
async fn a_notice_whose_process_dies_over_its_delivery_is_delivered_after_thirty_seconds() {
    let scene = Scene::new().await;
    let clinic = scene.process();
    let root = signed_in(&clinic, "root").await;
    let pat = signed_in(&clinic, "pat").await;
    let notice = json!({
        "user_id": "pat", "type": "news", "title": "t", "message": "m", "priority": "high",
    });
    let sent = root.post("/api/admin/notifications", &[], &notice).await;
    assert_eq!(sent.status, StatusCode::ACCEPTED);
    let keep = "lock table clinic_mail in exclusive mode";
    assert!(!scene.dies_over(clinic, keep, work(root)).await);
    let clinic = scene.process();
    let pat = pat.at(clinic.address());
    let delivered = async || {
        let done = work(pat.clone()).await.unwrap().json();
        let list = pat.get("/api/notifications").await.json();
        let tries = list["notifications"].as_array().unwrap().iter();
        let tries: Vec<Value> = tries.map(|one| one["attempts"].clone()).collect();
        (done["delivered"].clone(), tries, list["pending"].clone())
    };
    advance(&pat, 29).await;
    assert_eq!(delivered().await, (json!(0), vec![], json!(1)));
    advance(&pat, 1).await;
    assert_eq!(delivered().await, (json!(1), vec![json!(2)], json!(0)));
}

#[tokio::test]
async fn notices_are_leased_five_at_a_time() {
    let scene = Scene::new().await;
    let clinic = scene.process();
    let root = signed_in(&clinic, "root").await;
    let notice = json!({
        "user_id": "pat", "type": "news", "title": "t", "message": "m", "priority": "high",
    });
    for _ in 0..7 {
        let sent = root.post("/api/admin/notifications", &[], &notice).await;
        assert_eq!(sent.status, StatusCode::ACCEPTED);
    }
    // It dies over the first of them, and with it what else it had taken.
    let keep = "lock table clinic_mail in exclusive mode";
    assert!(!scene.dies_over(clinic, keep, work(root)).await);
    let same_time = ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap());
    let line = tower_keep::store::builder(&scene.store).clock(same_time);
    let queue: Queue<Value> = Queue::new(line.open().await.unwrap(), "notifications");
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.leased, depth.ready), (5, 2));
}
