//! Values read through a loader, in one process: tower-keep beside amalgam-cache and moka, in turn, in one run.
//!   bench-data        BENCH_ROUNDS (21), BENCH_N: reads a round (20,000); BENCH_CASE, BENCH_SUBJECT: parts of names
//! "hit" reads one hot key, "hit of 10k" one of ten thousand, "load" a key that nobody has. moka is the floor: it keeps no
//! second level, no tags, and encodes nothing. The two `get`s read what is there and load nothing. amalgam-cache is there twice: alone, and with its own second level in
//! memory and JSON, which is what we do.
//! "2 threads" is how much more two threads read than one: 2 at best. "after a load" is how long the last of 1,000 that
//! wait for one load waits after it.
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use bench_common as bc;
use serde::{Deserialize, Serialize};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::data::cache::Cache;
use tower_keep::ttl;

#[global_allocator]
static A: bc::Counting = bc::Counting;

#[derive(Clone, Debug, Serialize, Deserialize)]
struct User {
    id: String,
    name: String,
    visits: u64,
}

fn user(id: &str) -> User {
    User {
        id: id.to_owned(),
        name: "Jane Q. Doe".to_owned(),
        visits: 7,
    }
}

struct Subjects {
    moka: moka::future::Cache<String, Arc<User>>,
    amalgam: amalgam::Cache<Arc<User>>,
    amalgam_with_store: amalgam::Cache<Arc<User>>,
    keep: Cache<String, User>,
}

impl Subjects {
    async fn read(&self, subject: usize, key: String) {
        match subject {
            0 => {
                let load = async { Ok::<_, std::io::Error>(Arc::new(user(&key))) };
                black_box(self.moka.try_get_with(key.clone(), load).await.unwrap());
            }
            1 | 2 => {
                let id = key.clone();
                let load = amalgam::source::factory(move |context| async move {
                    Ok::<_, amalgam::FactoryError>(context.value(Arc::new(user(&id))))
                });
                let amalgam = if subject == 1 { &self.amalgam } else { &self.amalgam_with_store };
                black_box(amalgam.get_or_set(key.as_str(), load).await.unwrap());
            }
            3 => {
                let load = |id: String| async move { Ok::<_, std::io::Error>(user(&id)) };
                black_box(self.keep.get_or_load(&key, load).await.unwrap());
            }
            4 => drop(black_box(self.moka.get(key.as_str()).await)),
            _ => drop(black_box(self.keep.get(&key).await.unwrap())),
        }
    }
}

const NAMES: [&str; 6] = [
    "moka 0.12 try_get_with (floor)",
    "amalgam-cache 0.4 get_or_set",
    "amalgam-cache 0.4 get_or_set, second level in memory",
    "keep",
    "moka 0.12 get",
    "keep get",
];
static FRESH: AtomicU64 = AtomicU64::new(1 << 32);

fn key(case: &str, number: u64) -> String {
    match case {
        "hit" => "user 1".to_owned(),
        "hit of 10k" => format!("user {}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & 8_191),
        _ => format!("user {}", FRESH.fetch_add(1, Relaxed)),
    }
}

/// Nanoseconds of one read, of keys made beforehand: nobody pays for the harness.
fn run(runtime: &tokio::runtime::Runtime, subjects: &Arc<Subjects>, subject: usize, case: &str, reads: u64) -> (f64, f64) {
    let keys: Vec<String> = (0..reads).map(|number| key(case, number)).collect();
    let began = Instant::now();
    let (_, counted, _) = bc::count_allocs(|| {
        runtime.block_on(async {
            for key in keys {
                subjects.read(subject, key).await;
            }
        });
    });
    (began.elapsed().as_nanos() as f64 / reads as f64, counted as f64 / reads as f64)
}

fn new_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// How much more two threads read than one.
fn two_threads(subjects: &Arc<Subjects>, subject: usize, case: &'static str, reads: u64) -> f64 {
    let began = |threads: u64| {
        let gate = Arc::new(std::sync::Barrier::new(threads as usize + 1));
        let running: Vec<_> = (0..threads)
            .map(|_| {
                let (gate, subjects) = (Arc::clone(&gate), Arc::clone(subjects));
                std::thread::spawn(move || {
                    let runtime = new_runtime();
                    let keys: Vec<String> = (0..reads).map(|number| key(case, number)).collect();
                    gate.wait();
                    runtime.block_on(async {
                        for key in keys {
                            subjects.read(subject, key).await;
                        }
                    });
                })
            })
            .collect();
        gate.wait();
        let began = Instant::now();
        running.into_iter().for_each(|thread| thread.join().unwrap());
        began.elapsed().as_secs_f64()
    };
    2.0 * began(1) / began(2)
}

/// Microseconds from the end of a load to the last of 1,000 who wait for it.
async fn after_a_load(subjects: &Arc<Subjects>) -> f64 {
    let id = key("load", 0);
    let (loading, loaded) = (Arc::new(tokio::sync::Notify::new()), Arc::new(std::sync::Mutex::new(None)));
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let (subjects, id, loading, loaded) = (Arc::clone(subjects), id.clone(), Arc::clone(&loading), Arc::clone(&loaded));
        readers.spawn(async move {
            let load = move |id: String| async move {
                loading.notified().await;
                *loaded.lock().unwrap() = Some(Instant::now());
                Ok::<_, std::io::Error>(user(&id))
            };
            subjects.keep.get_or_load(&id, load).await.unwrap();
            Instant::now()
        });
    }
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    loading.notify_one();
    let mut last = Instant::now();
    while let Some(ended) = readers.join_next().await {
        last = last.max(ended.unwrap());
    }
    let loaded = loaded.lock().unwrap().unwrap();
    (last - loaded).as_secs_f64() * 1e6
}

fn main() {
    let runtime = new_runtime();
    let (rounds, reads) = (bc::env_num("BENCH_ROUNDS", 21), bc::env_num("BENCH_N", 20_000));
    let second_level = amalgam::provider::InMemoryDistributedCache::new(Arc::new(amalgam::provider::SystemClock));
    let with_store = amalgam::Cache::builder()
        .distributed(Arc::new(second_level))
        .serializer(Arc::new(amalgam::provider::JsonSerializer));
    let subjects = Arc::new(Subjects {
        moka: moka::future::Cache::new(1_000_000),
        amalgam: amalgam::Cache::new(),
        amalgam_with_store: runtime.block_on(async { with_store.try_build().unwrap() }),
        keep: Cache::new(MemoryStore::new(), "user", ttl::USER),
    });
    let wanted: Vec<usize> = (0..NAMES.len()).filter(|at| bc::wanted(NAMES[*at], "BENCH_SUBJECT")).collect();
    for case in ["hit", "hit of 10k", "load"] {
        if !bc::wanted(case, "BENCH_CASE") {
            continue;
        }
        let reads = if case == "load" { reads / 20 } else { reads };
        let (mut times, mut allocs) = (vec![Vec::new(); NAMES.len()], [0.0; NAMES.len()]);
        let mut doubled = vec![Vec::new(); NAMES.len()];
        for round in 0..rounds {
            for turn in 0..wanted.len() {
                let subject = wanted[(turn + round as usize) % wanted.len()];
                let (time, counted) = run(&runtime, &subjects, subject, case, reads);
                times[subject].push(time);
                allocs[subject] = counted;
                if case != "load" {
                    doubled[subject].push(two_threads(&subjects, subject, case, reads));
                }
            }
        }
        let row = |subject: &usize| {
            let (own, floor) = (&times[*subject], &times[wanted[0]]);
            let over: Vec<f64> = own.iter().zip(floor).map(|(own, floor)| own / floor).collect();
            let doubled = match &doubled[*subject][..] {
                [] => "-".to_owned(),
                times => format!("{:.2}", bc::median(times)),
            };
            vec![
                NAMES[*subject].to_owned(),
                format!("{:.0}", bc::median(own)),
                format!("{:.2}", bc::median(&over)),
                format!("{:.1}", bc::noise_pct(own)),
                format!("{:.1}", allocs[*subject]),
                doubled,
            ]
        };
        let rows: Vec<Vec<String>> = wanted.iter().map(row).collect();
        bc::table(case, &["subject", "ns", "x moka", "±%", "allocs", "2 threads"], &rows);
    }
    if bc::wanted("after a load", "BENCH_CASE") {
        let times: Vec<f64> = (0..rounds).map(|_| runtime.block_on(after_a_load(&subjects))).collect();
        let (median, most) = (bc::median(&times), bc::quantile(&times, 1.0));
        println!("\nafter a load the last of 1,000 has it in {median:.0} us (at most {most:.0})");
    }
}
