//! What data services measure and log, and that no key, token or value is in it.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::redis::RedisStore;
use tower_keep::data::cache::{Cache, Tag, Target};
use tower_keep::data::counter::Counter;
use tower_keep::data::health::Health;
use tower_keep::data::lock::Lock;
use tower_keep::data::once::Once;
use tower_keep::data::queue::{Batch, Job, JobError, Queue};
use tower_keep::data::topic::Topic;
use tower_keep::{MILLIS, ttl};
use tracing_subscriber::util::SubscriberInitExt;

use crate::rate_limit::metered::Metered;
use crate::support::redis::{RedisServer, fresh_prefix, shared};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

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
    fn start() -> (Self, impl Sized) {
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        (log, subscriber.set_default())
    }

    fn text(&self) -> String {
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
        ("keep_cache_invalidations_total{group=user,result=done}", 1),
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
    let queued = "keep_cache_invalidations_total{group=user,result=queued}";
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
