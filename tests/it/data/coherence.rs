//! Caches of several processes against an oracle: what was invalidated is read by nobody who was told, and by nobody at all
//! past the time of a local copy; also where notices are lost, late and out of order, and where the link was cut.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::{JoinSet, yield_now};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::{
    Clock, Key, ManualClock, Notice, NoticeCallback, StoreFuture, Subscription,
};
use tower_keep::data::cache::store::{Fetched, Item, Lookup, Written};
use tower_keep::data::cache::{
    Cache, CacheGroup, CacheOutcome, CacheStore, Cached, Local, Tag, Target,
};
use tower_keep::{HOUR, MINUTE, SECOND, ttl};

use crate::support::redis::{fresh_prefix, shared};
use crate::support::{Proxy, RedisServer};

const KEYS: usize = 4;
const PROCESSES: usize = 3;
const BELIEVED: Duration = Duration::from_secs(30);

/// Numbers that are the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// What is true, and what each process must know of it.
struct World {
    truth: [u64; KEYS],
    known: [[u64; KEYS]; PROCESSES],
    /// When the store was told of which version: by then plus the time of a local copy all know it.
    told: Vec<(u64, usize, u64)>,
    /// Notices on their way.
    mail: Vec<(usize, Bytes, [u64; KEYS])>,
    callbacks: Vec<Option<NoticeCallback>>,
    dice: Dice,
}

/// A store whose notices to one process are lost, late and out of order.
struct Unreliable {
    inner: MemoryStore,
    process: usize,
    world: Arc<Mutex<World>>,
}

impl std::fmt::Debug for Unreliable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unreliable")
    }
}

impl World {
    /// Whoever has heard `payload` knows the truth of then about each key that it names.
    fn hear(&mut self, process: usize, payload: &Bytes, then: [u64; KEYS]) {
        let text = std::str::from_utf8(payload).unwrap();
        let lines: Vec<&str> = text.split('\n').skip(1).collect();
        for (key, version) in then.into_iter().enumerate() {
            let end = format!(":{key}");
            let names =
                |line: &&str| line.is_empty() || (!line.starts_with('f') && line.ends_with(&end));
            if lines.iter().any(names) {
                let known = &mut self.known[process][key];
                *known = version.max(*known);
            }
        }
    }
}

/// Gives out one notice that is on its way, if there is one.
fn deliver(world: &Arc<Mutex<World>>) {
    let (process, payload, then, callback) = {
        let mut world = world.lock().unwrap();
        let waiting = world.mail.len() as u64;
        if waiting == 0 {
            return;
        }
        let place = world.dice.below(waiting) as usize;
        let (process, payload, then) = world.mail.swap_remove(place);
        (process, payload, then, world.callbacks[process].clone())
    };
    callback.unwrap()(Notice::Payload(payload.clone()));
    world.lock().unwrap().hear(process, &payload, then);
}

impl CacheStore for Unreliable {
    fn fetch(&self, group: &Arc<str>, lookups: Vec<Lookup>) -> StoreFuture<Vec<Fetched>> {
        self.inner.fetch(group, lookups)
    }

    fn write(&self, group: &Arc<str>, items: Vec<Item>, sender: &str) -> StoreFuture<Vec<Written>> {
        self.inner.write(group, items, sender)
    }

    fn resolve(&self, group: &Arc<str>, aliases: Vec<String>) -> StoreFuture<Vec<Option<Key>>> {
        self.inner.resolve(group, aliases)
    }

    fn invalidate(&self, group: &Arc<str>, targets: Vec<Target>, sender: &str) -> StoreFuture<()> {
        self.inner.invalidate(group, targets, sender)
    }

    fn subscribe(&self, group: &Arc<str>, callback: NoticeCallback) -> StoreFuture<Subscription> {
        let (world, process) = (Arc::clone(&self.world), self.process);
        world.lock().unwrap().callbacks[process] = Some(Arc::clone(&callback));
        let heard = Arc::new(move |notice| {
            let Notice::Payload(payload) = notice else {
                return callback(notice);
            };
            // Memory tells inside the step: the truth is that of the step.
            let mut world = world.lock().unwrap();
            if world.dice.below(3) > 0 {
                let then = world.truth;
                world.mail.push((process, payload, then));
            }
        });
        CacheStore::subscribe(&self.inner, group, heard)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        CacheStore::clock(&self.inner)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.inner.contradicts(name, what)
    }
}

#[derive(Clone)]
struct Process {
    number: usize,
    group: CacheGroup,
    rows: Cache<usize, u64>,
    world: Arc<Mutex<World>>,
    writing: Arc<[tokio::sync::Mutex<()>; KEYS]>,
    clock: ManualClock,
}

impl Process {
    /// Reads the truth, and takes its time to say it; may also fail.
    async fn load(self, key: usize) -> Result<u64, io::Error> {
        let (version, pauses, ending) = {
            let mut world = self.world.lock().unwrap();
            let (pauses, ending) = (world.dice.below(8), world.dice.below(12));
            (world.truth[key], pauses, ending)
        };
        for _ in 0..pauses {
            yield_now().await;
        }
        match ending {
            0 => Err(io::Error::other("the database is away")),
            1 => panic!("the row makes no sense"),
            _ => Ok(version),
        }
    }

    async fn read(self, key: usize, how: u64) {
        let oldest = {
            let world = self.world.lock().unwrap();
            let now = self.clock.now_micros();
            let all = world
                .told
                .iter()
                .filter(|(at, of, _)| *of == key && now >= *at);
            let all = all.map(|(_, _, version)| *version).max().unwrap_or(0);
            world.known[self.number][key].max(all)
        };
        let source = self.clone();
        let got = match how {
            0 => self.rows.get(&key).await.unwrap().map(|row| *row),
            1 => {
                let load = |keys: Vec<usize>| async move {
                    let mut rows = Vec::new();
                    for key in keys {
                        rows.push((key, source.clone().load(key).await?));
                    }
                    Ok::<_, io::Error>(rows)
                };
                let rows = self.rows.get_many_or_load(&[key], load).await;
                rows.ok().and_then(|rows| rows[0].as_deref().copied())
            }
            _ => {
                let row = self.rows.get_or_load(&key, |key| source.load(key)).await;
                row.ok().map(|row| *row)
            }
        };
        if let Some(got) = got {
            assert!(
                got >= oldest,
                "{got} of {key}, though {oldest} was known before"
            );
        }
    }

    async fn write(self, key: usize, how: u64) {
        // Writers of one row take turns, as in a database.
        let _turn = self.writing[key].lock().await;
        let version = {
            let mut world = self.world.lock().unwrap();
            world.truth[key] += 1;
            world.truth[key]
        };
        yield_now().await;
        let target = match how {
            0 => {
                self.rows.put(&key, version).await.unwrap();
                None
            }
            1 => Some(self.rows.target(&key)),
            2 => Some(Target::tag(Tag::new("row", key))),
            3 => Some(Target::prefix("row", key)),
            _ => Some(Target::all()),
        };
        if let Some(target) = target {
            self.group.invalidate([target]).await;
        }
        let mut world = self.world.lock().unwrap();
        let known = &mut world.known[self.number][key];
        *known = version.max(*known);
        let end = self.clock.now_micros() + BELIEVED.as_micros() as u64;
        world.told.push((end, key, version));
    }
}

async fn histories(seed: u64, rounds: usize) {
    let clock = ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap());
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let world = Arc::new(Mutex::new(World {
        truth: [0; KEYS],
        known: [[0; KEYS]; PROCESSES],
        told: Vec::new(),
        mail: Vec::new(),
        callbacks: vec![None; PROCESSES],
        dice: Dice(seed),
    }));
    let writing = Arc::new(std::array::from_fn(|_| tokio::sync::Mutex::default()));
    let processes: Vec<Process> = (0..PROCESSES)
        .map(|number| {
            let inner = store.clone();
            let group = CacheGroup::new(
                Unreliable {
                    inner,
                    process: number,
                    world: Arc::clone(&world),
                },
                "db",
            );
            let rows = group
                .cache("row", ttl::USER)
                .local(Local::entries(100).ttl(BELIEVED))
                .tag_with(|key, _| [Tag::new("row", *key)]);
            let (world, writing, clock) = (Arc::clone(&world), Arc::clone(&writing), clock.clone());
            Process {
                number,
                group,
                rows,
                world,
                writing,
                clock,
            }
        })
        .collect();
    for _ in 0..rounds {
        let mut steps = JoinSet::new();
        for _ in 0..12 {
            let (process, key, what, how) = {
                let dice = &mut world.lock().unwrap().dice;
                let (process, key) = (dice.below(PROCESSES as u64), dice.below(KEYS as u64));
                (process as usize, key as usize, dice.below(8), dice.below(5))
            };
            let process = processes[process].clone();
            match what {
                0 | 1 => drop(steps.spawn(process.write(key, how))),
                2 => deliver(&world),
                3 => {
                    // A caller that leaves.
                    let leaving = tokio::spawn(process.read(key, 2));
                    yield_now().await;
                    leaving.abort();
                }
                _ => drop(steps.spawn(process.read(key, how))),
            }
            yield_now().await;
        }
        while let Some(step) = steps.join_next().await {
            step.unwrap();
        }
        // Loads that nobody waits for end, too; then time passes.
        for _ in 0..40 {
            yield_now().await;
        }
        let passes = world.lock().unwrap().dice.below(20);
        clock.advance(Duration::from_secs(passes));
    }
}

#[tokio::test(start_paused = true)]
async fn over_three_processes_nobody_reads_what_it_was_told_is_old() {
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.to_string();
        if !text.contains("makes no sense") {
            eprintln!("{text}");
        }
    }));
    let size = std::env::var("KEEP_HISTORIES").ok();
    let seeds = size.map_or(20, |size| size.parse().unwrap());
    for seed in 0..seeds {
        histories(seed, 60).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_redis_a_read_that_starts_after_an_invalidation_returns_nothing_older() {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
    let store = shared().await.store_with(&fresh_prefix()).await;
    let group = CacheGroup::new(store, "db");
    let rows: Cache<u8, u64> = group
        .cache("row", ttl::USER)
        .tag_with(|_, _| [Tag::new("row", 1)]);
    let (truth, applied) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut running = JoinSet::new();
    for _ in 0..4 {
        let (rows, truth, applied) = (rows.clone(), Arc::clone(&truth), Arc::clone(&applied));
        running.spawn(async move {
            for _ in 0..300 {
                let (oldest, truth) = (applied.load(SeqCst), Arc::clone(&truth));
                let load = |_| async move {
                    let version = truth.load(SeqCst);
                    yield_now().await;
                    Ok::<_, io::Error>(version)
                };
                let got = *rows.get_or_load(&1, load).await.unwrap();
                assert!(
                    got >= oldest,
                    "got {got}, though {oldest} was applied before"
                );
                yield_now().await;
            }
        });
    }
    running.spawn(async move {
        for round in 0..200 {
            let version = truth.fetch_add(1, SeqCst) + 1;
            match round % 5 {
                0 => rows.put(&1, version).await.unwrap(),
                1 => drop(rows.remove(&1).await),
                2 => drop(group.invalidate([Target::tag(Tag::new("row", 1))]).await),
                3 => drop(group.invalidate([Target::prefix("row", 1)]).await),
                _ => drop(group.clear().await),
            }
            applied.store(version, SeqCst);
            yield_now().await;
        }
    });
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
}

async fn two_levels(proxy: &Proxy, server: &RedisServer) -> [Cache<u8, u64>; 2] {
    let near = RedisStore::connect(&format!("redis://{}/", proxy.address())).await;
    let far = RedisStore::connect(&server.tcp_url()).await;
    let [near, far] = [near, far].map(|store| {
        Cache::new(store.unwrap(), "row", ttl::CUSTOMER).local(Local::entries(10).ttl(HOUR))
    });
    far.put(&1, 1).await.unwrap();
    // From now on it is answered by the local copy.
    while near.stats().local_hits == 0 {
        assert_eq!(near.get(&1).await.unwrap().map(|row| *row), Some(1));
    }
    [near, far]
}

/// Reads until the cache and the source agree; what is old is never read on the way.
async fn agrees(near: &Cache<u8, u64>) {
    let patient = async {
        loop {
            match near.get(&1).await {
                // While the store is away a copy stands in.
                Ok(Some(row)) if row.outcome() != CacheOutcome::Bypassed => {
                    return assert_eq!(*row, 2);
                }
                _ => tokio::time::sleep(SECOND / 100).await,
            }
        }
    };
    tokio::time::timeout(2 * MINUTE, patient).await.unwrap();
}

#[tokio::test]
async fn ten_seconds_after_its_channel_fell_silent_no_copy_is_believed() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let [near, far] = two_levels(&proxy, &server).await;
    proxy.freeze();
    far.put(&1, 2).await.unwrap();
    assert_eq!(near.get(&1).await.unwrap().map(|row| *row), Some(1));
    // The runtime's clock jumps from timer to timer: ping, then its limit.
    tokio::time::pause();
    tokio::time::sleep(10 * SECOND + SECOND / 10).await;
    tokio::time::resume();
    agrees(&near).await;
}

#[tokio::test]
async fn a_channel_that_was_cut_loses_no_invalidation() {
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let [near, far] = two_levels(&proxy, &server).await;
    proxy.refuse(true);
    // The link's end is told by the system, in its own time.
    let is_told = |row: Cached<u64>| row.outcome() == CacheOutcome::Bypassed;
    while !near.get(&1).await.unwrap().is_some_and(is_told) {
        tokio::time::sleep(SECOND / 100).await;
    }
    far.put(&1, 2).await.unwrap();
    proxy.refuse(false);
    agrees(&near).await;
}
