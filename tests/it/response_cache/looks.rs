//! Shared hits by plain commands: how many each path takes, and that they tell nothing that the script would not.

use redis::aio::MultiplexedConnection;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::ManualClock;
use tower_keep::response_cache::{ResponseCacheLayer, Target};

use super::origin::{App, Origin, clock, gated, said, secs, until};
use crate::support::RedisServer;

const PREFIX: &str = "looks";

/// A server of one's own, and the clock that all processes follow.
struct Shared {
    server: RedisServer,
    raw: MultiplexedConnection,
    clock: ManualClock,
}

/// One process without local copies.
struct Process {
    store: RedisStore,
    layer: ResponseCacheLayer,
    app: App,
}

impl Shared {
    /// A server that knows all scripts, and two processes that know its stamps; nothing else is there.
    async fn new(origin: &Origin) -> (Self, Process, Process) {
        let server = RedisServer::start().await;
        let mut own = Self {
            raw: server.raw().await,
            server,
            clock: clock(),
        };
        let url = own.server.url();
        let (one, two) = (
            own.process(&url, origin).await,
            own.process(&url, origin).await,
        );
        for process in [&one, &two] {
            process.invalidate(Target::tag("warm")).await;
        }
        one.app.get("/warm").await;
        until_stored(&mut own).await;
        two.app.get("/warm").await;
        own.evict().await;
        (own, one, two)
    }

    async fn process(&self, url: &str, origin: &Origin) -> Process {
        let builder = RedisStore::builder(url).prefix(PREFIX).timeout(secs(10));
        let store = builder.clock(self.clock.clone()).open().await.unwrap();
        store.ping().await.unwrap();
        // Notices would make it ask at any time.
        let layer = ResponseCacheLayer::new(store.clone()).real_clock(0, clock());
        let app = App::new(&layer, origin);
        Process { store, layer, app }
    }

    async fn order(&mut self, words: &[&str]) {
        let order = redis::cmd(words[0]).arg(&words[1..]).to_owned();
        order.query_async::<()>(&mut self.raw).await.unwrap();
    }

    /// The keys of responses: those of entries alone, or all.
    async fn keys(&mut self, entries: bool) -> Vec<String> {
        let keys = redis::cmd("KEYS").arg("*").to_owned();
        let mut keys: Vec<String> = keys.query_async(&mut self.raw).await.unwrap();
        keys.retain(|key| !key.contains("{stamps}") && (!entries || !key.ends_with('}')));
        keys
    }

    /// Drops all that is kept of responses, as a full server may.
    async fn evict(&mut self) {
        for key in self.keys(false).await {
            self.order(&["DEL", &key]).await;
        }
    }
}

async fn until_stored(shared: &mut Shared) {
    for _ in 0..5_000 {
        if !shared.keys(true).await.is_empty() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("nothing was ever stored");
}

impl Process {
    /// Gets `/a`, which takes so many commands: what came, and how many of them were scripts.
    async fn get(&self, shared: &mut Shared, commands: u64) -> (String, u64) {
        self.get_with(shared, &[], commands).await
    }

    async fn get_with(
        &self,
        shared: &mut Shared,
        fields: &[(&str, &str)],
        commands: u64,
    ) -> (String, u64) {
        let (sent, scripts) = (self.store.commands(), shared.server.scripts().await);
        let got = self.app.get_with("/a", fields).await;
        until("all are sent", || self.store.commands() - sent >= commands).await;
        assert_eq!(self.store.commands() - sent, commands, "{}", got.body);
        // Behind all of them, on the same connection.
        self.store.ping().await.unwrap();
        (got.body, shared.server.scripts().await - scripts)
    }

    async fn invalidate(&self, target: Target) {
        self.layer.handle().invalidate([target]).await;
    }
}

/// Says at each call which one it is.
fn counted(fields: &'static [(&'static str, &'static str)]) -> Origin {
    Origin::of(move |_, call| said(fields, format!("run {call}")))
}

const MINUTE: &[(&str, &str)] = &[("cache-control", "max-age=60"), ("cache-tag", "t")];

fn expect(run: usize, scripts: u64) -> (String, u64) {
    (format!("run {run}"), scripts)
}

#[tokio::test]
async fn a_process_asks_a_script_once_and_looks_from_then_on() {
    let origin = counted(MINUTE);
    let (mut shared, one, two) = Shared::new(&origin).await;
    let run = origin.calls();
    assert_eq!(one.get(&mut shared, 2).await, expect(run, 2), "a miss");
    for _ in 0..3 {
        assert_eq!(
            one.get(&mut shared, 1).await,
            expect(run, 0),
            "it has stored it"
        );
    }
    assert_eq!(two.get(&mut shared, 1).await, expect(run, 1), "new here");
    for _ in 0..3 {
        assert_eq!(two.get(&mut shared, 1).await, expect(run, 0));
    }
}

#[tokio::test]
async fn what_was_evicted_costs_one_command_more_once() {
    let origin = counted(MINUTE);
    for whole in [true, false] {
        let (mut shared, one, two) = Shared::new(&origin).await;
        one.get(&mut shared, 2).await;
        two.get(&mut shared, 1).await;
        for key in shared.keys(!whole).await {
            shared.order(&["DEL", &key]).await;
        }
        let run = origin.calls();
        assert_eq!(
            one.get(&mut shared, 3).await,
            expect(run, 2),
            "looked, asked, stored"
        );
        assert_eq!(one.get(&mut shared, 1).await, expect(run, 0));
        assert_eq!(two.get(&mut shared, 1).await, expect(run, 0), "there again");
    }
}

#[tokio::test]
async fn what_is_due_is_asked_for_by_the_script_at_once() {
    let origin = counted(MINUTE);
    let (mut shared, one, two) = Shared::new(&origin).await;
    let run = origin.calls();
    one.get(&mut shared, 2).await;
    shared.clock.advance(secs(59));
    assert_eq!(two.get(&mut shared, 1).await, expect(run, 1));
    shared
        .clock
        .advance(std::time::Duration::from_micros(999_999));
    assert_eq!(
        two.get(&mut shared, 1).await,
        expect(run, 0),
        "its last millisecond"
    );
    shared.clock.advance(std::time::Duration::from_micros(1));
    for process in [&one, &two] {
        let run = origin.calls();
        assert_eq!(process.get(&mut shared, 2).await, expect(run, 2));
        shared.evict().await;
        shared.clock.advance(secs(60));
    }
}

#[tokio::test]
async fn an_invalidation_told_elsewhere_is_obeyed_by_the_next_look() {
    let origin = counted(MINUTE);
    for target in ["tag", "url", "everything"] {
        let (mut shared, one, two) = Shared::new(&origin).await;
        one.get(&mut shared, 2).await;
        two.get(&mut shared, 1).await;
        let run = origin.calls();
        let target = match target {
            "tag" => Target::tag("t"),
            "url" => Target::url("/a"),
            _ => Target::everything(),
        };
        one.invalidate(target).await;
        // Looked, asked what has changed, took the lease, stored.
        assert_eq!(two.get(&mut shared, 4).await, expect(run, 3));
        assert_eq!(two.get(&mut shared, 1).await, expect(run, 0));
        assert_eq!(one.app.get("/a").await.body, format!("run {run}"));
        assert_eq!(origin.calls(), run + 1);
    }
}

#[tokio::test]
async fn what_this_process_invalidated_is_not_looked_for() {
    let origin = counted(MINUTE);
    let (mut shared, one, _) = Shared::new(&origin).await;
    one.get(&mut shared, 2).await;
    one.invalidate(Target::url("/a")).await;
    let run = origin.calls();
    // Asked, learned what was changed until then, stored.
    assert_eq!(one.get(&mut shared, 3).await, expect(run, 3));
    assert_eq!(one.get(&mut shared, 1).await, expect(run, 0));
}

#[tokio::test]
async fn lost_stamps_make_a_miss_of_what_was_likely() {
    let origin = counted(MINUTE);
    for lost in [&["set"][..], &["set", "head"]] {
        let (mut shared, one, two) = Shared::new(&origin).await;
        one.get(&mut shared, 2).await;
        two.get(&mut shared, 1).await;
        shared.clock.advance(secs(1));
        for kind in lost {
            let key = format!("{PREFIX}:response_cache:{{stamps}}:{kind}");
            shared.order(&["DEL", &key]).await;
        }
        let run = origin.calls();
        // Looked, asked, learned of the new stamps, stored.
        assert_eq!(two.get(&mut shared, 4).await, expect(run, 3));
        assert_eq!(two.get(&mut shared, 1).await, expect(run, 0));
    }
}

#[tokio::test]
async fn a_head_of_the_stamps_that_was_lost_or_damaged_is_made_anew() {
    let origin = counted(MINUTE);
    let (mut shared, one, _) = Shared::new(&origin).await;
    let run = origin.calls();
    one.get(&mut shared, 2).await;
    let key = format!("{PREFIX}:response_cache:{{stamps}}:head");
    for damage in [&["DEL", &key][..], &["SET", &key, "x"], &["SET", &key, "1"]] {
        shared.order(damage).await;
        assert_eq!(one.get(&mut shared, 2).await, expect(run, 1), "{damage:?}");
        assert_eq!(one.get(&mut shared, 1).await, expect(run, 0), "{damage:?}");
    }
}

#[tokio::test]
async fn damage_is_no_answer_and_written_over() {
    let origin = counted(MINUTE);
    let damages: [&[&str]; 3] = [
        &["HSET", "head", "\x07not a head"],
        &["HDEL", "body"],
        &["HDEL", "head"],
    ];
    for damage in damages {
        let (mut shared, one, _) = Shared::new(&origin).await;
        one.get(&mut shared, 2).await;
        let entries = shared.keys(true).await;
        let mut words = vec![damage[0], &entries[0]];
        words.extend(&damage[1..]);
        shared.order(&words).await;
        let run = origin.calls();
        let (sent, got) = (one.store.commands(), one.app.get("/a").await);
        assert_eq!(got.body, format!("run {run}"), "{damage:?}");
        // Looked, asked; by the script a head that is none is there, and the lease has to be asked for.
        let commands = if damage[0] == "HSET" { 4 } else { 3 };
        until("stored", || one.store.commands() - sent >= commands).await;
        one.store.ping().await.unwrap();
        assert_eq!(one.get(&mut shared, 1).await, expect(run, 0), "{damage:?}");
    }
}

#[tokio::test]
async fn names_that_another_process_learned_count_here() {
    let origin = Origin::of(|seen, call| {
        let vary = if seen.headers().contains_key("x-more") {
            "accept, x-more"
        } else {
            "accept"
        };
        said(
            &[("cache-control", "max-age=60"), ("vary", vary)],
            format!("run {call}"),
        )
    });
    let (mut shared, one, two) = Shared::new(&origin).await;
    let run = origin.calls();
    for _ in 0..3 {
        one.app.get("/a").await;
        one.store.ping().await.unwrap();
    }
    assert_eq!(one.get(&mut shared, 1).await, expect(run, 0));
    two.app
        .get_with("/a", &[("x-more", "1"), ("accept", "b")])
        .await;
    two.store.ping().await.unwrap();
    // What lies under fewer names is no more: looked, asked, asked under all names, stored.
    assert_eq!(one.get(&mut shared, 4).await.0, format!("run {}", run + 2));
}

#[tokio::test]
async fn an_answer_that_does_not_vary_is_no_more_once_another_process_learned_that_it_does() {
    let fields = [("cache-control", "max-age=60"), ("vary", "x-more")];
    let (slow, gate) = gated(move |_, _| said(&fields, "varies"));
    let origin = counted(MINUTE);
    let (mut shared, one, _) = Shared::new(&origin).await;
    let late = shared.process(&shared.server.url(), &slow).await;
    let app = late.app.clone();
    let waiting = tokio::spawn(async move { app.get("/a").await.body });
    until("it fetches", || slow.calls() == 1).await;
    // Its lease has ended.
    shared.clock.advance(secs(5));
    let run = origin.calls();
    assert_eq!(one.get(&mut shared, 2).await, expect(run, 2));
    assert_eq!(one.get(&mut shared, 1).await, expect(run, 0));
    gate.add_permits(1);
    assert_eq!(waiting.await.unwrap(), "varies");
    late.store.ping().await.unwrap();
    // Looked, asked, asked under the name that is known now.
    assert_eq!(one.get(&mut shared, 3).await, ("varies".to_owned(), 2));
    assert_eq!(one.get(&mut shared, 1).await, ("varies".to_owned(), 0));
}

#[tokio::test]
async fn what_is_validated_before_each_use_is_never_likely() {
    let fields = [("cache-control", "no-cache"), ("etag", "\"1\"")];
    let origin = Origin::of(move |_, call| said(&fields, format!("run {call}")));
    let (mut shared, one, _) = Shared::new(&origin).await;
    for _ in 0..3 {
        let run = origin.calls();
        assert_eq!(one.get(&mut shared, 2).await, expect(run, 2));
    }
}

#[tokio::test]
async fn a_server_that_was_demoted_is_not_believed_and_one_that_takes_no_writes_is_asked_by_scripts()
 {
    let origin = counted(MINUTE);
    let (mut shared, one, _) = Shared::new(&origin).await;
    let run = origin.calls();
    one.get(&mut shared, 2).await;
    shared
        .order(&["CONFIG", "SET", "min-replicas-to-write", "1"])
        .await;
    // The script reads on; it would only fail where it has to write.
    assert_eq!(one.get(&mut shared, 2).await, expect(run, 1));
    shared
        .order(&["CONFIG", "SET", "min-replicas-to-write", "0"])
        .await;
    one.get(&mut shared, 1).await;
    assert_eq!(one.get(&mut shared, 1).await, expect(run, 0));
    shared.order(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let got = one.app.get("/a").await;
    assert_eq!(got.cache_status(), "tower-keep;fwd=bypass;detail=store");
    assert_eq!(got.body, format!("run {}", run + 1));
}

#[tokio::test]
async fn a_user_who_may_not_look_has_hits_by_the_script() {
    let origin = counted(MINUTE);
    let (mut shared, _, _) = Shared::new(&origin).await;
    let rights = "ACL SETUSER app on >PASSWORD ~* &* +@all -getex";
    shared.order(&rights.split(' ').collect::<Vec<_>>()).await;
    let url = format!("redis://app:PASSWORD@{}/", shared.server.address());
    let one = shared.process(&url, &origin).await;
    one.app.get("/warm").await;
    one.store.ping().await.unwrap();
    shared.evict().await;
    let run = origin.calls();
    assert_eq!(one.get(&mut shared, 2).await, expect(run, 2));
    assert_eq!(
        one.get(&mut shared, 2).await,
        expect(run, 1),
        "asked in vain first"
    );
    for _ in 0..3 {
        assert_eq!(one.get(&mut shared, 1).await, expect(run, 1));
    }
}
