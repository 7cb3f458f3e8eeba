//! Values read through a loader, in one process: tower-keep beside amalgam-cache and moka, in turn, in one run.
//!   bench-data        BENCH_ROUNDS (21), BENCH_N: reads a round (20,000)
//! "hit" reads one hot key, "hit of 10k" one of ten thousand, "load" a key that nobody has. moka is the floor: it keeps no
//! second level, no tags, and encodes nothing.
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
    keep: Cache<String, User>,
}

impl Subjects {
    async fn read(&self, subject: usize, key: String) {
        match subject {
            0 => {
                let load = async { Ok::<_, std::io::Error>(Arc::new(user(&key))) };
                black_box(self.moka.try_get_with(key.clone(), load).await.unwrap());
            }
            1 => {
                let id = key.clone();
                let load = amalgam::source::factory(move |context| async move {
                    Ok::<_, amalgam::FactoryError>(context.value(Arc::new(user(&id))))
                });
                black_box(self.amalgam.get_or_set(key.as_str(), load).await.unwrap());
            }
            _ => {
                let load = |id: String| async move { Ok::<_, std::io::Error>(user(&id)) };
                black_box(self.keep.get_or_load(&key, load).await.unwrap());
            }
        }
    }
}

const NAMES: [&str; 3] = ["moka 0.12 try_get_with (floor)", "amalgam-cache 0.4 get_or_set", "keep"];
static FRESH: AtomicU64 = AtomicU64::new(1 << 32);

fn key(case: &str, number: u64) -> String {
    match case {
        "hit" => "user 1".to_owned(),
        "hit of 10k" => format!("user {}", number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & 8_191),
        _ => format!("user {}", FRESH.fetch_add(1, Relaxed)),
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (rounds, reads) = (bc::env_num("BENCH_ROUNDS", 21), bc::env_num("BENCH_N", 20_000));
    let subjects = Subjects {
        moka: moka::future::Cache::new(1_000_000),
        amalgam: amalgam::Cache::new(),
        keep: Cache::new(MemoryStore::new(), "user", ttl::USER),
    };
    for case in ["hit", "hit of 10k", "load"] {
        let reads = if case == "load" { reads / 20 } else { reads };
        let (mut times, mut allocs) = (vec![Vec::new(); 3], [0.0; 3]);
        for round in 0..=rounds {
            for turn in 0..3 {
                let subject = ((turn + round) % 3) as usize;
                // Keys are made beforehand: nobody pays for the harness.
                let keys: Vec<String> = (0..reads).map(|number| key(case, number)).collect();
                let run = async {
                    for key in keys {
                        subjects.read(subject, key).await;
                    }
                };
                let began = Instant::now();
                if round == rounds {
                    let (_, counted, _) = bc::count_allocs(|| runtime.block_on(run));
                    allocs[subject] = counted as f64 / reads as f64;
                } else {
                    runtime.block_on(run);
                    times[subject].push(began.elapsed().as_nanos() as f64 / reads as f64);
                }
            }
        }
        let rows: Vec<Vec<String>> = (0..3)
            .map(|subject| {
                let over = times[subject].iter().zip(&times[0]).map(|(own, floor)| own / floor).collect::<Vec<_>>();
                vec![
                    NAMES[subject].to_owned(),
                    format!("{:.0}", bc::median(&times[subject])),
                    format!("{:.2}", bc::median(&over)),
                    format!("{:.1}", bc::noise_pct(&times[subject])),
                    format!("{:.1}", allocs[subject]),
                ]
            })
            .collect();
        bc::table(case, &["subject", "ns", "x moka", "±%", "allocs"], &rows);
    }
}
