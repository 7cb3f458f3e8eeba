//! What data services measure and log, and that no key, token or value is in it.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tower_keep::backend::fault::{FaultStore, Faults};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::ManualClock;
use tower_keep::data::cache::{Cache, Tag, Target};
use tower_keep::data::counter::Counter;
use tower_keep::data::health::Health;
use tower_keep::data::lock::Lock;
use tower_keep::data::once::{Expect, Once, Progress};
use tower_keep::data::queue::{Batch, Digest, Job, JobError, Queue, Retry};
use tower_keep::data::topic::{Event, Topic};
use tower_keep::ttl::Ttl;
use tower_keep::{MILLIS, MINUTE, SECOND, ttl};
use tracing_subscriber::util::SubscriberInitExt;

use crate::rate_limit::metered::Metered;
use crate::support::Proxy;
use crate::support::redis::{RedisServer, fresh_prefix, shared};

#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    pub fn start() -> (Self, impl Sized) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, subscriber.set_default())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

async fn use_all(store: RedisStore) {
    let users: Cache<String, String> = Cache::new(store.clone(), "user", ttl::USER)
        .tag_with(|id, _| [Tag::new("user", id)])
        .alias("email", |value: &String| Some(value.clone()));
    let key = "secret-key".to_owned();
    let load = |_| async { Ok::<_, io::Error>("secret-value".to_owned()) };
    users.get_or_load(&key, load).await.unwrap();
    users.get_or_load(&key, load).await.unwrap();
    users.get_by("email", "secret-value").await.unwrap();
    users.get(&"secret-other".to_owned()).await.unwrap();
    let failing = |_| async { Err::<String, _>(io::Error::other("secret-error")) };
    users
        .get_or_load(&"secret-other".to_owned(), failing)
        .await
        .unwrap_err();
    let tag = Target::tag(Tag::new("user", "secret-key"));
    users.group().invalidate([tag]).await;
    let metrics = Counter::new(store.clone(), "metrics");
    metrics.incr("secret-key", 1, ttl::METRIC).await.unwrap();
    let states: Once<String> = Once::new(store.clone(), "oauth", ttl::OAUTH_STATE);
    let token = "secret-token-0123456789";
    states.put(token, &"secret-value".to_owned()).await.unwrap();
    states.take(token).await.unwrap();
    states.take(token).await.unwrap();
    let payments = Lock::new(store.clone(), "payment");
    let guard = payments.try_acquire("secret-key").await.unwrap();
    payments.try_acquire("secret-key").await.unwrap_err();
    guard.release().await.unwrap();
    let topic: Topic<String> = Topic::new(store.clone(), "expert");
    let mut feed = topic.subscribe("secret-key").await.unwrap();
    topic
        .publish("secret-key", &"secret-value".to_owned())
        .await
        .unwrap();
    feed.next().await.unwrap();
    let notices: Queue<String> = Queue::new(store, "notifications");
    let job = || Job::to("secret-user", "secret-value".to_owned()).once("secret-event");
    notices.enqueue(job()).await.unwrap();
    notices.enqueue(job()).await.unwrap();
    let worker = notices.worker(|_: Batch<String>| async { Ok::<(), JobError>(()) });
    worker.run_until_idle().await.unwrap();
}

#[tokio::test]
async fn what_is_counted_and_logged_names_services_and_nobody() {
    let (metered, (log, _logging)) = (Metered::start(), Log::start());
    use_all(shared().await.store_with(&fresh_prefix()).await).await;
    for (name, count) in [
        ("keep_cache_reads_total{cache=user.user,result=local}", 2),
        ("keep_cache_reads_total{cache=user.user,result=miss}", 3),
        ("keep_cache_loads_total{cache=user.user,result=ok}", 1),
        ("keep_cache_loads_total{cache=user.user,result=error}", 1),
        ("keep_cache_load_seconds{cache=user.user}", 2),
        (
            "keep_cache_invalidations_total{group=user,kind=tag,result=done}",
            1,
        ),
        ("keep_store_op_seconds{op=cache.invalidate}", 1),
        ("keep_store_op_seconds{op=lock.release}", 1),
        ("keep_store_op_seconds{op=queue.ack}", 1),
        ("keep_lock_held_seconds{lock=payment}", 1),
        ("keep_queue_run_seconds{queue=notifications}", 1),
        ("keep_cache_local_entries{cache=user.user}", 1),
        ("keep_counter_ops_total{counter=metrics}", 1),
        ("keep_once_total{name=oauth,result=stored}", 1),
        ("keep_once_total{name=oauth,result=taken}", 1),
        ("keep_once_total{name=oauth,result=unknown}", 1),
        ("keep_lock_acquired_total{lock=payment}", 1),
        ("keep_lock_busy_total{lock=payment}", 1),
        ("keep_topic_published_total{topic=expert}", 1),
        ("keep_topic_delivered_total{topic=expert}", 1),
        ("keep_queue_jobs_total{event=new,queue=notifications}", 1),
        (
            "keep_queue_jobs_total{event=duplicate,queue=notifications}",
            1,
        ),
        ("keep_queue_jobs_total{event=leased,queue=notifications}", 1),
        ("keep_queue_jobs_total{event=acked,queue=notifications}", 1),
    ] {
        assert_eq!(metered.counter(name), count, "{name}: {}", metered.scrape());
    }
    let (scrape, log) = (metered.scrape(), log.text());
    assert!(!scrape.contains("secret"), "{scrape}");
    assert!(log.contains("a load failed"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test]
async fn reads_are_counted_where_the_recorder_of_the_moment_counts() {
    let users: Cache<u64, u64> = Cache::new(MemoryStore::new(), "user", ttl::USER);
    let read = || users.get_or_load(&7, |_| async { Ok::<_, io::Error>(49_u64) });
    read().await.unwrap();
    read().await.unwrap();
    for reads in [1, 2] {
        let metered = Metered::start();
        for _ in 0..reads {
            read().await.unwrap();
        }
        let name = "keep_cache_reads_total{cache=user.user,result=local}";
        assert_eq!(metered.counter(name), reads, "{}", metered.scrape());
    }
}

#[tokio::test]
async fn an_outage_is_counted_and_told_without_a_secret() {
    let (metered, (log, _logging)) = (Metered::start(), Log::start());
    let mut server = RedisServer::start().await;
    let store = RedisStore::builder(&server.url()).timeout(100 * MILLIS);
    let store = store.open().await.unwrap();
    let users: Cache<String, String> = Cache::new(store.clone(), "user", ttl::USER);
    let health = Health::new()
        .check("store", store)
        .check("memory", MemoryStore::new());
    server.kill();
    for _ in 0..8 {
        users.remove(&"secret-key".to_owned()).await;
    }
    let load = |_| async { Ok::<_, io::Error>("secret-value".to_owned()) };
    users
        .get_or_load(&"secret-key".to_owned(), load)
        .await
        .unwrap();
    health.report().await;
    let queued = "keep_cache_invalidations_total{group=user,kind=key,result=queued}";
    assert_eq!(metered.counter(queued), 8);
    assert!(metered.counter("keep_store_errors_total") >= 5);
    assert!(metered.counter("keep_store_fallback_total") >= 1);
    let status = |part: &str| metered.value(&format!("keep_health_status{{check={part}}}"));
    assert_eq!((status("store"), status("memory")), (Some(2.0), Some(0.0)));
    let bypassed = "keep_cache_reads_total{cache=user.user,result=bypass}";
    assert_eq!(metered.counter(bypassed), 1);
    let (scrape, log) = (metered.scrape(), log.text());
    assert!(log.contains("an invalidation is queued"), "{log}");
    assert!(
        !log.contains("secret") && !scrape.contains("secret"),
        "{log}"
    );
}

#[tokio::test]
async fn one_name_for_two_kinds_of_values_is_told_once() {
    let (metered, (log, _logging)) = (Metered::start(), Log::start());
    let store = MemoryStore::new();
    let numbers = || Cache::<u8, u64>::new(store.clone(), "user", ttl::USER);
    let texts = Cache::<u8, String>::new(store.clone(), "user", ttl::USER);
    for cache in [numbers(), numbers()] {
        cache.get(&1).await.unwrap();
    }
    let conflicts = || metered.counter("keep_name_conflicts_total{name=user.user,service=cache}");
    assert_eq!(conflicts(), 0);
    texts.get(&1).await.unwrap();
    texts.get(&1).await.unwrap();
    assert_eq!(conflicts(), 1);
    assert_eq!(log.text().matches("keeps other values").count(), 1);
}

#[tokio::test]
async fn one_name_for_two_kinds_is_told_by_every_service_that_keeps_values() {
    let (metered, (log, _logging)) = (Metered::start(), Log::start());
    let redis = shared().await.store_with(&fresh_prefix()).await;
    let store = tower_keep::backend::fallback::Fallback::new(redis, MemoryStore::new());
    let conflicts = |service: &str| {
        metered.counter(&format!(
            "keep_name_conflicts_total{{name=n,service={service}}}"
        ))
    };
    for _ in 0..2 {
        let _same: Once<u8> = Once::new(store.clone(), "n", Ttl::secs(60));
        let _same: Progress<u8> = Progress::new(store.clone(), "n", Ttl::secs(60));
        let _same: Queue<u8> = Queue::new(store.clone(), "n");
        let _same: Topic<u8> = Topic::new(store.clone(), "n");
    }
    let all = ["once", "progress", "queue", "topic"];
    assert_eq!(all.map(conflicts), [0; 4]);
    for _ in 0..2 {
        let _longer: Once<u8> = Once::new(store.clone(), "n", Ttl::secs(61));
        let _other: Progress<u16> = Progress::new(store.clone(), "n", Ttl::secs(60));
        let _other: Queue<u16> = Queue::new(store.clone(), "n");
        let _other: Topic<u16> = Topic::new(store.clone(), "n");
    }
    assert_eq!(all.map(conflicts), [1; 4]);
    assert_eq!(log.text().matches("keeps other values").count(), 4);
}

#[tokio::test]
async fn what_goes_wrong_has_a_number_too() {
    let metered = Metered::start();
    let store = MemoryStore::new();
    // A fill that an invalidation overtook, and a record of another schema; an absence that is remembered.
    let users: Cache<u8, u8> = Cache::new(store.clone(), "user", ttl::USER);
    let overtaken = users.clone();
    let load = |_| async move {
        overtaken.remove(&1).await;
        Ok::<_, io::Error>(1)
    };
    users.get_or_load(&1, load).await.unwrap();
    users.put(&2, 2).await.unwrap();
    let other: Cache<u8, u8> = Cache::new(store.clone(), "user", ttl::USER).schema(1);
    assert!(other.get(&2).await.unwrap().is_none());
    for _ in 0..2 {
        let nothing = |_| async { Ok::<_, io::Error>(None::<u8>) };
        assert!(users.find_or_load(&3, nothing).await.unwrap().is_none());
    }
    // Counts that wait, jobs that wait, fail and die, a lock that is lost, a reader that missed something.
    let metrics = Counter::new(store.clone(), "metrics").flush_every(60 * SECOND);
    metrics.add("a", 1, ttl::METRIC).unwrap();
    metrics.flush().await.unwrap();
    let jobs: Queue<u8> = Queue::new(store.clone(), "jobs");
    for number in 0..2 {
        jobs.enqueue(Job::to("u1", number)).await.unwrap();
    }
    let worker = jobs.worker(|_: Batch<u8>| async { Err::<(), _>(JobError::dead("never")) });
    worker.run_until_idle().await.unwrap();
    jobs.enqueue(Job::to("u1", 2)).await.unwrap();
    jobs.enqueue(Job::to("u1", 3).after(60 * SECOND))
        .await
        .unwrap();
    jobs.depth().await.unwrap();
    let lock = Lock::new(store.clone(), "payment").hold_at_most(20 * MILLIS);
    let guard = lock.acquire("k", SECOND).await.unwrap();
    guard.lost().await;
    drop(guard);
    let topic: Topic<u8> = Topic::new(store.clone(), "expert").retain(1, SECOND);
    let first = topic.publish("k", &1).await.unwrap();
    for number in 2..5 {
        topic.publish("k", &number).await.unwrap();
    }
    let mut feed = topic.subscribe_after("k", first).await.unwrap();
    assert!(matches!(feed.next().await, Some(Event::Gap { .. })));
    for (name, count) in [
        ("keep_cache_fills_refused_total{cache=user.user}", 1.0),
        ("keep_cache_undecodable_total{cache=user.user}", 1.0),
        ("keep_cache_reads_total{cache=user.user,result=absent}", 1.0),
        ("keep_counter_buffered{counter=metrics}", 1.0),
        ("keep_queue_jobs_total{event=dead,queue=jobs}", 2.0),
        ("keep_queue_dead{queue=jobs}", 2.0),
        ("keep_queue_ready{queue=jobs}", 1.0),
        ("keep_queue_delayed{queue=jobs}", 1.0),
        ("keep_queue_leased{queue=jobs}", 0.0),
        ("keep_lock_lost_total{lock=payment}", 1.0),
        ("keep_lock_wait_seconds{lock=payment}", 1.0),
        ("keep_topic_gaps_total{topic=expert}", 1.0),
        ("keep_topic_subscribers{topic=expert}", 1.0),
    ] {
        assert_eq!(
            metered.value(name),
            Some(count),
            "{name}: {}",
            metered.scrape()
        );
    }
    assert!(
        metered
            .value("keep_queue_lag_seconds{queue=jobs}")
            .is_some()
    );
    assert!(
        metered
            .value("keep_cache_local_bytes{cache=user.user}")
            .is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn loads_that_are_joined_hang_or_panic_are_counted_as_what_they_are() {
    let metered = Metered::start();
    let users: Cache<u8, u8> = Cache::new(MemoryStore::new(), "user", ttl::USER);
    let hangs = |_| std::future::pending::<Result<u8, io::Error>>();
    let both = tokio::join!(users.get_or_load(&1, hangs), users.get_or_load(&1, hangs));
    assert!(both.0.is_err() && both.1.is_err());
    let panics = |_| async { Ok::<_, io::Error>("no number".parse::<u8>().unwrap()) };
    users.get_or_load(&2, panics).await.unwrap_err();
    for (result, count) in [
        ("joined", 1),
        ("timeout", 1),
        ("panic", 1),
        ("error", 0),
        ("ok", 0),
    ] {
        let name = format!("keep_cache_loads_total{{cache=user.user,result={result}}}");
        assert_eq!(metered.counter(&name), count, "{}", metered.scrape());
    }
}

#[tokio::test]
async fn jobs_that_join_come_again_run_out_or_are_acked_too_late_are_counted() {
    let metered = Metered::start();
    let clock = ManualClock::at("2030-01-01T00:00:00Z".parse().unwrap());
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let of = |name| Queue::<u8>::new(store.clone(), name).expire_after(10 * MINUTE);
    let digests = of("digests");
    for item in 0..3 {
        let job = Job::to("u1", item).digest("d", Digest::window(MINUTE));
        digests.enqueue(job).await.unwrap();
    }
    let again = of("again");
    again.enqueue(Job::to("u1", 1)).await.unwrap();
    let batch = again.lease(1).await.unwrap().unwrap();
    let _ = again.nack(&batch.jobs[0], Retry::Backoff).await.unwrap();
    let late = of("late");
    late.enqueue(Job::to("u1", 1)).await.unwrap();
    let batch = late.lease(1).await.unwrap().unwrap();
    clock.advance(31 * SECOND);
    let _ = late.ack(&batch).await.unwrap();
    let old = of("old");
    old.enqueue(Job::to("u1", 1)).await.unwrap();
    clock.advance(10 * MINUTE);
    assert!(old.lease(1).await.unwrap().is_none());
    for (event, queue, count) in [
        ("new", "digests", 1),
        ("joined", "digests", 2),
        ("retried", "again", 1),
        ("lost_lease", "late", 1),
        ("expired", "old", 1),
    ] {
        let name = format!("keep_queue_jobs_total{{event={event},queue={queue}}}");
        assert_eq!(
            metered.counter(&name),
            count,
            "{name}: {}",
            metered.scrape()
        );
    }
}

#[tokio::test]
async fn a_link_that_is_lost_and_counts_that_never_arrive_have_a_number() {
    let metered = Metered::start();
    let server = RedisServer::start().await;
    let proxy = Proxy::before(server.address()).await;
    let store = RedisStore::connect(&format!("redis://{}/", proxy.address())).await;
    let users: Cache<u8, u8> = Cache::new(store.unwrap(), "user", ttl::USER);
    users.get(&1).await.unwrap();
    let lost = "keep_cache_link_lost_total{group=user}";
    assert_eq!(metered.counter(lost), 0);
    proxy.cut();
    let faults = Faults::default();
    faults.cut();
    let metrics = Counter::new(FaultStore::new(MemoryStore::new(), &faults), "metrics");
    for key in 0..3_u8 {
        metrics.add(key, 1, ttl::METRIC).unwrap();
    }
    drop(metrics);
    let never = "keep_counter_flush_lost_total{counter=metrics}";
    let told = async {
        while metered.counter(lost) == 0 || metered.counter(never) == 0 {
            tokio::time::sleep(MILLIS).await;
        }
    };
    let told = tokio::time::timeout(MINUTE, told).await;
    told.unwrap_or_else(|_| panic!("{}", metered.scrape()));
    assert_eq!((metered.counter(lost), metered.counter(never)), (1, 3));
}

#[tokio::test]
async fn what_is_lost_dead_missing_or_made_up_for_is_told_without_a_name() {
    let (log, _logging) = Log::start();
    let (store, faults) = (MemoryStore::new(), Faults::default());
    let told = |line: &str| {
        let text = log.text();
        let mut lines = text.lines();
        assert!(lines.any(|own| own.contains(line)), "no {line}: {text}");
        assert!(!text.contains("secret"), "{text}");
    };
    let lock = Lock::new(store.clone(), "payment").hold_at_most(20 * MILLIS);
    let guard = lock.acquire("secret-key", SECOND).await.unwrap();
    guard.lost().await;
    drop(guard);
    told("WARN");
    told("a lock was lost");
    let jobs: Queue<String> = Queue::new(store.clone(), "jobs");
    let job = Job::to("secret-user", "secret-value".to_owned());
    jobs.enqueue(job).await.unwrap();
    let worker = jobs.worker(|_: Batch<String>| async { Err::<(), _>(JobError::dead("never")) });
    worker.run_until_idle().await.unwrap();
    told("a job died");
    let topic: Topic<String> = Topic::new(store.clone(), "expert").retain(1, SECOND);
    let value = "secret-value".to_owned();
    let first = topic.publish("secret-key", &value).await.unwrap();
    for _ in 0..3 {
        topic.publish("secret-key", &value).await.unwrap();
    }
    let mut feed = topic.subscribe_after("secret-key", first).await.unwrap();
    assert!(matches!(feed.next().await, Some(Event::Gap { .. })));
    told("events are missing");
    let line = FaultStore::new(store, &faults);
    let users: Cache<String, u8> = Cache::new(line, "user", ttl::USER);
    let key = "secret-key".to_owned();
    faults.cut();
    users.remove(&key).await;
    told("an invalidation is queued");
    faults.mend();
    assert!(users.get(&key).await.unwrap().is_none());
    told("invalidations are replayed");
}

#[tokio::test]
async fn nothing_but_a_queue_is_kept_on_redis_without_an_end() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let store = server.store_with(&prefix).await;
    use_all(store.clone()).await;
    let forms: Progress<u8> = Progress::new(store.clone(), "form", ttl::FORM_PROGRESS);
    forms.save("k", &1, Expect::Absent).await.unwrap();
    let metrics = Counter::new(store, "metrics");
    metrics.add("added", 1, ttl::METRIC).unwrap();
    metrics.flush().await.unwrap();
    let series = metrics.series("visits", [tower_keep::data::counter::Bucket::HOUR]);
    series.observe("home", 7).await.unwrap();
    let mut raw = server.raw().await;
    let keys: Vec<String> = redis::cmd("KEYS")
        .arg(format!("{prefix}:*"))
        .query_async(&mut raw)
        .await
        .unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for key in keys {
        let kind = key[prefix.len() + 1..]
            .split(':')
            .next()
            .unwrap()
            .to_owned();
        let left: i64 = redis::cmd("PTTL")
            .arg(&key)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert!(kind == "queue" || left > 0, "{key}: {left}");
        kinds.insert(kind);
    }
    let kinds: Vec<String> = kinds.into_iter().collect();
    assert_eq!(
        kinds,
        ["cache", "counter", "lock", "once", "queue", "topic"]
    );
}
