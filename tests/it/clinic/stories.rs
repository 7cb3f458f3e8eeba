//! The twelve stories of the practice, one after the other over HTTP, in three set-ups: memory and SQLite, Redis and
//! Postgres, and two processes on one Redis and one Postgres. Between two stories everything is reset.

mod money;
mod people;
mod troubles;

use http::StatusCode;
use serde_json::{Value, json};

use super::{Guest, Two, alone};
use crate::support::{Browser, PostgresServer, Program, RedisServer, Reply};

/// The processes of one clinic, and what they are on.
pub(super) struct SetUp {
    clinics: Vec<Program>,
    _servers: Option<(RedisServer, PostgresServer)>,
}

impl SetUp {
    fn memory_and_sqlite() -> Self {
        Self {
            clinics: vec![alone()],
            _servers: None,
        }
    }

    async fn redis_and_postgres(processes: usize) -> Self {
        let two = Two::start().await;
        let mut clinics = Vec::from(two.clinics);
        clinics.truncate(processes);
        Self {
            clinics,
            _servers: Some((two.redis, two._postgres)),
        }
    }

    /// The process that this visitor is sent to.
    fn at(&self, visitor: u8) -> &Program {
        &self.clinics[usize::from(visitor) % self.clinics.len()]
    }

    fn hooks(&self) -> impl Iterator<Item = Browser> + '_ {
        self.clinics
            .iter()
            .map(|clinic| Browser::new(clinic.address()))
    }

    async fn order(&self, path: &str, body: &Value) {
        for hook in self.hooks() {
            let done = hook.post(path, &[], body).await;
            assert!(done.status.is_success(), "{path}: {:?}", done.body);
        }
    }

    async fn advance(&self, seconds: u64) {
        let step = json!({ "advance_ms": seconds * 1_000 });
        self.order("/_test/clock", &step).await;
    }

    async fn work(&self) {
        self.order("/_test/work", &json!({})).await;
    }

    /// One counter, summed over all processes.
    async fn counted(&self, kind: &str, name: &str) -> u64 {
        let mut sum = 0;
        for hook in self.hooks() {
            sum += hook.get("/_test/counters").await.json()[kind][name]
                .as_u64()
                .unwrap();
        }
        sum
    }

    async fn guest(&self, number: u8) -> Guest {
        Guest::new(self.at(number), number).await
    }

    async fn tell_all(self) {
        for story in 1..=12_u8 {
            self.order("/_test/reset", &json!({})).await;
            match story {
                1 => money::a_race_for_one_slot(&self).await,
                2 => money::double_click_and_retry(&self).await,
                3 => money::the_hold_runs_out(&self).await,
                4 => money::pay(&self).await,
                5 => money::payment_limits(&self).await,
                6 => people::identity(&self).await,
                7 => people::sessions(&self).await,
                8 => people::admins(&self).await,
                9 => people::dashboard(&self).await,
                10 => troubles::store_outage(&self).await,
                11 => troubles::one_time_data(&self).await,
                _ => troubles::live_and_notices(&self).await,
            }
        }
    }
}

/// A login in a browser of its own, from an address of its own.
async fn login(set: &SetUp, user: &str, number: u8) -> Browser {
    let browser = Browser::new(set.at(number).address());
    let address = format!("198.51.100.{number}");
    let credentials = json!({ "email": format!("{user}@clinic.test"), "password": "test" });
    let from = [("x-forwarded-for", address.as_str())];
    let reply = browser.post("/api/login", &from, &credentials).await;
    assert_eq!(reply.status, StatusCode::OK, "{user}: {:?}", reply.body);
    browser
}

fn told(reply: &Reply) -> (u16, String) {
    super::people::told(reply)
}

fn is(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

fn statuses(replies: &[Reply], status: u16) -> usize {
    let same = replies
        .iter()
        .filter(|reply| reply.status.as_u16() == status);
    same.count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_stories_hold_on_memory_and_sqlite() {
    SetUp::memory_and_sqlite().tell_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_stories_hold_on_redis_and_postgres() {
    SetUp::redis_and_postgres(1).await.tell_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_stories_hold_at_two_processes_on_one_redis_and_one_postgres() {
    SetUp::redis_and_postgres(2).await.tell_all().await;
}
