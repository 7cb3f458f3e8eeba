//! Two levels: local copies in front of a shared store, and what becomes of them when it is away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::Semaphore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::ManualClock;
use tower_keep::response_cache::{InvalidateOutcome, ResponseCacheLayer, Target};

use super::origin::{App, Origin, clock, full, gated, said, secs, until};
use crate::rate_limit::metered::Metered;
use crate::rate_limit::telemetry::Logged;
use crate::support::RedisServer;
use crate::support::redis::{fresh_prefix, shared};
use crate::support::runtimes::on_a_runtime_that_ends;

const MIB: usize = 1_024 * 1_024;

/// Handles like those of several processes: each with a connection and a count of its own.
struct Fleet {
    url: String,
    prefix: String,
    clock: ManualClock,
}

impl Fleet {
    async fn new() -> Self {
        Self::on(shared().await)
    }

    fn on(server: &RedisServer) -> Self {
        Self {
            url: server.url(),
            prefix: fresh_prefix(),
            clock: clock(),
        }
    }

    async fn store(&self) -> RedisStore {
        let builder = RedisStore::builder(&self.url)
            .prefix(&self.prefix)
            // A look-up waits for a tenth of it, also where ten thousand tasks have one thread.
            .timeout(secs(60));
        let store = builder.clock(self.clock.clone()).open().await.unwrap();
        store.ping().await.unwrap();
        store
    }
}

/// One process: its commands, its cache, and the real time that its copies are believed by.
struct Process {
    store: RedisStore,
    real: ManualClock,
    layer: ResponseCacheLayer,
    app: App,
}

impl Process {
    async fn new(
        fleet: &Fleet,
        origin: &Origin,
        set: impl Fn(ResponseCacheLayer) -> ResponseCacheLayer,
    ) -> Self {
        Self::over(fleet.store().await, origin, set)
    }

    fn over(
        store: RedisStore,
        origin: &Origin,
        set: impl Fn(ResponseCacheLayer) -> ResponseCacheLayer,
    ) -> Self {
        let real = clock();
        let layer = set(ResponseCacheLayer::new(store.clone()).real_clock(64 * MIB, real.clone()));
        let app = App::new(&layer, origin);
        Self {
            store,
            real,
            layer,
            app,
        }
    }

    /// Runs `ask`, and says how many commands it took once all of them are sent.
    async fn commands<T>(&self, ask: impl Future<Output = T>, expected: u64) -> T {
        let before = self.store.commands();
        let answer = ask.await;
        until("all commands are sent", || {
            self.store.commands() - before >= expected
        })
        .await;
        assert_eq!(self.store.commands() - before, expected);
        answer
    }
}

fn counted() -> Origin {
    Origin::of(|_, call| {
        said(
            &[("cache-control", "max-age=60"), ("etag", "\"1\"")],
            format!("run {call}"),
        )
    })
}

#[tokio::test]
async fn an_answer_in_the_language_liked_best_is_found_by_another_process() {
    let fleet = Fleet::new().await;
    let fields = [
        ("cache-control", "max-age=60"),
        ("vary", "accept-language"),
        ("content-language", "de"),
    ];
    let origin = Origin::of(move |_, call| said(&fields, format!("run {call}")));
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    let exact = Process::new(&fleet, &origin, |layer| layer).await;
    one.app
        .get_with("/a", &[("accept-language", "en, de")])
        .await;
    let stored = [
        ("accept-language", "de"),
        ("cache-control", "only-if-cached"),
    ];
    for _ in 0..500 {
        if exact.app.get_with("/a", &stored).await.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let get = async |language: &str| {
        let got = two
            .app
            .get_with("/a", &[("accept-language", language)])
            .await;
        (got.is_hit(), got.body)
    };
    assert_eq!(get("de, fr;q=0.5").await, (true, "run 0".into()));
    // Now there is a copy here, and no lease was left behind.
    assert_eq!(two.commands(get("de"), 0).await, (true, "run 0".into()));
    assert_eq!(two.layer.handle().stats().flights, 0);
    assert_eq!(get("fr").await, (false, "run 1".into()));
}

/// Waits until a shared write that goes on behind the answer has arrived.
async fn stored(process: &Process, origin: &Origin, path: &str) {
    let plain = ResponseCacheLayer::new(process.store.clone()).local_bytes(0);
    let probe = App::new(&plain, origin);
    for _ in 0..500 {
        let got = probe
            .get_with(path, &[("cache-control", "only-if-cached")])
            .await;
        if got.status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{path} was never stored");
}

#[tokio::test]
async fn each_path_takes_its_number_of_commands() {
    let fleet = Fleet::new().await;
    let origin = counted();
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    // The server learns the scripts, and each process the stamps of before its time.
    one.app.get("/warm").await;
    stored(&one, &origin, "/warm").await;
    two.layer.handle().invalidate([Target::tag("warm")]).await;
    one.layer.handle().invalidate([Target::tag("warm")]).await;
    for process in [&one, &two] {
        process.real.advance(secs(1));
        process.app.get("/warm").await;
    }
    one.commands(one.app.get("/a"), 2).await;
    stored(&one, &origin, "/a").await;
    let local = one.commands(one.app.get("/a"), 0).await;
    assert_eq!(
        (local.body.as_str(), local.cache_status()),
        ("run 1", "tower-keep;hit;ttl=60")
    );
    let shared = two.commands(two.app.get("/a"), 1).await;
    assert_eq!(
        (shared.body.as_str(), shared.cache_status()),
        ("run 1", "tower-keep;hit;ttl=60")
    );
    two.commands(two.app.get("/a"), 0).await;
    one.commands(
        one.layer
            .handle()
            .invalidate((0..64).map(|n| Target::tag(n.to_string()))),
        1,
    )
    .await;
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn a_validation_takes_two_commands_and_keeps_the_body() {
    let fleet = Fleet::new().await;
    let origin = Origin::of(|seen, call| {
        let mut response = said(
            &[("cache-control", "max-age=60"), ("etag", "\"1\"")],
            format!("run {call}"),
        );
        if seen.headers().contains_key("if-none-match") {
            *response.status_mut() = http::StatusCode::NOT_MODIFIED;
            *response.body_mut() = String::new();
        }
        response
    });
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    // Once over, so that the server knows all scripts.
    for path in ["/warm", "/a"] {
        one.app.get(path).await;
        stored(&one, &origin, path).await;
    }
    fleet.clock.advance(secs(60));
    one.app.get("/warm").await;
    until("freshened", || origin.calls() == 3).await;
    stored(&one, &origin, "/warm").await;
    let got = one.commands(one.app.get("/a"), 2).await;
    assert_eq!(
        (got.body.as_str(), got.cache_status()),
        ("run 1", "tower-keep;fwd=stale;fwd-status=304;stored;ttl=60")
    );
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    stored(&two, &origin, "/a").await;
    assert_eq!(two.app.get("/a").await.body, "run 1");
}

#[tokio::test]
async fn another_process_obeys_an_invalidation_within_a_second() {
    for target in [Target::tag("t"), Target::url("/a"), Target::everything()] {
        let fleet = Fleet::new().await;
        let origin = counted();
        let one = Process::new(&fleet, &origin, |layer| layer.tag("t")).await;
        let two = Process::new(&fleet, &origin, |layer| layer.tag("t")).await;
        one.app.get("/a").await;
        stored(&one, &origin, "/a").await;
        two.app.get("/a").await;
        assert_eq!(
            two.layer.handle().invalidate([target]).await,
            InvalidateOutcome::Done
        );
        assert_eq!(two.app.get("/a").await.body, "run 1", "here at once");
        stored(&two, &origin, "/a").await;
        one.real.advance(Duration::from_millis(249));
        assert_eq!(
            one.app.get("/a").await.body,
            "run 0",
            "elsewhere a copy is believed for a while"
        );
        one.real.advance(Duration::from_millis(751));
        assert_eq!(
            one.app.get("/a").await.body,
            "run 1",
            "and not a second after the last word: {target:?}"
        );
    }
}

#[tokio::test]
async fn local_hits_ask_for_changes_behind_them() {
    let fleet = Fleet::new().await;
    let origin = counted();
    let one = Process::new(&fleet, &origin, |layer| layer.tag("t")).await;
    one.app.get("/a").await;
    stored(&one, &origin, "/a").await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    two.layer.handle().invalidate([Target::tag("t")]).await;
    one.real.advance(Duration::from_millis(250));
    // One call behind the hit, however many hits there are.
    let before = one.store.commands();
    for _ in 0..10 {
        assert_eq!(one.app.get("/a").now_or_never().unwrap().body, "run 0");
    }
    until("asked", || one.store.commands() > before).await;
    for _ in 0..500 {
        if one.app.get("/a").await.body == "run 1" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("the change was never obeyed");
}

#[tokio::test]
async fn without_local_copies_every_hit_is_exact() {
    let fleet = Fleet::new().await;
    let origin = counted();
    let one = fleet.store().await;
    let layer = ResponseCacheLayer::new(one.clone()).local_bytes(0).tag("t");
    let app = App::new(&layer, &origin);
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    app.get("/a").await;
    stored(&two, &origin, "/a").await;
    let before = one.commands();
    assert_eq!(app.get("/a").await.body, "run 0");
    assert_eq!(one.commands() - before, 1);
    two.layer.handle().invalidate([Target::tag("t")]).await;
    assert_eq!(app.get("/a").await.body, "run 1");
}

#[tokio::test]
async fn two_processes_make_one_run() {
    let fleet = Fleet::new().await;
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    // On a busy machine ten thousand requests outlast two usual leases; then they would go alone, past the gate.
    let one = Process::new(&fleet, &origin, |layer| layer.lease(secs(60))).await;
    let two = Process::new(&fleet, &origin, |layer| layer.lease(secs(60))).await;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..5_000 {
        for app in [&one.app, &two.app] {
            let app = app.clone();
            running.spawn(async move { app.get("/a").await.body });
        }
    }
    until("started", || origin.calls() >= 1).await;
    // The other process has found the lease held by now, or will.
    until("the other one has asked", || {
        two.store.commands() >= 2 && one.store.commands() >= 2
    })
    .await;
    gate.add_permits(1);
    assert!(
        running
            .join_all()
            .await
            .into_iter()
            .all(|body| body == "run 0")
    );
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn variants_are_found_by_another_process() {
    let fleet = Fleet::new().await;
    let origin = Origin::of(|seen, call| {
        let language = seen.headers()["accept-language"]
            .to_str()
            .unwrap()
            .to_owned();
        said(
            &[("cache-control", "max-age=60"), ("vary", "accept-language")],
            format!("{language} {call}"),
        )
    });
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    let get = async |process: &Process, language: &str| {
        process
            .app
            .get_with("/a", &[("accept-language", language)])
            .await
            .body
    };
    assert_eq!(get(&one, "de").await, "de 0");
    assert_eq!(get(&one, "en").await, "en 1");
    for _ in 0..500 {
        let plain = ResponseCacheLayer::new(two.store.clone());
        let probe = App::new(&plain, &origin);
        let got = probe
            .get_with(
                "/a",
                &[
                    ("accept-language", "en"),
                    ("cache-control", "only-if-cached"),
                ],
            )
            .await;
        if got.status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // The stamps once, the names of this URL once; then one command for each.
    two.app
        .get_with(
            "/other",
            &[
                ("accept-language", "en"),
                ("cache-control", "only-if-cached"),
            ],
        )
        .await;
    assert_eq!(two.commands(get(&two, "en"), 2).await, "en 1");
    assert_eq!(two.commands(get(&two, "de"), 1).await, "de 0");
    assert_eq!(two.commands(get(&two, "de"), 0).await, "de 0");
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn a_store_that_is_away_costs_nobody_an_answer() {
    let (metered, logged) = (Metered::start(), Logged::start());
    let errors = |method: &str| {
        metered.counter(&format!(
            "keep_response_cache_store_errors_total{{method={method}}}"
        ))
    };
    let told = || {
        let said = ["the store does not answer", "the store answers again"];
        said.map(|said| logged.lines_with(&["response cache: ", said]))
    };
    let mut server = RedisServer::start().await;
    let fleet = Fleet::on(&server);
    let origin = counted();
    let one = Process::new(&fleet, &origin, |layer| layer.tag("t")).await;
    one.app.get("/a").await;
    stored(&one, &origin, "/a").await;
    server.kill();
    assert_eq!(
        one.app.get("/a").await.body,
        "run 0",
        "a copy is believed for a second"
    );
    one.real.advance(secs(1));
    let passed = one.app.get("/a").await;
    assert_eq!(
        (passed.status, passed.cache_status()),
        (200, "tower-keep;fwd=bypass;detail=store")
    );
    assert_eq!((errors("lookup"), told()), (1, [1, 0]));
    assert_eq!(one.app.get("/a").await.body, "run 2", "nothing is kept");
    assert_eq!((errors("lookup"), errors("invalidate")), (2, 0));
    // What is invalidated meanwhile holds here, and is told before the store is believed again.
    assert_eq!(
        one.layer.handle().invalidate([Target::tag("t")]).await,
        InvalidateOutcome::Queued
    );
    assert_eq!(one.layer.handle().stats().queued_invalidations, 1);
    assert_eq!((errors("invalidate"), told()), (1, [1, 0]));
    server.restart();
    until("believed again", || {
        let got = one.app.get("/a").now_or_never();
        got.is_none() || !one.store.is_open_circuit()
    })
    .await;
    for _ in 0..1_000 {
        if one.app.get("/a").await.cache_status().contains("stored") {
            assert_eq!(one.layer.handle().stats().queued_invalidations, 0);
            assert_eq!(told(), [1, 1]);
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the store was never believed again");
}

#[tokio::test]
async fn while_the_store_is_away_concurrent_requests_share_one_run() {
    let mut server = RedisServer::start().await;
    let fleet = Fleet::on(&server);
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    server.kill();
    // Also with an invalidation that the store could not be told: what starts now starts after it.
    let outcome = one.layer.handle().invalidate([Target::url("/a")]).await;
    assert_eq!(outcome, InvalidateOutcome::Queued);
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let app = one.app.clone();
        running.spawn(async move { app.get("/a").await.body });
    }
    until("started", || origin.calls() == 1).await;
    tokio::task::yield_now().await;
    gate.add_permits(1);
    assert!(
        running
            .join_all()
            .await
            .into_iter()
            .all(|body| body == "run 0")
    );
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn stamps_that_were_lost_make_everything_a_miss() {
    let server = RedisServer::start().await;
    let fleet = Fleet::on(&server);
    let origin = counted();
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    one.app.get("/a").await;
    stored(&one, &origin, "/a").await;
    fleet.clock.advance(secs(1));
    let key = format!("{}:response_cache:{{stamps}}:set", fleet.prefix);
    let removed: u32 = redis::cmd("DEL")
        .arg(&key)
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert_eq!(removed, 1);
    one.real.advance(secs(1));
    let logged = Logged::start();
    assert_eq!(one.app.get("/a").await.body, "run 1");
    assert_eq!(logged.lines("stamps were full or lost"), 1);
}

#[tokio::test]
async fn a_damaged_record_is_a_miss_that_is_written_over() {
    let server = RedisServer::start().await;
    let fleet = Fleet::on(&server);
    let origin = counted();
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    one.app.get("/a").await;
    stored(&one, &origin, "/a").await;
    let mut raw = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut raw)
        .await
        .unwrap();
    let mut damaged = 0;
    for key in keys {
        let has: bool = redis::cmd("HEXISTS")
            .arg(&key)
            .arg("head")
            .query_async(&mut raw)
            .await
            .unwrap_or(false);
        if has {
            let _: u32 = redis::cmd("HSET")
                .arg(&key)
                .arg("head")
                .arg("\x07not a head")
                .query_async(&mut raw)
                .await
                .unwrap();
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
    let metered = Metered::start();
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    assert_eq!(two.app.get("/a").await.body, "run 1");
    let undecodable = metered.counter("keep_response_cache_undecodable_total");
    assert!(undecodable > 0, "{}", metered.scrape());
    stored(&two, &origin, "/a").await;
    let three = Process::new(&fleet, &origin, |layer| layer).await;
    assert_eq!(three.app.get("/a").await.body, "run 1");
}

#[tokio::test]
async fn nothing_personal_is_readable_in_key_names() {
    let server = RedisServer::start().await;
    let fleet = Fleet::on(&server);
    let origin = counted();
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    one.app.get("/secret-path?token=abc").await;
    stored(&one, &origin, "/secret-path?token=abc").await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg("*")
        .query_async(&mut server.raw().await)
        .await
        .unwrap();
    assert_eq!(keys.len(), 4);
    assert!(
        keys.iter()
            .all(|key| !key.contains("secret") && !key.contains("abc")),
        "{keys:?}"
    );
}

#[tokio::test]
async fn an_old_leaders_late_answer_does_not_beat_a_later_one() {
    let fleet = Fleet::new().await;
    let (slow, slow_gate) = gated(|_, _| said(&[("cache-control", "max-age=60")], "old"));
    let (quick, quick_gate) = gated(|_, _| said(&[("cache-control", "max-age=60")], "new"));
    quick_gate.add_permits(1);
    let one = Process::new(&fleet, &slow, |layer| layer).await;
    let two = Process::new(&fleet, &quick, |layer| layer).await;
    let old = tokio::spawn({
        let app = one.app.clone();
        async move { app.get("/a").await.body }
    });
    until("the slow one runs", || slow.calls() == 1).await;
    fleet.clock.advance(secs(5));
    assert_eq!(
        two.app.get("/a").await.body,
        "new",
        "one lease later the next run starts"
    );
    stored(&two, &quick, "/a").await;
    slow_gate.add_permits(1);
    assert_eq!(old.await.unwrap(), "old");
    until("the late write has been refused", || {
        one.store.commands() >= 3
    })
    .await;
    let three = Process::new(&fleet, &Arc::new(quick).as_ref().clone(), |layer| layer).await;
    assert_eq!(three.app.get("/a").await.body, "new");
}

#[tokio::test]
async fn a_fetch_that_began_before_an_invalidation_elsewhere_is_not_joined_a_second_after_it() {
    let fleet = Fleet::new().await;
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let one = Process::new(&fleet, &origin, |layer| layer.lease(secs(60))).await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    let first = tokio::spawn({
        let app = one.app.clone();
        async move { app.get("/a").await.body }
    });
    until("called", || origin.calls() == 1).await;
    two.layer.handle().invalidate([Target::everything()]).await;
    one.real.advance(secs(2));
    let before = one.store.commands();
    // Its lease is held, so it waits for that; but not for what the old run brings.
    let newcomer = tokio::spawn({
        let app = one.app.clone();
        async move { app.get("/a").await.body }
    });
    until("it has asked", || one.store.commands() >= before + 2).await;
    gate.add_permits(2);
    assert_eq!(first.await.unwrap(), "run 0");
    assert_eq!(newcomer.await.unwrap(), "run 1");
}

#[tokio::test]
async fn without_local_copies_a_fetch_is_not_joined_after_an_invalidation_elsewhere() {
    let fleet = Fleet::new().await;
    let (origin, gate) =
        gated(|_, call| said(&[("cache-control", "max-age=60")], format!("run {call}")));
    let one = Process::new(&fleet, &origin, |layer| {
        layer.real_clock(0, clock()).lease(secs(60))
    })
    .await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    let get = || {
        let app = one.app.clone();
        tokio::spawn(async move { app.get("/a").await.body })
    };
    let first = get();
    until("called", || origin.calls() == 1).await;
    let waiters = || one.layer.handle().stats().waiters;
    // What nothing has hit is joined by all, and few ask for them.
    let before = one.store.commands();
    let early: Vec<_> = (0..50).map(|_| get()).collect();
    until("they wait", || waiters() == 50).await;
    let asked = one.store.commands() - before;
    assert!((1..10).contains(&asked), "{asked}");
    two.layer.handle().invalidate([Target::everything()]).await;
    let before = one.store.commands();
    let newcomer = get();
    until("it has asked", || one.store.commands() >= before + 2).await;
    gate.add_permits(2);
    assert_eq!(first.await.unwrap(), "run 0");
    for early in early {
        assert_eq!(early.await.unwrap(), "run 0");
    }
    assert_eq!(newcomer.await.unwrap(), "run 1");
}

#[tokio::test]
async fn an_idle_process_is_told_of_an_invalidation_elsewhere() {
    let fleet = Fleet::new().await;
    let origin = counted();
    let (listening, other) = (fleet.store().await, fleet.store().await);
    let one = App::new(&ResponseCacheLayer::new(listening.clone()), &origin);
    let two = ResponseCacheLayer::new(other);
    one.get("/a").await;
    for _ in 0..1_000 {
        // The subscription is confirmed behind an answer: what is told before is only lost.
        let before = listening.commands();
        two.handle().invalidate([Target::url("/a")]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        if listening.commands() > before {
            assert_eq!(one.get("/a").await.body, "run 1");
            return;
        }
    }
    panic!("nobody was told");
}

#[tokio::test]
async fn who_finds_a_lease_held_is_told_when_it_is_dropped() {
    use tower_keep::response_cache::store::{
        EntryKey, Hash128, Lease, Lookup, ResponseStore, StoreNotice, Ticket, Want,
    };
    let fleet = Fleet::new().await;
    let (one, two) = (fleet.store().await, fleet.store().await);
    let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = Arc::clone(&heard);
    let on = Arc::new(move |notice| note.lock().unwrap().push(notice));
    let _subscription = ResponseStore::subscribe(&two, on).await.unwrap();
    until("it listens", || {
        heard.lock().unwrap().contains(&StoreNotice::Changed)
    })
    .await;
    let lease = async |store: &RedisStore, primary: u8| {
        let lookup = Lookup {
            key: EntryKey {
                primary: Hash128([primary; 16]),
                selector: Hash128::default(),
            },
            names: Default::default(),
            not_before: Default::default(),
            have: None,
            want: Want::EntryOrLease(secs(5)),
        };
        (lookup.key, store.lookup(lookup).await.unwrap().lease)
    };
    let drop_of = async |key: EntryKey, lease: Option<Lease>| {
        let Some(Lease::Granted(ticket)) = lease else {
            panic!("granted");
        };
        assert_ne!(ticket, Ticket::default());
        one.release(key, ticket, None).await.unwrap();
    };
    // Nobody waits for the first; the second is found held, twice.
    let (first, granted) = lease(&one, 1).await;
    drop_of(first, granted).await;
    let (second, granted) = lease(&one, 2).await;
    for _ in 0..2 {
        assert!(matches!(lease(&two, 2).await.1, Some(Lease::Held(_))));
    }
    drop_of(second, granted).await;
    let filled = || {
        let heard = heard.lock().unwrap();
        let filled = heard
            .iter()
            .filter(|notice| **notice != StoreNotice::Changed);
        filled.copied().collect::<Vec<_>>()
    };
    until("it is told", || !filled().is_empty()).await;
    assert_eq!(filled(), [StoreNotice::Filled(second.primary)]);
}

/// Answers POST for GET as well (RFC 9110 §9.3.3); the body says the call.
fn posting() -> Origin {
    Origin::of(|_, call| {
        let fields = [("cache-control", "max-age=60"), ("content-location", "/a")];
        said(&fields, format!("run {call}"))
    })
}

#[tokio::test]
async fn an_answer_to_post_is_kept_under_the_stamp_of_its_own_invalidation() {
    let fleet = Fleet::new().await;
    let origin = posting();
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    one.app.get("/a").await;
    two.app.get("/a").await;
    stored(&one, &origin, "/a").await;
    let before = origin.calls();
    let posted = one.app.method("POST", "/a").await;
    assert!(posted.cache_status().contains("stored"), "{posted:?}");
    let here = one.app.get("/a").await;
    assert_eq!((here.is_hit(), &here.body), (true, &posted.body));
    stored(&one, &origin, "/a").await;
    two.real.advance(secs(1));
    let there = two.app.get("/a").await;
    assert_eq!((there.is_hit(), &there.body), (true, &posted.body));
    assert_eq!(origin.calls(), before + 1);
    // So is the next one, of which the process has heard of no other invalidation than its own.
    let posted = one.app.method("POST", "/a").await;
    assert!(posted.cache_status().contains("stored"), "{posted:?}");
    assert_eq!(one.app.get("/a").await.body, posted.body);
    // It is as easily ended as any other.
    one.layer.handle().invalidate([Target::url("/a")]).await;
    assert!(!one.app.get("/a").await.is_hit());
}

#[tokio::test]
async fn an_answer_to_post_for_what_varies_is_kept_nowhere_and_says_so() {
    let fleet = Fleet::new().await;
    let origin = Origin::of(|seen, call| {
        let varies = [("cache-control", "max-age=60"), ("vary", "accept")];
        let plain = [("cache-control", "max-age=60"), ("content-location", "/a")];
        let is_get = seen.method() == http::Method::GET;
        said(if is_get { &varies } else { &plain }, format!("run {call}"))
    });
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    one.app.get("/a").await;
    stored(&one, &origin, "/a").await;
    // The other process has never heard of these variants.
    let posted = two.app.method("POST", "/a").await;
    assert_eq!(posted.cache_status(), "tower-keep;fwd=method;detail=vary");
    for process in [&one, &two] {
        process.real.advance(secs(1));
        let got = process.app.get("/a").await;
        assert_ne!(got.body, posted.body);
        assert_eq!(got.field("vary"), "accept");
    }
}

#[tokio::test]
async fn an_answer_to_post_whose_variants_came_to_be_known_meanwhile_is_kept_nowhere() {
    let fleet = Fleet::new().await;
    let (gate, begun) = (
        Arc::new(Semaphore::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let (held, told) = (Arc::clone(&gate), Arc::clone(&begun));
    let origin = Origin::new(move |seen, call| {
        let (held, told) = (Arc::clone(&held), Arc::clone(&told));
        Box::pin(async move {
            if seen.method() == http::Method::GET {
                let varies = [("cache-control", "max-age=60"), ("vary", "accept")];
                return Ok(said(&varies, format!("run {call}")).map(|text| full(text.into())));
            }
            let plain = [("cache-control", "max-age=60"), ("content-location", "/a")];
            let body = futures_util::stream::once(async move {
                told.store(true, Ordering::SeqCst);
                held.acquire().await.unwrap().forget();
                Ok(Frame::data(Bytes::from_static(b"posted")))
            });
            Ok(said(&plain, "").map(|_| StreamBody::new(body).boxed_unsync()))
        })
    });
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    let app = two.app.clone();
    let posted = tokio::spawn(async move { app.method("POST", "/a").await });
    until("the body begins", || begun.load(Ordering::SeqCst)).await;
    one.app.get("/a").await;
    stored(&one, &origin, "/a").await;
    gate.add_permits(1);
    assert_eq!(posted.await.unwrap().body, "posted");
    // The copy of its own goes as soon as the store has said no.
    let mut got = two.app.get("/a").await;
    for _ in 0..1_000 {
        if got.body != "posted" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
        got = two.app.get("/a").await;
    }
    assert_ne!(got.body, "posted");
    assert_eq!(got.field("vary"), "accept");
}

#[tokio::test]
async fn an_answer_to_post_that_another_process_has_overtaken_is_not_kept() {
    let fleet = Fleet::new().await;
    let (origin, gate) = gated(|_, call| {
        let fields = [("cache-control", "max-age=60"), ("content-location", "/a")];
        said(&fields, format!("run {call}"))
    });
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    let two = Process::new(&fleet, &origin, |layer| layer).await;
    let mut posted = Box::pin(one.app.method("POST", "/a"));
    assert!((&mut posted).now_or_never().is_none());
    two.layer.handle().invalidate([Target::url("/a")]).await;
    gate.add_permits(2);
    assert_eq!(posted.await.cache_status(), "tower-keep;fwd=method");
    assert_eq!(one.app.get("/a").await.body, "run 1");
}

#[tokio::test]
async fn an_answer_to_post_whose_invalidation_waits_for_the_store_is_not_kept() {
    let mut server = RedisServer::start().await;
    let fleet = Fleet::on(&server);
    let origin = posting();
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    one.app.get("/warm").await;
    server.kill();
    let posted = one.app.method("POST", "/a").await;
    assert_eq!(posted.cache_status(), "tower-keep;fwd=method");
    assert_eq!(one.layer.handle().stats().queued_invalidations, 1);
    assert!(!one.app.get("/a").await.is_hit());
}

/// Asks until what comes is not `body`: what is refused is dropped behind an answer.
async fn until_other_than(body: &str, app: &App, fields: &[(&str, &str)]) {
    for _ in 0..1_000 {
        if app.get_with("/a", fields).await.body != body {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{body} is kept");
}

#[tokio::test]
async fn a_copy_in_a_language_goes_with_the_entry_that_the_store_refused() {
    let fleet = Fleet::new().await;
    let fields = |vary| {
        [
            ("cache-control", "max-age=60"),
            ("vary", vary),
            ("content-language", "de"),
        ]
    };
    let (slow, gate) =
        gated(move |_, call| said(&fields("accept-language"), format!("slow {call}")));
    let quick = Origin::of(move |_, _| said(&fields("accept-language, x-tenant"), "quick"));
    let one = Process::new(&fleet, &slow, |layer| layer).await;
    let two = Process::new(&fleet, &quick, |layer| layer).await;
    let app = one.app.clone();
    let languages = [("accept-language", "en, de")];
    let late = tokio::spawn(async move { app.get_with("/a", &languages).await.body });
    until("the slow one runs", || slow.calls() == 1).await;
    fleet.clock.advance(secs(5));
    let tenant = [("accept-language", "fr"), ("x-tenant", "1")];
    assert_eq!(two.app.get_with("/a", &tenant).await.body, "quick");
    let kept = [tenant[0], tenant[1], ("cache-control", "only-if-cached")];
    let three = Process::new(&fleet, &quick, |layer| layer).await;
    while three.app.get_with("/a", &kept).await.status != 200 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    gate.add_permits(100);
    assert_eq!(late.await.unwrap(), "slow 0");
    // What was refused under the names of old is no good under its language either.
    let other = [("accept-language", "de, fr;q=0.5"), ("x-tenant", "2")];
    until_other_than("slow 0", &one.app, &other).await;
}

#[tokio::test]
async fn a_confirmed_copy_goes_where_the_store_has_learned_of_more_names() {
    let fleet = Fleet::new().await;
    let plain = [("cache-control", "max-age=60"), ("etag", "\"1\"")];
    let gate = Arc::new(Semaphore::new(1));
    let held = Arc::clone(&gate);
    let slow = Origin::new(move |seen, call| {
        let held = Arc::clone(&held);
        Box::pin(async move {
            held.acquire().await.unwrap().forget();
            let mut response = said(&plain, format!("slow {call}"));
            if seen.headers().contains_key("if-none-match") {
                *response.status_mut() = http::StatusCode::NOT_MODIFIED;
                *response.body_mut() = String::new();
            }
            Ok(response.map(|text| full(text.into())))
        })
    });
    let quick = Origin::of(|_, _| {
        let fields = [("cache-control", "max-age=60"), ("vary", "x-tenant")];
        said(&fields, "quick")
    });
    let one = Process::new(&fleet, &slow, |layer| layer).await;
    let two = Process::new(&fleet, &quick, |layer| layer).await;
    assert_eq!(one.app.get("/a").await.body, "slow 0");
    stored(&one, &slow, "/a").await;
    fleet.clock.advance(secs(60));
    let app = one.app.clone();
    let late = tokio::spawn(async move { app.get("/a").await.body });
    until("it is validated", || slow.calls() == 2).await;
    fleet.clock.advance(secs(5));
    assert_eq!(two.app.get("/a").await.body, "quick");
    stored(&two, &quick, "/a").await;
    gate.add_permits(1);
    assert_eq!(late.await.unwrap(), "slow 0");
    gate.add_permits(100);
    until_other_than("slow 0", &one.app, &[]).await;
}

#[tokio::test]
async fn who_asked_for_changes_on_a_runtime_that_ended_is_asked_after() {
    let fleet = Fleet::new().await;
    let origin = counted();
    let one = Process::new(&fleet, &origin, |layer| layer).await;
    one.app.get("/a").await;
    stored(&one, &origin, "/a").await;
    one.real.advance(Duration::from_millis(250));
    let app = one.app.clone();
    on_a_runtime_that_ends(async move { app.get("/a").await });
    // Nobody asked; the next one does, behind its hit.
    let before = one.store.commands();
    assert_eq!(one.app.get("/a").now_or_never().unwrap().body, "run 0");
    until("asked", || one.store.commands() > before).await;
}

#[tokio::test]
async fn who_began_to_listen_on_a_runtime_that_ended_listens_on_the_next() {
    let fleet = Fleet::new().await;
    let origin = counted();
    let (listening, other) = (fleet.store().await, fleet.store().await);
    let one = App::new(&ResponseCacheLayer::new(listening.clone()), &origin);
    let two = ResponseCacheLayer::new(other);
    let app = one.clone();
    on_a_runtime_that_ends(async move { app.get("/a").await });
    one.get("/a").await;
    // Whatever it sends behind its answer is sent.
    let (probe, kept) = (
        App::new(&two, &origin),
        [("cache-control", "only-if-cached")],
    );
    while probe.get_with("/a", &kept).await.status != 200 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    for _ in 0..1_000 {
        let before = listening.commands();
        two.handle().invalidate([Target::url("/a")]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
        if listening.commands() > before {
            return;
        }
    }
    panic!("nobody was told");
}
