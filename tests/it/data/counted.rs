//! Caches: a read counts once, at whoever asked, by what answered it; what is no read counts not at all.

use std::io;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tower_keep::backend::fault::{FaultStore, Faults};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{IntoKey, ManualClock};
use tower_keep::data::cache::{
    Cache, CacheOutcome, CacheStore, Cached, Local, Tag, Target, Verified,
};
use tower_keep::data::health::{Health, HealthStatus};
use tower_keep::ttl::{Lifetime, Ttl};
use tower_keep::{MILLIS, MINUTE, SECOND};

use crate::support::redis::shared;

type Rows = Cache<u64, String>;
type Store = Arc<dyn CacheStore>;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

async fn engines() -> Vec<(Store, ManualClock)> {
    let (one, two) = (clock(), clock());
    let memory = MemoryStore::builder().clock(one.clone()).build();
    let redis = shared().await.store(&two).await;
    vec![(Arc::new(memory), one), (Arc::new(redis), two)]
}

/// A cache of one process, listening: a read that found nothing is behind it.
async fn rows(store: &Store) -> Rows {
    let life = Lifetime::new(Ttl::secs(100)).refresh_after(50 * SECOND);
    let life = life.stale_for(Ttl::secs(100)).jitter(0);
    let rows = Rows::new(Arc::clone(store), "row", life)
        .missing_for(100 * SECOND)
        .local(Local::entries(10_000).ttl(200 * SECOND))
        .load_timeout(MILLIS, 30 * SECOND)
        .alias("name", |name: &String| Some(name.clone()));
    assert!(!rows.contains(&u64::MAX).await.unwrap());
    rows
}

/// Local, shared, absent, stale, missed, bypassed.
fn counted(rows: &Rows) -> [u64; 6] {
    let stats = rows.stats();
    let (hits, rest) = (
        [stats.local_hits, stats.shared_hits, stats.absent],
        [stats.stale, stats.misses - 1, stats.bypassed],
    );
    [hits[0], hits[1], hits[2], rest[0], rest[1], rest[2]]
}

/// Where an answer counts.
fn place(outcome: CacheOutcome) -> usize {
    match outcome {
        CacheOutcome::LocalHit => 0,
        CacheOutcome::SharedHit => 1,
        CacheOutcome::Stale => 3,
        CacheOutcome::Loaded | CacheOutcome::Joined => 4,
        CacheOutcome::Bypassed => 5,
    }
}

fn name(key: u64) -> String {
    format!("n{key}")
}

async fn load(key: u64) -> io::Result<String> {
    Ok(name(key))
}

async fn find_none(_: u64) -> io::Result<Option<String>> {
    Ok(None)
}

async fn load_all(keys: Vec<u64>) -> io::Result<Vec<(u64, String)>> {
    Ok(keys.into_iter().map(|key| (key, name(key))).collect())
}

async fn fail(_: u64) -> io::Result<String> {
    Err(io::Error::other("on purpose"))
}

async fn fail_all(_: Vec<u64>) -> io::Result<Vec<(u64, String)>> {
    Err(io::Error::other("on purpose"))
}

async fn by(rows: &Rows, key: u64) -> Cached<String> {
    let aliases = [("name", name(key).into_key())];
    let load = move || async move { Ok::<_, io::Error>((key, name(key))) };
    rows.get_or_load_by(aliases, load).await.unwrap()
}

/// Reads until what was loaded behind a read is there; says how many reads it took.
async fn until_young(rows: &Rows, key: u64) -> u64 {
    let patient = async {
        let mut reads = 1;
        while !rows.get(&key).await.unwrap().unwrap().age().is_zero() {
            tokio::time::sleep(MILLIS).await;
            reads += 1;
        }
        reads
    };
    tokio::time::timeout(MINUTE, patient).await.unwrap()
}

#[tokio::test]
async fn each_read_counts_by_what_answered_it() {
    for (store, _) in engines().await {
        let (near, far, third) = (rows(&store).await, rows(&store).await, rows(&store).await);
        assert!(near.get(&1).await.unwrap().is_none());
        near.get_or_load(&1, load).await.unwrap();
        assert_eq!(counted(&near), [0, 0, 0, 0, 2, 0]);
        near.get_or_load(&1, load).await.unwrap();
        near.get(&1).await.unwrap();
        near.contains(&1).await.unwrap();
        near.find_or_load(&2, find_none).await.unwrap();
        assert_eq!(counted(&near), [3, 0, 0, 0, 3, 0]);
        near.find_or_load(&2, find_none).await.unwrap();
        near.get(&2).await.unwrap();
        assert_eq!(counted(&near), [3, 0, 2, 0, 3, 0]);

        far.get(&1).await.unwrap();
        far.get_or_load(&1, load).await.unwrap();
        far.find_or_load(&2, find_none).await.unwrap();
        assert_eq!(counted(&far), [1, 1, 1, 0, 0, 0]);
        far.get_many(&[1, 1, 2, 3, 3]).await.unwrap();
        assert_eq!(counted(&far), [2, 1, 2, 0, 1, 0], "each key once");

        let keys = [1, 1, 2, 4, 4, 5];
        near.get_many_or_load(&keys, load_all).await.unwrap();
        assert_eq!(counted(&near), [4, 0, 3, 0, 5, 0]);
        far.get_many_or_load(&[4, 5, 6, 2], load_all).await.unwrap();
        assert_eq!(counted(&far), [2, 3, 3, 0, 2, 0]);

        near.get_by("name", "n1").await.unwrap().unwrap();
        third.get_by("name", "n1").await.unwrap().unwrap();
        assert!(third.get_by("name", "n99").await.unwrap().is_none());
        by(&third, 4).await;
        by(&third, 9).await;
        by(&third, 9).await;
        assert_eq!(counted(&near), [5, 0, 3, 0, 5, 0]);
        assert_eq!(counted(&third), [1, 2, 0, 0, 2, 0]);
        // A remembered absence is no answer to who wants a value.
        third.get_or_load(&2, load).await.unwrap();
        assert_eq!(counted(&third), [1, 2, 0, 0, 3, 0]);
        assert_eq!(third.stats().hit_rate(), Some(3.0 / 7.0));
    }
}

#[tokio::test]
async fn whoever_joins_a_load_counts_like_who_leads_it() {
    for (store, _) in engines().await {
        let rows = rows(&store).await;
        let gate = Arc::new(Semaphore::new(0));
        let held = async |key| {
            let gate = Arc::clone(&gate);
            let load = move |key| async move {
                let _ = gate.acquire().await;
                load(key).await
            };
            rows.get_or_load(&key, load).await.unwrap().outcome()
        };
        let many = async || {
            let gate = Arc::clone(&gate);
            let load = move |keys| async move {
                let _ = gate.acquire().await;
                load_all(keys).await
            };
            rows.get_many_or_load(&[1, 2], load).await.unwrap()
        };
        let open = async { gate.add_permits(1) };
        let (one, two, three, many, ()) = tokio::join!(held(1), held(1), held(1), many(), open);
        assert_eq!(one, CacheOutcome::Loaded);
        assert_eq!([two, three], [CacheOutcome::Joined; 2]);
        let many: Vec<_> = many.into_iter().map(|one| one.unwrap().outcome()).collect();
        assert_eq!(many, [CacheOutcome::Joined, CacheOutcome::Loaded]);
        assert_eq!(counted(&rows), [0, 0, 0, 0, 5, 0]);
        // By alias it may be there already for the second.
        let (one, two, three) = tokio::join!(by(&rows, 7), by(&rows, 7), by(&rows, 7));
        let mut expected = [0, 0, 0, 0, 5, 0];
        for found in [one, two, three] {
            expected[place(found.outcome())] += 1;
        }
        assert_eq!(counted(&rows), expected);
    }
}

#[tokio::test]
async fn what_is_no_read_counts_not_at_all() {
    for (store, _) in engines().await {
        let rows = rows(&store).await;
        rows.refresh(&1, load).await.unwrap();
        let (one, two) = tokio::join!(rows.refresh(&1, load), rows.refresh(&2, load));
        one.unwrap();
        two.unwrap();
        rows.refresh(&1, fail).await.unwrap_err();
        let report = rows.warm(1..=300, load_all).await;
        assert_eq!((report.present, report.loaded), (2, 298));
        assert_eq!(rows.warm(1..=300, load_all).await.present, 300);
        assert_eq!(rows.warm(301..=500, fail_all).await.failed, 200);
        let known = async |key| Ok::<_, io::Error>(Some(name(key)));
        assert_eq!(rows.verify(&1, known).await.unwrap(), Verified::InSync);
        let unknown = rows.verify(&600, known).await.unwrap();
        assert_eq!(unknown, Verified::NotCached);
        rows.put(&1, name(1)).await.unwrap();
        rows.put_many([(2, name(2)), (3, name(3))]).await.unwrap();
        rows.remove(&1).await;
        rows.remove(&700).await;
        let tag = Target::tag(Tag::new("row", 1_u64));
        rows.group().invalidate([tag]).await;
        rows.group().clear().await;
        assert_eq!(counted(&rows), [0; 6]);
    }
}

#[tokio::test]
async fn a_load_behind_a_read_is_none() {
    for (store, clock) in engines().await {
        let (near, far) = (rows(&store).await, rows(&store).await);
        near.get_or_load(&1, load).await.unwrap();
        assert_eq!(counted(&near), [0, 0, 0, 0, 1, 0]);
        clock.advance(60 * SECOND);
        // Due here.
        near.get_or_load(&1, load).await.unwrap();
        let mut reads = 1 + until_young(&near, 1).await;
        assert_eq!(counted(&near), [reads, 0, 0, 0, 1, 0]);
        clock.advance(60 * SECOND);
        near.get_many_or_load(&[1, 1], load_all).await.unwrap();
        reads += 1 + until_young(&near, 1).await;
        assert_eq!(counted(&near), [reads, 0, 0, 0, 1, 0]);
        clock.advance(60 * SECOND);
        by(&near, 1).await;
        reads += 1 + until_young(&near, 1).await;
        assert_eq!(counted(&near), [reads, 0, 0, 0, 1, 0]);
        // Due in the store.
        clock.advance(60 * SECOND);
        far.get_or_load(&1, load).await.unwrap();
        let reads = until_young(&far, 1).await;
        assert_eq!(counted(&far), [reads, 1, 0, 0, 0, 0]);
        let third = rows(&store).await;
        clock.advance(60 * SECOND);
        third.get_many_or_load(&[1], load_all).await.unwrap();
        let reads = until_young(&third, 1).await;
        assert_eq!(counted(&third), [reads, 1, 0, 0, 0, 0]);
    }
}

#[tokio::test]
async fn a_stale_answer_counts_as_that_alone() {
    for (store, clock) in engines().await {
        let rows = rows(&store).await;
        rows.put_many((1..=6).map(|key| (key, name(key))))
            .await
            .unwrap();
        clock.advance(150 * SECOND);
        let read = rows.get_or_load(&1, fail).await.unwrap();
        assert_eq!(read.outcome(), CacheOutcome::Stale);
        assert_eq!(counted(&rows), [0, 0, 0, 1, 0, 0]);
        // Without a load, since the last one failed.
        rows.get_or_load(&1, load).await.unwrap();
        rows.get_many_or_load(&[1], load_all).await.unwrap();
        assert_eq!(counted(&rows), [0, 0, 0, 3, 0, 0]);
        rows.get_many_or_load(&[2, 3], fail_all).await.unwrap();
        assert_eq!(counted(&rows), [0, 0, 0, 5, 0, 0]);
        let (one, two) = tokio::join!(rows.get_or_load(&4, fail), rows.get_or_load(&4, fail));
        one.unwrap();
        two.unwrap();
        assert_eq!(counted(&rows), [0, 0, 0, 7, 0, 0]);
        // The loader outlasts the soft timeout, and goes on.
        let gate = Arc::new(Semaphore::new(0));
        let gated = Arc::clone(&gate);
        let slow = move |key| async move {
            let _ = gated.acquire().await;
            load(key).await
        };
        let read = rows.get_or_load(&5, slow).await.unwrap();
        assert_eq!(read.outcome(), CacheOutcome::Stale);
        gate.add_permits(1);
        let patient = async {
            let mut reads = [0, 0, 0, 8, 0, 0];
            // Whoever never loads finds what is stale not at all.
            while rows.get(&5).await.unwrap().is_none() {
                reads[4] += 1;
                tokio::time::sleep(MILLIS).await;
            }
            reads[0] += 1;
            reads
        };
        let mut reads = tokio::time::timeout(MINUTE, patient).await.unwrap();
        assert_eq!(counted(&rows), reads);
        // What is loaded in its place was a miss.
        let read = rows.get_many_or_load(&[6], |keys| async move {
            tokio::task::yield_now().await;
            load_all(keys).await
        });
        reads[place(read.await.unwrap()[0].as_ref().unwrap().outcome())] += 1;
        assert_eq!(counted(&rows), reads);
    }
}

#[tokio::test]
async fn a_read_whose_load_fails_is_a_miss_for_each_who_asked() {
    for (store, _) in engines().await {
        let rows = rows(&store).await;
        rows.get_or_load(&1, fail).await.unwrap_err();
        let lost = |_| async { panic!("on purpose") as io::Result<String> };
        rows.get_or_load(&2, lost).await.unwrap_err();
        let (one, two) = tokio::join!(rows.get_or_load(&3, fail), rows.get_or_load(&3, fail));
        one.unwrap_err();
        two.unwrap_err();
        assert_eq!(counted(&rows), [0, 0, 0, 0, 4, 0]);
        let keys: Vec<u64> = (1..=20).collect();
        rows.get_many_or_load(&keys, fail_all).await.unwrap_err();
        assert_eq!(counted(&rows), [0, 0, 0, 0, 24, 0]);
        let lost = || async { Err::<(u64, String), _>(io::Error::other("on purpose")) };
        let read = rows.get_or_load_by([("name", "n1".into_key())], lost);
        read.await.unwrap_err();
        assert_eq!(counted(&rows), [0, 0, 0, 0, 25, 0]);
    }
}

#[tokio::test]
async fn a_read_that_cannot_ask_the_store_counts_as_that_alone() {
    for (store, _) in engines().await {
        let faults = Faults::default();
        let store: Store = Arc::new(FaultStore::new(store, &faults));
        let rows = rows(&store).await;
        rows.put(&1, name(1)).await.unwrap();
        faults.cut();
        rows.get(&1).await.unwrap_err();
        rows.get_many(&[1, 2, 2]).await.unwrap_err();
        assert_eq!(counted(&rows), [0, 0, 0, 0, 0, 3]);
        let keys: Vec<u64> = (1..=1_100).collect();
        rows.get_many(&keys).await.unwrap_err();
        assert_eq!(counted(&rows), [0, 0, 0, 0, 0, 1_103]);
        rows.get_by("name", "n1").await.unwrap_err();
        rows.get_or_load(&3, load).await.unwrap();
        rows.find_or_load(&4, find_none).await.unwrap();
        rows.get_or_load(&5, fail).await.unwrap_err();
        rows.get_many_or_load(&[6, 7, 7], load_all).await.unwrap();
        by(&rows, 8).await;
        assert_eq!(counted(&rows), [0, 0, 0, 0, 0, 1_110]);
        rows.refresh(&9, load).await.unwrap();
        assert_eq!(rows.warm(10..=20, load_all).await.failed, 11);
        rows.put(&21, name(21)).await.unwrap_err();
        rows.remove(&22).await;
        assert_eq!(counted(&rows), [0, 0, 0, 0, 0, 1_110]);
    }
}

#[tokio::test]
async fn warming_and_refreshing_leave_a_cache_healthy() {
    for (store, _) in engines().await {
        let rows = rows(&store).await;
        let health = Health::new().check("rows", rows.clone());
        rows.warm(0..2_000, load_all).await;
        for key in 0..20 {
            rows.refresh(&key, load).await.unwrap();
        }
        assert_eq!(health.report().await.status, HealthStatus::Healthy);
        for key in (0..2_000).chain(0..2_000) {
            rows.get(&key).await.unwrap().unwrap();
        }
        assert_eq!(rows.stats().hit_rate(), Some(4_000.0 / 4_001.0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_crowd_the_counts_are_what_was_answered() {
    for (store, clock) in engines().await {
        let caches = [rows(&store).await, rows(&store).await];
        let crowd = (0..8_u64).map(|who| {
            let (rows, clock) = (caches[who as usize % 2].clone(), clock.clone());
            tokio::spawn(async move {
                let mut seen = [0_u64; 6];
                for step in 0..60_u64 {
                    let key = (who * 7 + step * 13) % 5;
                    let answers: Vec<Option<Cached<String>>> = match (who + step) % 6 {
                        0 => rows
                            .get_many(&[key, key, key + 1])
                            .await
                            .unwrap()
                            .split_off(1),
                        1 => vec![rows.get(&key).await.unwrap()],
                        2 => {
                            clock.advance(7 * SECOND);
                            rows.remove(&key).await;
                            vec![
                                rows.find_or_load(&key, |_| async {
                                    tokio::task::yield_now().await;
                                    Ok::<_, io::Error>(None::<String>)
                                })
                                .await
                                .unwrap(),
                            ]
                        }
                        3 => rows
                            .get_many_or_load(&[key, key + 1], load_all)
                            .await
                            .unwrap(),
                        4 => {
                            rows.refresh(&(key + 1), load).await.unwrap();
                            vec![Some(by(&rows, key).await)]
                        }
                        _ => vec![Some(rows.get_or_load(&key, load).await.unwrap())],
                    };
                    for answer in answers {
                        // An absence or a miss: both below.
                        seen[answer.map_or(2, |found| place(found.outcome()))] += 1;
                    }
                }
                (who, seen)
            })
        });
        let mut seen = [[0_u64; 6]; 2];
        for one in crowd.collect::<Vec<_>>() {
            let (who, counts) = one.await.unwrap();
            for (all, count) in seen[who as usize % 2].iter_mut().zip(counts) {
                *all += count;
            }
        }
        for (rows, seen) in caches.iter().zip(seen) {
            let counted = counted(rows);
            for at in [0, 1, 3, 5] {
                assert_eq!(counted[at], seen[at], "{counted:?} {seen:?}");
            }
            assert_eq!(counted[2] + counted[4], seen[2] + seen[4], "{counted:?}");
        }
    }
}
