//! What a user of Redis has to be allowed: what the README says, and no more.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use tower_keep::SECOND;
use tower_keep::backend::redis::RedisStore;
use tower_keep::conformance::{
    cache, counter, idempotency, lock, once, queue, rate_limit, response_cache, session, topic,
};
use tower_keep::core::ManualClock;
use tower_keep::data::lock::Lock;
use tower_keep::data::queue::{Job, Queue};

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

#[tokio::test]
async fn what_is_done_is_no_error_where_the_user_may_tell_nobody() {
    let mut mute = rights();
    mute.retain(|word| !word.starts_with('&'));
    mute.push("resetchannels");
    let mut server = Server::start(&mute).await;
    let store = server.store(&clock()).await;
    let queue: Queue<u64> = Queue::new(store.clone(), "q");
    // An error here would be asked again, and the jobs be there twice.
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    let many = (0..100).map(|n| Job::to("u2", n));
    assert_eq!(queue.enqueue_many(many).await.unwrap().len(), 100);
    let counted = queue.depth().await.unwrap();
    assert_eq!(counted.ready, 101);
    let payments = Lock::new(store, "payment");
    let held = payments.try_acquire("k").await.unwrap();
    held.release().await.unwrap();
    drop(payments.try_acquire("k").await.unwrap());
}
