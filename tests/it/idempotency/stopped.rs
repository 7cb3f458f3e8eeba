//! A process that dies, or stands still past its lease, at each await of a request in turn.
//!
//! Here a process is a runtime of its own with its own connections: dropped, nothing of it goes on.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::Poll;
use std::time::{Duration, Instant};

use http::Response;
use http_body_util::Full;
use parking_lot::Mutex;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::ManualClock;
use tower_keep::idempotency::{IdempotencyLayer, IdempotentRun, LeaseEnd, Scope};
use tower_keep::{MINUTE, SECOND};

use super::transactional::run;
use super::{Answer, App, Sent, clock, layer, post};
use crate::support::Wayward;
use crate::support::sql::{execute, number};

/// What processes meet in.
#[derive(Clone, Debug)]
enum Engine {
    /// Dies with its process: it is only ever shared within one.
    Memory(MemoryStore),
    Redis(String, String),
    Sql(String),
}

impl Engine {
    async fn redis() -> Self {
        let url = crate::support::redis::shared().await.url();
        Self::Redis(url, crate::support::redis::fresh_prefix())
    }

    fn sqlite(folder: &tempfile::TempDir) -> Self {
        Self::Sql(format!("sqlite:{}", folder.path().join("s.db").display()))
    }

    async fn postgres() -> Self {
        Self::Sql(crate::support::postgres::shared().await.database().await)
    }

    /// The layer of one process.
    async fn leased(&self, clock: &ManualClock) -> IdempotencyLayer {
        self.patient(20 * SECOND, clock).await
    }

    /// The same, where this is how long it waits for its turn to write.
    async fn patient(&self, patience: Duration, clock: &ManualClock) -> IdempotencyLayer {
        match self {
            Self::Memory(store) => layer(Wayward::yielding(store.clone())),
            Self::Redis(url, prefix) => {
                let store = RedisStore::builder(url).prefix(prefix).clock(clock.clone());
                layer(store.timeout(20 * SECOND).open().await.unwrap())
            }
            Self::Sql(url) => layer(connect(url, patience, clock).await),
        }
    }

    /// One lock for all who write: who stands still while holding it stands in everybody's way.
    fn has_one_writer(&self) -> bool {
        matches!(self, Self::Sql(url) if url.starts_with("sqlite:"))
    }
}

async fn connect(url: &str, patience: Duration, clock: &ManualClock) -> SqlStore {
    let db = SqlStore::builder(url).clock(clock.clone());
    let db = db.acquire_timeout(20 * SECOND).lock_timeout(patience);
    db.open().await.unwrap()
}

/// A request that is on its way.
struct Begun(Sent);

/// Polls until the request was woken `polls` times since `counts` is so; returns its answer if that came before.
async fn stop_after(
    sent: &mut Sent,
    mut polls: usize,
    counts: impl Fn() -> bool,
) -> Option<Answer> {
    loop {
        if counts() {
            if polls == 0 {
                return None;
            }
            polls -= 1;
        }
        let mut polled = false;
        let over = poll_fn(|cx| {
            // The first poll of a turn may wait; the second tells that it was woken.
            if std::mem::replace(&mut polled, true) {
                return Poll::Ready(None);
            }
            sent.as_mut().poll(cx).map(Some)
        });
        if let Some(answer) = over.await {
            return Some(answer);
        }
    }
}

/// Begins a request in a process that dies after `polls` wakes; returns the answer that it still gave.
fn killed_after<F>(
    polls: usize,
    counts: impl Fn() -> bool + Send + 'static,
    begin: impl FnOnce() -> F + Send + 'static,
) -> Option<Answer>
where
    F: Future<Output = Begun> + Send,
{
    let process = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        let answer = runtime.block_on(async {
            let Begun(mut sent) = begin().await;
            stop_after(&mut sent, polls, counts).await
        });
        runtime.shutdown_background();
        answer
    });
    process.join().unwrap()
}

/// Asks until it is told more than that somebody has the key, or the lock, just now.
async fn settled(app: &App, key: &str) -> Answer {
    let started = Instant::now();
    loop {
        let answer = app.post(key, "{}").await;
        let passing = match answer.status.as_u16() {
            503 => true,
            409 => answer.problem()["code"] == "IDEMPOTENCY_IN_PROGRESS",
            _ => false,
        };
        if !passing {
            return answer;
        }
        assert!(started.elapsed() < MINUTE, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Effects in the world: who has a lower fence than the last comes too late.
#[derive(Clone, Debug, Default)]
struct World(Arc<Mutex<(u64, usize)>>);

impl World {
    fn effects(&self) -> usize {
        self.0.lock().1
    }

    /// Counts from the beginning, or from the effect on: then the first stop is right behind it.
    fn counts(&self, from_the_effect: bool) -> impl Fn() -> bool + Send + use<> {
        let own = self.clone();
        move || !from_the_effect || own.effects() > 0
    }

    /// A handler with an await before and after its effect.
    fn app(&self, layer: IdempotencyLayer) -> App {
        let own = self.clone();
        App::with(layer, move |request, _| {
            let own = own.clone();
            async move {
                let fence = request.extensions().get::<IdempotentRun>().unwrap().fence();
                tokio::task::yield_now().await;
                let done = {
                    let mut world = own.0.lock();
                    let is_next = fence > world.0;
                    if is_next {
                        *world = (fence, world.1 + 1);
                    }
                    is_next
                };
                tokio::task::yield_now().await;
                let answer = Response::builder().status(if done { 201 } else { 410 });
                answer.body(Full::from(format!("fence {fence}"))).unwrap()
            }
        })
    }
}

#[tokio::test]
async fn a_process_that_dies_at_any_await_leaves_one_effect_at_most_and_no_false_answer() {
    let folder = tempfile::tempdir().unwrap();
    for engine in [
        Engine::redis().await,
        Engine::sqlite(&folder),
        Engine::postgres().await,
    ] {
        let clock = clock();
        let undecided = engine
            .leased(&clock)
            .await
            .at_lease_end(LeaseEnd::Indeterminate);
        let mut unknown = 0;
        for from_the_effect in [false, true] {
            for polls in 0.. {
                let world = World::default();
                let key = format!("{from_the_effect}-{polls}");
                let (engine_, clock_, world_, key_) =
                    (engine.clone(), clock.clone(), world.clone(), key.clone());
                let first = killed_after(polls, world.counts(from_the_effect), async move || {
                    let layer = engine_.leased(&clock_).await;
                    let layer = layer.at_lease_end(LeaseEnd::Indeterminate);
                    Begun(world_.app(layer).future(post("/pay", &key_, "{}")))
                });
                clock.advance(MINUTE);
                let before = world.effects();
                let retry = settled(&world.app(undecided.clone()), &key).await;
                let at = format!("{engine:?}, died after {polls}");
                match (retry.status.as_u16(), retry.is_replay()) {
                    (201, false) => assert_eq!((before, world.effects()), (0, 1), "{at}"),
                    (201, true) => assert_eq!((before, world.effects()), (1, 1), "{at}"),
                    (409, _) => {
                        retry.check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
                        assert_eq!(before, world.effects(), "{at}");
                        unknown += 1;
                    }
                    other => panic!("{at}: {other:?}"),
                }
                if let Some(first) = first {
                    assert_eq!(
                        (retry.is_replay(), &retry.body),
                        (true, &first.body),
                        "{at}"
                    );
                    break;
                }
            }
        }
        assert!(unknown > 0, "{engine:?}");
    }
}

#[tokio::test]
async fn a_process_that_dies_at_any_await_of_a_transaction_leaves_all_of_it_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for engine in [Engine::sqlite(&folder), Engine::postgres().await] {
        let Engine::Sql(url) = &engine else {
            unreachable!("it is SQL");
        };
        let clock = clock();
        let near = connect(url, 20 * SECOND, &clock).await;
        execute(&near, "create table effects (n text)").await;
        let (mut undone, mut kept) = (0, 0);
        for from_the_effect in [false, true] {
            for polls in 0.. {
                execute(&near, "delete from effects").await;
                let key = format!("{from_the_effect}-{polls}");
                let reached = Arc::new(AtomicBool::new(!from_the_effect));
                let (counting, reaching) = (Arc::clone(&reached), Arc::clone(&reached));
                let (url, clock_, key_) = (url.clone(), clock.clone(), key.clone());
                let first = killed_after(
                    polls,
                    move || counting.load(SeqCst),
                    async move || {
                        let far = connect(&url, 20 * SECOND, &clock_).await;
                        Begun(transactional(&far, &reaching).future(post("/pay", &key_, "{}")))
                    },
                );
                let retry = settled(&transactional(&near, &reached), &key).await;
                let at = format!("{engine:?}, died after {polls}: {retry:?}");
                assert_eq!(retry.status, 201, "{at}");
                let effects = number(&near, "select count(*) from effects").await;
                assert_eq!(effects, 1, "{at}");
                if let Some(first) = first {
                    assert_eq!(
                        (retry.is_replay(), &retry.body),
                        (true, &first.body),
                        "{at}"
                    );
                    break;
                }
                undone += usize::from(!retry.is_replay());
                kept += usize::from(retry.is_replay());
            }
        }
        assert!(undone > 0, "{engine:?}: {undone} undone, {kept} kept");
    }
}

/// Says when its effect is written.
fn transactional(db: &SqlStore, reached: &Arc<AtomicBool>) -> App {
    let layer = IdempotencyLayer::transactional(db.clone(), Scope::global());
    let (db, reached) = (db.clone(), Arc::clone(reached));
    App::with(layer, move |request, n| {
        let (db, reached) = (db.clone(), Arc::clone(&reached));
        async move {
            tokio::task::yield_now().await;
            let done = run(&request, &db, "insert into effects values ('x')").await;
            reached.store(true, SeqCst);
            tokio::task::yield_now().await;
            let answer = Response::builder().status(if done { 201 } else { 500 });
            answer.body(Full::from(format!("run {n}"))).unwrap()
        }
    })
}

#[tokio::test]
async fn a_process_that_stands_still_past_its_lease_at_any_await_changes_nothing_of_its_heirs() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    for engine in [
        Engine::Memory(super::memory(&clock)),
        Engine::redis().await,
        Engine::sqlite(&folder),
        Engine::postgres().await,
    ] {
        for end in [LeaseEnd::Reexecute, LeaseEnd::Indeterminate] {
            let first = engine.leased(&clock).await.at_lease_end(end);
            let second = engine.patient(Duration::from_millis(100), &clock).await;
            let second = second.at_lease_end(end);
            for from_the_effect in [false, true] {
                for polls in 0.. {
                    let world = World::default();
                    let key = format!("{end:?}-{from_the_effect}-{polls}");
                    let at = format!("{engine:?} {end:?}, stood still after {polls}");
                    let mut sent = world.app(first.clone()).future(post("/pay", &key, "{}"));
                    let counts = world.counts(from_the_effect);
                    if stop_after(&mut sent, polls, counts).await.is_some() {
                        break;
                    }
                    let before = world.effects();
                    clock.advance(MINUTE);
                    let heirs = world.app(second.clone());
                    let mut heir = heirs.post(&key, "{}").await;
                    if engine.has_one_writer() && heir.status == 503 {
                        // Nobody can write before it goes on: nothing is done, and then it has all been done once.
                        heir.check_refused(503, "CONTENTION");
                        assert_eq!(heir.problem()["retryable"], true, "{at}");
                        assert_eq!((world.effects(), heirs.runs()), (before, 0), "{at}");
                        let zombie = sent.await;
                        let last = settled(&heirs, &key).await;
                        assert_eq!((last.is_replay(), &last.body), (true, &zombie.body), "{at}");
                        assert_eq!((zombie.status.as_u16(), world.effects()), (201, 1), "{at}");
                        continue;
                    }
                    if heir.status == 503 {
                        heir = settled(&heirs, &key).await;
                    }
                    let zombie = sent.await;
                    let last = settled(&heirs, &key).await;
                    assert!(last.is_replay(), "{at}: {last:?}");
                    if heir.status == 201 {
                        // An effect that nobody could tell of is done again only where that was chosen.
                        let again = if heir.is_replay() { 0 } else { before };
                        assert_eq!(world.effects(), 1 + again, "{at}");
                        assert!(
                            before == 0 || heir.is_replay() || end == LeaseEnd::Reexecute,
                            "{at}"
                        );
                        assert_eq!(last.body, heir.body, "{at}");
                    } else {
                        assert_eq!(end, LeaseEnd::Indeterminate, "{at}");
                        heir.check_refused(409, "IDEMPOTENCY_OUTCOME_UNKNOWN");
                        assert_eq!((world.effects(), &last.body), (1, &zombie.body), "{at}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn while_somebody_stands_still_with_the_only_turn_to_write_nothing_is_done_and_then_all_of_it_once()
 {
    let folder = tempfile::tempdir().unwrap();
    let engine = Engine::sqlite(&folder);
    let Engine::Sql(url) = &engine else {
        unreachable!("it is SQL");
    };
    let (clock, patience) = (clock(), Duration::from_millis(100));
    let still = connect(url, 20 * SECOND, &clock).await;
    execute(&still, "create table effects (n text)").await;
    let near = connect(url, patience, &clock).await;
    let world = World::default();
    let leased = world.app(engine.patient(patience, &clock).await);
    for (app, key) in [
        (leased, "leased"),
        (transactional(&near, &Arc::default()), "transactional"),
    ] {
        let pool = still.pool::<tower_keep::backend::sql::Sqlite>().unwrap();
        let turn = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
        for _ in 0..2 {
            let refused = app.post(key, "{}").await;
            refused.check_refused(503, "CONTENTION");
            assert_eq!(refused.problem()["retryable"], true, "{key}");
            assert_eq!(refused.headers["retry-after"], "1", "{key}");
        }
        assert_eq!(app.runs(), 0, "{key}");
        turn.rollback().await.unwrap();
        let (first, again) = (settled(&app, key).await, settled(&app, key).await);
        assert_eq!((first.status.as_u16(), first.is_replay()), (201, false));
        assert_eq!((again.is_replay(), &again.body), (true, &first.body));
        assert_eq!(app.runs(), 1, "{key}");
    }
    let effects = number(&still, "select count(*) from effects").await;
    assert_eq!((world.effects(), effects), (1, 1));
}

#[tokio::test]
async fn a_process_that_stands_still_in_a_transaction_keeps_its_twin_waiting_and_no_longer() {
    let folder = tempfile::tempdir().unwrap();
    for engine in [Engine::sqlite(&folder), Engine::postgres().await] {
        let Engine::Sql(url) = &engine else {
            unreachable!("it is SQL");
        };
        let clock = clock();
        let first = connect(url, 20 * SECOND, &clock).await;
        // On SQLite this is how long a twin waits for its turn.
        let second = connect(url, Duration::from_millis(100), &clock).await;
        execute(&first, "create table effects (n text)").await;
        let mut refused = 0;
        for from_the_effect in [false, true] {
            for polls in 0.. {
                execute(&first, "delete from effects").await;
                let key = format!("{from_the_effect}-{polls}");
                let reached = Arc::new(AtomicBool::new(!from_the_effect));
                let at = format!("{engine:?}, stood still after {polls}");
                let mut sent = transactional(&first, &reached).future(post("/pay", &key, "{}"));
                let counts = || reached.load(SeqCst);
                if stop_after(&mut sent, polls, counts).await.is_some() {
                    break;
                }
                clock.advance(MINUTE);
                let twin = transactional(&second, &reached).post(&key, "{}").await;
                refused += usize::from(twin.status != 201);
                let own = sent.await;
                assert_eq!(own.status, 201, "{at}: {own:?} beside {twin:?}");
                let last = settled(&transactional(&second, &reached), &key).await;
                assert_eq!((last.is_replay(), &last.body), (true, &own.body), "{at}");
                let effects = number(&first, "select count(*) from effects").await;
                assert_eq!(effects, 1, "{at}");
            }
        }
        assert!(refused > 0, "{engine:?}");
    }
}
