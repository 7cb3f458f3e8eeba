//! Numbers that hold where nobody sets others, each to its last millisecond, and bounds to the last one that is taken.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower_keep::backend::fault::{FaultStore, Faults};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Clock, IntoKey, ManualClock, Timestamp};
use tower_keep::data::DataErrorKind;
use tower_keep::data::cache::{
    Cache, CacheOutcome, InvalidateOutcome, LoadError, Local, Tag, Target,
};
use tower_keep::data::counter::{Bucket, Counter};
use tower_keep::data::lock::{Lock, LockError};
use tower_keep::data::once::{Expect, Once, Progress, SaveOutcome};
use tower_keep::ttl::{self, Lifetime, Ttl};
use tower_keep::{DAY, HOUR, MILLIS, MINUTE, SECOND};

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap())
}

fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

/// Goes with the runtime's own time, which a test may pause.
#[derive(Debug)]
struct Runtime(Instant);

impl Clock for Runtime {
    fn now_micros(&self) -> u64 {
        1_900_000_000_000_000 + self.0.elapsed().as_micros() as u64
    }
}

fn paused() -> MemoryStore {
    MemoryStore::builder()
        .clock(Runtime(Instant::now()))
        .build()
}

/// Says that so much of the runtime's own time has passed; its timers have whole milliseconds.
#[track_caller]
fn passed(since: Instant, expected: Duration) {
    let passed = since.elapsed();
    let latest = expected + 3 * MILLIS;
    assert!((expected..=latest).contains(&passed), "{passed:?}");
}

type Never = Result<u64, io::Error>;

#[tokio::test]
async fn an_absence_is_remembered_no_longer_than_a_value_would_be() {
    for bounds in [Local::default(), Local::off()] {
        let clock = clock();
        let rows: Cache<u64, u64> = Cache::new(memory(&clock), "row", Ttl::secs(10))
            .missing_for(MINUTE)
            .local(bounds);
        let none = |_| async { Ok::<_, io::Error>(None::<u64>) };
        assert!(rows.find_or_load(&1, none).await.unwrap().is_none());
        clock.advance(10 * SECOND - MILLIS);
        assert!(rows.find_or_load(&1, none).await.unwrap().is_none());
        assert_eq!(rows.stats().loads, 1);
        clock.advance(MILLIS);
        assert!(rows.find_or_load(&1, none).await.unwrap().is_none());
        assert_eq!(rows.stats().loads, 2);
    }
}

#[tokio::test]
async fn after_a_load_that_failed_none_is_tried_for_the_shorter_of_30_seconds_and_the_ttl() {
    for (ttl, pause) in [(600, 30), (31, 30), (7, 7)] {
        let clock = clock();
        let life = Lifetime::new(Ttl::secs(ttl)).jitter(0);
        let rows: Cache<u64, u64> =
            Cache::new(memory(&clock), "row", life.stale_for(Ttl::hours(1))).local(Local::off());
        rows.put(&1, 1).await.unwrap();
        clock.advance(Duration::from_secs(ttl));
        let failing = |_| async { Never::Err(io::Error::other("no")) };
        let mut loads = Vec::new();
        for step in [Duration::ZERO, pause * SECOND - MILLIS, MILLIS] {
            clock.advance(step);
            let row = rows.get_or_load(&1, failing).await.unwrap();
            assert_eq!((*row, row.outcome()), (1, CacheOutcome::Stale));
            loads.push(rows.stats().loads);
        }
        assert_eq!(loads, [1, 1, 2], "ttl {ttl} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_load_is_waited_for_half_a_second_beside_a_stale_value_and_ten_without() {
    let clock = clock();
    let life = Lifetime::new(Ttl::secs(10)).stale_for(Ttl::hours(1));
    let rows: Cache<u64, u64> = Cache::new(memory(&clock), "row", life).local(Local::off());
    rows.put(&1, 1).await.unwrap();
    clock.advance(10 * SECOND);
    let hangs = |_| std::future::pending::<Never>();
    let began = Instant::now();
    let row = rows.get_or_load(&1, hangs).await.unwrap();
    assert_eq!((*row, row.outcome()), (1, CacheOutcome::Stale));
    passed(began, SECOND / 2);
    let began = Instant::now();
    let hung = rows.get_or_load(&2, hangs).await;
    assert!(matches!(hung, Err(LoadError::TimedOut)));
    passed(began, 10 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_load_of_another_process_is_waited_for_one_second_then_taken_over() {
    let store = MemoryStore::new();
    let named = || -> Cache<u64, u64> {
        let rows = Cache::new(store.clone(), "row", ttl::USER).load_timeout(MINUTE, HOUR);
        rows.alias("name", |value: &u64| Some(*value))
    };
    let (theirs, ours) = (named(), named());
    let name = || [("name", 7_u64.into_key())];
    // Loads that never end.
    let entered = Arc::new(Semaphore::new(0));
    let hang = || {
        let entered = Arc::clone(&entered);
        async move {
            entered.add_permits(1);
            std::future::pending::<()>().await;
        }
    };
    let (own, inside) = (theirs.clone(), hang());
    let one = tokio::spawn(async move {
        let load = |_| async move {
            inside.await;
            Never::Ok(0)
        };
        own.get_or_load(&1, load).await.is_ok()
    });
    let (own, inside) = (theirs.clone(), hang());
    let many = tokio::spawn(async move {
        let load = |_| async move {
            inside.await;
            Ok::<_, io::Error>(vec![(2, 0_u64)])
        };
        own.get_many_or_load(&[2, 3], load).await.is_ok()
    });
    let (own, inside) = (theirs.clone(), hang());
    let by = tokio::spawn(async move {
        let load = || async move {
            inside.await;
            Ok::<_, io::Error>((7, 0_u64))
        };
        own.get_or_load_by(name(), load).await.is_ok()
    });
    drop(entered.acquire_many(3).await.unwrap());
    let began = Instant::now();
    let load = |_| async { Never::Ok(10) };
    assert_eq!(*ours.get_or_load(&1, load).await.unwrap(), 10);
    passed(began, SECOND);
    let began = Instant::now();
    let load = |keys: Vec<u64>| async move {
        let rows: Vec<(u64, u64)> = keys.into_iter().map(|key| (key, 10 * key)).collect();
        Ok::<_, io::Error>(rows)
    };
    let rows = ours.get_many_or_load(&[2, 3], load).await.unwrap();
    let rows: Vec<u64> = rows.into_iter().map(|row| *row.unwrap()).collect();
    assert_eq!(rows, [20, 30]);
    passed(began, SECOND);
    let began = Instant::now();
    let load = || async { Ok::<_, io::Error>((7_u64, 7_u64)) };
    assert_eq!(*ours.get_or_load_by(name(), load).await.unwrap(), 7);
    passed(began, SECOND);
    for theirs in [one, many, by] {
        theirs.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_ten_thousand_targets_that_are_kept_back_are_the_whole_group() {
    for (targets, is_all) in [(10_000_u64, false), (10_001, true)] {
        let (store, faults) = (MemoryStore::new(), Faults::default());
        let line = FaultStore::new(store.clone(), &faults);
        let near: Cache<u64, u64> = Cache::new(line, "row", ttl::USER);
        let far: Cache<u64, u64> = Cache::new(store, "row", ttl::USER).local(Local::off());
        far.put_many([(0, 1), (99_999, 1)]).await.unwrap();
        faults.cut();
        let removed = (0..targets).map(|key| near.target(&key));
        let told = near.group().invalidate(removed).await;
        assert_eq!(told, InvalidateOutcome::Queued);
        assert!(far.contains(&0).await.unwrap(), "the store cannot know yet");
        faults.mend();
        let told = async {
            while far.contains(&0).await.unwrap() {
                tokio::time::sleep(100 * MILLIS).await;
                // An open breaker goes by the real time, and the runtime's own runs ahead of it.
                std::thread::sleep(MILLIS);
            }
        };
        let told = tokio::time::timeout(10 * MINUTE, told).await;
        told.expect("it is told of the first one");
        // All of it, also what is told last.
        tokio::time::sleep(MINUTE).await;
        let is_gone = !far.contains(&99_999).await.unwrap();
        assert_eq!(is_gone, is_all, "{targets} targets");
    }
}

#[tokio::test]
async fn of_seventeen_tags_the_sixteenth_counts_and_the_last_does_not() {
    let store = MemoryStore::new();
    let rows: Cache<u64, u64> = Cache::new(store.clone(), "row", ttl::USER)
        .tag_with(|_, _| (1..=17_u64).map(|number| Tag::new("n", number)));
    let others: Cache<u64, u64> = Cache::new(store, "row", ttl::USER).local(Local::off());
    rows.put(&1, 1).await.unwrap();
    let drop_tag = async |number: u64| {
        rows.group()
            .invalidate([Target::tag(Tag::new("n", number))])
            .await;
    };
    drop_tag(17).await;
    assert!(rows.contains(&1).await.unwrap() && others.contains(&1).await.unwrap());
    drop_tag(16).await;
    assert!(!rows.contains(&1).await.unwrap() && !others.contains(&1).await.unwrap());
}

#[test]
fn a_cache_has_four_secondary_keys_and_a_fifth_is_refused_where_it_is_built() {
    let named = |number: usize| {
        let rows: Cache<u64, u64> = Cache::new(MemoryStore::new(), "row", ttl::USER);
        let names = ["a", "b", "c", "d", "e"].into_iter().take(number);
        names.fold(rows, |rows, name| {
            rows.alias(name, |value: &u64| Some(*value))
        })
    };
    drop(named(4));
    assert!(std::panic::catch_unwind(|| named(5)).is_err());
}

#[tokio::test]
async fn a_lock_is_leased_for_thirty_seconds() {
    let clock = clock();
    let locks = Lock::new(memory(&clock), "l");
    let _held = locks.try_acquire("k").await.unwrap();
    let busy = locks.try_acquire("k").await.unwrap_err();
    assert!(
        matches!(busy, LockError::Busy { retry_after: 30 }),
        "{busy:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_held_for_ten_minutes_and_no_longer() {
    let locks = Lock::new(paused(), "l");
    let began = Instant::now();
    let held = locks.try_acquire("k").await.unwrap();
    held.lost().await;
    // The holder gives up a hundredth of its last lease, and a breath.
    let over = began.elapsed();
    assert!(
        over <= 10 * MINUTE && over > 10 * MINUTE - SECOND,
        "{over:?}"
    );
}

#[tokio::test]
async fn a_token_has_sixteen_bytes_at_least() {
    let states: Once<u8> = Once::new(MemoryStore::new(), "oauth", ttl::OAUTH_STATE);
    let weak = states.put("x".repeat(15), &1).await.unwrap_err();
    assert!(matches!(weak.kind(), DataErrorKind::WeakToken), "{weak:?}");
    states.put("x".repeat(16), &1).await.unwrap();
    assert!(states.take("x".repeat(16)).await.unwrap().is_some());
}

#[tokio::test]
async fn progress_is_over_seven_days_after_its_first_save_however_often_it_was_saved_since() {
    let clock = clock();
    let forms: Progress<u8> = Progress::new(memory(&clock), "form", ttl::FORM_PROGRESS);
    for version in 1..=14 {
        let saved = forms.save("k", &1, Expect::Any).await.unwrap();
        assert_eq!(saved, SaveOutcome::Saved { version });
        let last = if version == 14 {
            MILLIS
        } else {
            Duration::ZERO
        };
        clock.advance(DAY / 2 - last);
    }
    assert!(forms.load("k").await.unwrap().is_some());
    clock.advance(MILLIS);
    assert!(forms.load("k").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_added_is_kept_back_for_a_second() {
    let metrics = Counter::new(MemoryStore::new(), "metrics");
    metrics.add("hits", 1, ttl::METRIC).unwrap();
    tokio::time::sleep(SECOND - 2 * MILLIS).await;
    assert_eq!(metrics.value("hits").await.unwrap(), 0);
    tokio::time::sleep(4 * MILLIS).await;
    assert_eq!(metrics.value("hits").await.unwrap(), 1);
}

#[tokio::test]
async fn a_series_keeps_120_minutes_48_hours_and_400_days() {
    for (bucket, width, kept) in [
        (Bucket::MINUTE, MINUTE, 120),
        (Bucket::HOUR, HOUR, 48),
        (Bucket::DAY, DAY, 400),
    ] {
        let clock = clock();
        let visits = Counter::new(memory(&clock), "m").series("visits", [bucket]);
        visits.incr("home", 1).await.unwrap();
        let begin = Timestamp::of(&clock);
        let seen = async || {
            let points = visits.range("home", bucket, begin..begin + SECOND).await;
            points.unwrap().iter().map(|point| point.count).sum::<i64>()
        };
        clock.advance(width + kept * width - MILLIS);
        assert_eq!(seen().await, 1, "{bucket:?}");
        clock.advance(MILLIS);
        assert_eq!(seen().await, 0, "{bucket:?}");
    }
    for wrong in [0, 1_001] {
        assert!(std::panic::catch_unwind(|| Bucket::DAY.keep(wrong)).is_err());
    }
    assert_eq!(
        [1, 1_000].map(|keep| Bucket::DAY.keep(keep).kept()),
        [1, 1_000]
    );
}
