//! Holds under a crowd: one hot slot, two thousand resources, 64 writers of one SQLite file, a sweep; beside the same by hand.
//!   bench-crowd DIR PGHOST PGPORT     DIR for the SQLite file, a Postgres on TCP (user postgres, database postgres, trust)
//! BENCH_ROUNDS: turns (7); BENCH_MS: of each subject in a turn (300); BENCH_CASE: only cases whose name contains it.
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bench_common as bc;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Postgres, Sqlite};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::Timestamp;
use tower_keep::reservation::{ReservationError, ReservationLayer, Reservations, Slot, Sweeper};

const MINUTE: i64 = 60_000;
/// Far in the future, and for each run elsewhere: what another run held may still be in the tables.
fn era() -> i64 {
    static ERA: std::sync::OnceLock<i64> = std::sync::OnceLock::new();
    let since = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    *ERA.get_or_init(|| 4_102_444_800_000 + since().as_secs() as i64 % 100_000 * 1_000 * MINUTE)
}

/// Says whether it got what it asked for; the number tells one attempt from another.
type Attempt = Arc<dyn Fn(u64) -> Pin<Box<dyn Future<Output = bool> + Send>> + Send + Sync>;

fn attempt<F: Future<Output = bool> + Send + 'static>(f: impl Fn(u64) -> F + Send + Sync + 'static) -> Attempt {
    Arc::new(move |number| Box::pin(f(number)))
}

struct Subject {
    name: &'static str,
    run: Attempt,
    /// How many attempts there are at once where that is not the case's number.
    at_once: Option<u64>,
}

impl Subject {
    fn new(name: &'static str, run: Attempt) -> Self {
        Self { name, run, at_once: None }
    }
}

/// Attempts for so long; how long each took in nanoseconds, how many won, and all of it in seconds.
async fn crowd(run: &Attempt, at_once: u64, span: Duration) -> (Vec<f64>, u64, f64) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let started = Instant::now();
    let tasks: Vec<_> = (0..at_once)
        .map(|_| {
            let run = Arc::clone(run);
            tokio::spawn(async move {
                let (mut took, mut won) = (Vec::new(), 0);
                while started.elapsed() < span {
                    let begun = Instant::now();
                    won += u64::from(run(NEXT.fetch_add(1, Relaxed)).await);
                    took.push(begun.elapsed().as_nanos() as f64);
                }
                (took, won)
            })
        })
        .collect();
    let (mut took, mut won) = (Vec::new(), 0);
    for task in tasks {
        let (one, wins) = task.await.unwrap();
        took.extend(one);
        won += wins;
    }
    (took, won, started.elapsed().as_secs_f64())
}

/// In turn, so that each meets the same machine; rates as ratios to the first subject.
async fn compare(case: &str, at_once: u64, subjects: Vec<Subject>) {
    let (rounds, span) = (bc::env_num("BENCH_ROUNDS", 7), Duration::from_millis(bc::env_num("BENCH_MS", 300)));
    let mut rates = vec![Vec::new(); subjects.len()];
    let (mut times, mut wins) = (vec![Vec::new(); subjects.len()], vec![0; subjects.len()]);
    for subject in &subjects {
        crowd(&subject.run, subject.at_once.unwrap_or(at_once), span / 4).await;
    }
    for _ in 0..rounds {
        for (index, subject) in subjects.iter().enumerate() {
            let (took, won, all) = crowd(&subject.run, subject.at_once.unwrap_or(at_once), span).await;
            rates[index].push(took.len() as f64 / all);
            times[index].extend(took);
            wins[index] += won;
        }
    }
    let rows: Vec<_> = subjects
        .iter()
        .enumerate()
        .map(|(index, subject)| {
            let ratio = bc::median(&rates[index].iter().zip(&rates[0]).map(|(own, first)| own / first).collect::<Vec<_>>());
            let (half, most) = (bc::median(&times[index]), bc::quantile(&times[index], 0.99));
            vec![
                subject.name.to_string(),
                format!("{:.0}", bc::median(&rates[index])),
                format!("{ratio:.2}"),
                format!("{:.0}", half / 1e3),
                format!("{:.1}", most / half),
                format!("{:.3}", wins[index] as f64 / times[index].len() as f64),
            ]
        })
        .collect();
    let head = ["subject", "attempts/s", "x first", "p50 us", "p99 / p50", "won"];
    bc::table(&format!("{case}, {at_once} at once"), &head, &rows);
}

fn wanted(case: &str) -> bool {
    std::env::var("BENCH_CASE").map_or(true, |only| case.contains(&only))
}

async fn ours(own: Reservations, resource: String, start: i64, holder: u64) -> bool {
    let start = Timestamp::from_millis(start as u64);
    let slot = Slot::new(resource, start..start.plus(Duration::from_secs(60)));
    match own.hold(slot, &format!("guest {holder}")).await {
        Ok(_) => true,
        Err(ReservationError::Conflict(_)) => false,
        Err(other) => panic!("{other:?}"),
    }
}

/// One after the other of a list that never ends, `at_once` attempts for each: the same for all who come together.
fn hot(number: u64, at_once: u64) -> i64 {
    era() + (number / at_once) as i64 * MINUTE
}

/// The row of a hold as keep writes it, with the same constraint and indexes.
const INSERT: &str = "INSERT INTO keep_hold (hold_id, part, resource, unit, starts, ends, block_start, block_end, units, capacity, counted, \
     holder, wish_key, token_hash, state, version, created_at, expires_at, changed_at) \
     VALUES (gen_random_uuid(), 0, $1, '', $2, $3, $2, $3, 1, 0, false, $4, 'none', '\\x00'::bytea, 1, 1, $5, $5 + 600000, $5) ON CONFLICT DO NOTHING";

fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

async fn raw(pool: PgPool, room: String, start: i64, lock: bool) -> bool {
    let mut tx = pool.begin().await.unwrap();
    if lock {
        sqlx::query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))").bind(&room).execute(&mut *tx).await.unwrap();
    }
    let insert = sqlx::query(INSERT).bind(&room).bind(start).bind(start + MINUTE).bind("jane").bind(now());
    let done = insert.execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    done.rows_affected() == 1
}

async fn postgres(host: &str, port: u16) {
    let options = PgConnectOptions::new_without_pgpass().host(host).port(port).username("postgres").database("postgres");
    let options = options.options([("synchronous_commit", "off")]);
    let pool = PgPoolOptions::new().connect_with(options).await.unwrap();
    let url = format!("postgres://postgres@{host}:{port}/postgres?options=-c%20synchronous_commit%3Doff");
    let store = SqlStore::builder(&url).max_connections(10).open().await.unwrap();
    let own = ReservationLayer::new(store).reservations();
    own.migrate().await.unwrap();
    for at_once in [8, 64] {
        if wanted("hot slot") {
            let (by_hand, by_us) = (pool.clone(), own.clone());
            let room = format!("hot {at_once} {}", std::process::id());
            let hand_room = format!("by hand {room}");
            let subjects = vec![
                Subject::new("begin, insert on conflict do nothing, commit", attempt(move |n| raw(by_hand.clone(), hand_room.clone(), hot(n, at_once), false))),
                Subject::new("Reservations::hold", attempt(move |n| ours(by_us.clone(), room.clone(), hot(n, at_once), n))),
            ];
            compare("Postgres, one hot slot", at_once, subjects).await;
        }
        if wanted("2,000 resources") {
            static MINUTES: AtomicI64 = AtomicI64::new(0);
            let place = || {
                let n = MINUTES.fetch_add(1, Relaxed);
                (format!("room {}", n * 7_919 % 2_000), era() + n / 2_000 * MINUTE)
            };
            let (by_hand, locked, by_us) = (pool.clone(), pool.clone(), own.clone());
            let subjects = vec![
                Subject::new("begin, insert on conflict do nothing, commit", attempt(move |_| { let (room, start) = place(); raw(by_hand.clone(), room, start, false) })),
                Subject::new("the same with a lock per resource", attempt(move |_| { let (room, start) = place(); raw(locked.clone(), room, start, true) })),
                Subject::new("Reservations::hold", attempt(move |n| { let (room, start) = place(); ours(by_us.clone(), room, start, n) })),
            ];
            compare("Postgres, 2,000 resources", at_once, subjects).await;
        }
    }
    if wanted("sweep") {
        sweep("Postgres", &own, async |count| {
            let sql = "INSERT INTO keep_hold (hold_id, part, resource, unit, starts, ends, block_start, block_end, units, capacity, counted, \
                 holder, wish_key, token_hash, state, version, created_at, expires_at, changed_at) \
                 SELECT gen_random_uuid(), 0, 'swept ' || n, '', 0, 1, 0, 1, 1, 0, false, 'jane', 'none', '\\x00'::bytea, 1, 1, 0, 1, 0 \
                 FROM generate_series(1, $1) n";
            sqlx::query::<Postgres>(sql).bind(count).execute(&pool).await.unwrap();
        })
        .await;
    }
}

const LITE: &str = "INSERT INTO keep_hold (hold_id, part, resource, unit, starts, ends, block_start, block_end, units, capacity, counted, \
     holder, wish_key, token_hash, state, version, created_at, expires_at, changed_at) \
     VALUES (randomblob(16), 0, $1, '', $2, $3, $2, $3, 1, 0, 0, 'jane', 'none', zeroblob(32), 1, 1, $4, $4 + 600000, $4)";

async fn by_hand_lite(pool: SqlitePool, start: i64) -> bool {
    let mut tx = pool.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let insert = sqlx::query::<Sqlite>(LITE).bind("raw").bind(start).bind(start + MINUTE).bind(now());
    insert.execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    true
}

async fn sqlite(dir: &str) {
    static MINUTES: AtomicI64 = AtomicI64::new(0);
    let file = format!("{dir}/crowd.db");
    for rest in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{file}{rest}"));
    }
    let own = ReservationLayer::new(SqlStore::connect(&format!("sqlite:{file}?mode=rwc")).await.unwrap()).reservations();
    own.migrate().await.unwrap();
    let synchronous = match std::env::var("BENCH_SYNC").as_deref() {
        Ok("full") => SqliteSynchronous::Full,
        _ => SqliteSynchronous::Normal,
    };
    let options = SqliteConnectOptions::new().filename(&file).journal_mode(SqliteJournalMode::Wal).synchronous(synchronous);
    let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    let next = || era() + MINUTES.fetch_add(1, Relaxed) * MINUTE;
    if wanted("64 writers") {
        let by_us = own.clone();
        let mut alone = Subject::new("one loop of BEGIN IMMEDIATE, insert of the row, commit", attempt(move |_| by_hand_lite(pool.clone(), next())));
        alone.at_once = Some(1);
        let subjects = vec![alone, Subject::new("Reservations::hold", attempt(move |n| ours(by_us.clone(), "ours".into(), next(), n)))];
        compare("SQLite, 64 writers", 64, subjects).await;
    }
}

async fn memory() {
    let own = ReservationLayer::new(MemoryStore::new()).hold_for(Duration::from_secs(1)).reservations();
    if wanted("sweep") {
        let held = own.clone();
        sweep("memory", &own, async move |count| {
            for n in 0..count {
                let start = Timestamp::from_millis(era() as u64);
                let slot = Slot::new(format!("swept {n}"), start..start.plus(Duration::from_secs(60)));
                held.hold(slot.clone(), "jane").await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(1_100)).await;
        })
        .await;
    }
}

/// How many holds a second a sweep ends, and how long one who asks beside it waits at most.
async fn sweep(store: &str, own: &Reservations, fill: impl AsyncFn(i64)) {
    const HOLDS: i64 = 20_000;
    fill(HOLDS).await;
    let (beside, done) = (own.clone(), Arc::new(AtomicU64::new(0)));
    let ended = Arc::clone(&done);
    let asking = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        for n in 0.. {
            if ended.load(Relaxed) == 1 {
                break;
            }
            let begun = Instant::now();
            ours(beside.clone(), format!("beside {n}"), era(), n).await;
            longest = longest.max(begun.elapsed());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        longest
    });
    let started = Instant::now();
    let swept = Sweeper::new(own).once().await.unwrap();
    let took = started.elapsed();
    done.store(1, Relaxed);
    let longest = asking.await.unwrap();
    println!("sweep, {store}: {} holds, {:.0} a second; who asked beside it waited {:.1} ms at most", swept.expired, swept.expired as f64 / took.as_secs_f64(), longest.as_secs_f64() * 1e3);
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    let [_, dir, host, port] = &arguments[..] else {
        println!("bench-crowd DIR PGHOST PGPORT");
        return;
    };
    memory().await;
    sqlite(dir).await;
    postgres(host, port.parse().unwrap()).await;
}
