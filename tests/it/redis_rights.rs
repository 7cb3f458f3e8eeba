//! What a user of Redis has to be allowed: what the README says, and no more.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tower_keep::backend::redis::RedisStore;
use tower_keep::conformance::{
    cache, counter, idempotency, lock, once, queue, rate_limit, response_cache, session, topic,
};
use tower_keep::core::ManualClock;
use tower_keep::data::cache::{Cache, InvalidateOutcome as Dropped};
use tower_keep::data::lock::Lock;
use tower_keep::data::queue::{Job, Queue};
use tower_keep::data::topic::Topic;
use tower_keep::rate_limit::store::Refunded;
use tower_keep::rate_limit::{Attempt, Partition, Policy, Quota, RateLimiter};
use tower_keep::response_cache::{InvalidateOutcome, ResponseCacheLayer, Target};
use tower_keep::{MINUTE, SECOND};

use crate::support::RedisServer;

/// What is sent beside scripts and what parts send as it is.
const OWN: [&str; 7] = [
    "eval",
    "evalsha",
    "ping",
    "publish",
    "select",
    "subscribe",
    "unsubscribe",
];

/// The README's command that makes the user, word by word.
fn rights() -> Vec<&'static str> {
    let readme = include_str!("../../README.md");
    let (_, from) = readme.split_once("```text\nACL SETUSER").unwrap();
    let (rights, _) = from.split_once("```").unwrap();
    ["ACL", "SETUSER"]
        .into_iter()
        .chain(rights.split_whitespace())
        .collect()
}

struct Server {
    server: RedisServer,
    admin: ::redis::aio::MultiplexedConnection,
}

impl Server {
    /// Starts a server with a user `app` of these rights.
    async fn start(rights: &[&str]) -> Self {
        let server = RedisServer::start().await;
        let admin = server.raw().await;
        let mut own = Self { server, admin };
        let _: String = own.ask(rights).await;
        // As the README says; Redis 7.0 does not know it, and neither logs nor grants it.
        let named = ::redis::cmd("ACL")
            .arg(&["SETUSER", "app", "+client|setinfo"])
            .to_owned();
        let _: Result<String, _> = named.query_async(&mut own.admin).await;
        own
    }

    async fn ask<T: ::redis::FromRedisValue>(&mut self, words: &[&str]) -> T {
        let (first, rest) = words.split_first().unwrap();
        let mut command = ::redis::cmd(first);
        command.arg(rest);
        command.query_async(&mut self.admin).await.unwrap()
    }

    /// Opens a handle of the user, on an empty server.
    async fn store(&mut self, clock: &ManualClock) -> RedisStore {
        let _: String = self.ask(&["FLUSHALL"]).await;
        let builder = RedisStore::builder(&self.url(1)).timeout(10 * SECOND);
        builder.clock(clock.clone()).open().await.unwrap()
    }

    fn url(&self, database: u8) -> String {
        let address = self.server.address();
        format!("redis://app:PASSWORD@{address}/{database}")
    }

    /// Fails if anything was asked that the user may not.
    async fn check_refused_nothing(&mut self, what: &str) {
        let log: Vec<::redis::Value> = self.ask(&["ACL", "LOG"]).await;
        assert!(log.is_empty(), "{what}: {log:?}");
    }
}

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

#[tokio::test]
async fn a_user_with_the_rights_of_the_readme_runs_every_part() {
    let mut server = Server::start(&rights()).await;
    macro_rules! keeps_its_promises {
        ($($part:ident)*) => {$(
            let at = clock();
            let store = server.store(&at).await;
            $part::$part(Arc::new(store), &at).await;
            server.check_refused_nothing(stringify!($part)).await;
        )*};
    }
    keeps_its_promises!(rate_limit session idempotency response_cache cache counter lock once queue topic);
    let store = server.store(&clock()).await;
    let health = tower_keep::backend::health::StoreHealth::probe(&store).await;
    health.unwrap();
    server.check_refused_nothing("health").await;
}

#[tokio::test]
async fn a_user_who_may_not_look_reads_by_scripts_and_no_read_asks_in_vain_first() {
    let mut few = rights();
    few.extend(["-getex"]);
    let mut server = Server::start(&few).await;
    let store = server.store(&clock()).await;
    let key = store.key("session").segment("k").finish();
    for _ in 0..5 {
        let look = store.look("test.look", &key).command(["GETEX", &key]);
        assert!(look.ask().await.unwrap().is_none());
    }
    let stats = store.stats();
    assert_eq!((stats.commands, stats.errors), (1, 0));
    let refused: Vec<::redis::Value> = server.ask(&["ACL", "LOG"]).await;
    assert_eq!(refused.len(), 1, "{refused:?}");
}

#[tokio::test]
async fn no_right_of_the_readme_is_one_too_many() {
    let mut needed: BTreeSet<String> = OWN.map(str::to_owned).into();
    sent(Path::new("src"), &mut needed);
    let named: BTreeSet<String> = rights()
        .iter()
        .filter_map(|word| word.strip_prefix('+'))
        .map(str::to_owned)
        .collect();
    assert_eq!(named, needed);
}

/// Gathers the commands of all scripts under `folder`, and those that are sent as they are.
fn sent(folder: &Path, commands: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sent(&path, commands);
            continue;
        }
        // A script's word that stands there without quotes is chosen of words that others name, too.
        let (before, end) = match path.extension().and_then(|kind| kind.to_str()) {
            Some("lua") => ("call('", '\''),
            Some("rs") => (".command([\"", '"'),
            _ => continue,
        };
        let text = std::fs::read_to_string(&path).unwrap();
        let names = text.split(before).skip(1);
        let names = names.filter_map(|call| call.split(end).next());
        commands.extend(names.map(str::to_lowercase));
    }
}

#[tokio::test]
async fn a_user_of_one_part_alone_needs_the_channels_of_that_part_alone() {
    let mut rights = rights();
    for word in &mut rights {
        *word = match *word {
            "~keep:*" => "~keep:lock:*",
            "&keep:*" => "&keep:lock:*",
            word => word,
        };
    }
    let mut server = Server::start(&rights).await;
    let store = RedisStore::builder(&server.url(0)).timeout(10 * SECOND);
    let payments = Lock::new(store.open().await.unwrap(), "payment");
    let held = payments.try_acquire("k").await.unwrap();
    let waiting = {
        let payments = payments.clone();
        tokio::spawn(async move { payments.acquire("k", 20 * SECOND).await })
    };
    let listened = async |server: &mut Server| {
        let channels: Vec<String> = server.ask(&["PUBSUB", "CHANNELS", "keep:lock:*"]).await;
        channels.len()
    };
    while listened(&mut server).await < 2 && !waiting.is_finished() {
        tokio::task::yield_now().await;
    }
    held.release().await.unwrap();
    let _guard = waiting.await.unwrap().unwrap();
    server.check_refused_nothing("lock").await;
}

/// A server whose user may tell no channel anything. What is done there is told as done: asked again, it might be done twice.
async fn mute() -> Server {
    let mut mute = rights();
    mute.retain(|word| !word.starts_with('&'));
    Server::start(&mute).await
}

#[tokio::test]
async fn jobs_are_taken_in_where_the_user_may_tell_nobody() {
    let mut server = mute().await;
    let store = server.store(&clock()).await;
    // One at once, and many in parts of which the first wakes whoever goes on with them.
    for (name, jobs) in [("one", 1), ("many", 100)] {
        let queue: Queue<u64> = Queue::new(store.clone(), name);
        let jobs_of = (0..jobs).map(|n| Job::to("u1", n));
        let taken = queue.enqueue_many(jobs_of).await.unwrap();
        assert_eq!(taken.len() as u64, jobs);
        assert_eq!(queue.depth().await.unwrap().ready, jobs);
    }
}

#[tokio::test]
async fn a_lock_that_others_wait_for_is_freed_where_the_user_may_tell_nobody() {
    let mut server = mute().await;
    let open = async |url: &str| {
        let builder = RedisStore::builder(url).timeout(10 * SECOND);
        Lock::new(builder.open().await.unwrap(), "payment")
    };
    let payments = open(&server.url(0)).await;
    let held = payments.try_acquire("k").await.unwrap();
    // Somebody who may do anything waits, and the lock knows.
    let others = open(&format!("redis://{}/0", server.server.address())).await;
    let waiting = tokio::spawn(async move { others.acquire("k", MINUTE).await });
    let keys: Vec<String> = server.ask(&["KEYS", "keep:lock:*"]).await;
    while server
        .ask::<Vec<u8>>(&["GETRANGE", &keys[0], "16", "16"])
        .await
        != [1]
    {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    held.release().await.unwrap();
    drop(payments.try_acquire("k").await.unwrap());
}

#[tokio::test]
async fn an_event_is_published_once_where_the_user_may_tell_nobody() {
    let mut server = mute().await;
    let store = server.store(&clock()).await;
    let topic: Topic<u64> = Topic::new(store, "t");
    let first = topic.publish("k", &1).await.unwrap();
    assert_eq!(topic.latest("k").await.unwrap().unwrap().id, first);
}

#[tokio::test]
async fn a_cached_value_is_put_and_dropped_where_the_user_may_tell_nobody() {
    let mut server = mute().await;
    let store = server.store(&clock()).await;
    let cache: Cache<u64, u64> = Cache::new(store, "c", tower_keep::ttl::USER);
    cache.put(&1, 1).await.unwrap();
    assert_eq!(*cache.get(&1).await.unwrap().unwrap(), 1);
    assert_eq!(cache.remove(&1).await, Dropped::Done);
    assert!(cache.get(&1).await.unwrap().is_none());
}

#[tokio::test]
async fn a_limit_is_given_back_and_reset_where_the_user_may_tell_nobody() {
    let mut server = mute().await;
    let store = server.store(&clock()).await;
    let one = Policy::new("p", Quota::new(1, MINUTE), Partition::principal());
    let limiter = RateLimiter::new(store).policy(one);
    let attempt = || Attempt::new().on("p", "u1");
    let grant = limiter.record(attempt()).await.unwrap();
    assert_eq!(limiter.refund(grant).await.unwrap(), Refunded::Applied);
    limiter.record(attempt()).await.unwrap();
    limiter.reset("p", "u1").await.unwrap();
    assert_eq!(limiter.peek("p", "u1").await.unwrap().attempts, 0);
}

#[tokio::test]
async fn an_answer_is_dropped_where_the_user_may_tell_nobody() {
    let mut server = mute().await;
    let store = server.store(&clock()).await;
    let handle = ResponseCacheLayer::new(store).handle();
    let told = handle.invalidate([Target::tag("all")]).await;
    assert_eq!(told, InvalidateOutcome::Done);
}
