//! What is called: each service beside the plain command that does the least of it.
use std::hint::black_box;
use std::time::{Duration, Instant};

use bench_common as bc;
use distkit::DistkitRedisKey;
use distkit::counter::{CounterOptions, CounterTrait, LaxCounter, StrictCounter};
use redis::aio::MultiplexedConnection;
use rslock::LockManager;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::IntoKey;
use tower_keep::data::cache::{Cache, Local};
use tower_keep::data::counter::{Bucket, Counter, Increment};
use tower_keep::data::lock::store::{Asking, LockKey, LockStore, Owner};
use tower_keep::data::once::Once;
use tower_keep::data::topic::{Event, Topic};
use tower_keep::ttl;

use crate::{Subject, compare, handover, subject};

const LEASE: Duration = Duration::from_secs(30);

pub async fn plain(url: &str) -> MultiplexedConnection {
    let client = redis::Client::open(url).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

pub async fn store(url: &str) -> RedisStore {
    RedisStore::builder(url).timeout(Duration::from_secs(10)).open().await.unwrap()
}

/// A plain command, made for each number.
fn command(name: &'static str, connection: &MultiplexedConnection, make: impl Fn(u64) -> redis::Cmd + Send + Sync + 'static) -> Subject {
    let connection = connection.clone();
    subject(name, move |number| {
        let (mut connection, command) = (connection.clone(), make(number));
        async move {
            let _: redis::Value = command.query_async(&mut connection).await.unwrap();
        }
    })
}

pub async fn run(url: &str) {
    let connection = plain(url).await;
    let groups = ["count", "lock", "handover", "topic", "once", "cache"];
    for group in groups.into_iter().filter(|group| bc::wanted(group, "BENCH_GROUP")) {
        redis::cmd("FLUSHALL").exec_async(&mut connection.clone()).await.unwrap();
        match group {
            "count" => count(url, &connection).await,
            "lock" => lock(url, &connection).await,
            "handover" => handover::run(url).await,
            "topic" => topic(url, &connection).await,
            "once" => once(url, &connection).await,
            _ => cache(url, &connection).await,
        }
    }
    redis::cmd("FLUSHALL").exec_async(&mut connection.clone()).await.unwrap();
}

async fn count(url: &str, connection: &MultiplexedConnection) {
    let counter = Counter::new(store(url).await, "metrics");
    let series = counter.series("action", [Bucket::HOUR.keep(48), Bucket::DAY.keep(400)]);
    let manager = redis::Client::open(url).unwrap().get_connection_manager().await.unwrap();
    let options = CounterOptions::new(DistkitRedisKey::try_from("bench".to_owned()).unwrap(), manager);
    let strict = std::sync::Arc::new(StrictCounter::new(options.clone()));
    let of = |number: u64| number % 1_000;
    let incr = counter.clone();
    compare(
        "one increment of one of a thousand counters",
        &[
            command("INCR (floor)", connection, move |number| {
                let mut command = redis::cmd("INCR");
                command.arg(format!("plain:{}", of(number)));
                command
            }),
            subject("keep incr", move |number| {
                let counter = incr.clone();
                async move {
                    black_box(counter.incr(of(number), 1, ttl::METRIC).await.unwrap());
                }
            }),
            subject("keep series, two buckets", move |number| {
                let series = series.clone();
                async move { series.incr(of(number), 1).await.unwrap() }
            }),
            subject("distkit 0.7 StrictCounter::inc", move |number| {
                let strict = strict.clone();
                async move {
                    let key = DistkitRedisKey::try_from(of(number).to_string()).unwrap();
                    black_box(strict.inc(&key, 1).await.unwrap());
                }
            }),
        ],
    )
    .await;
    let apply = counter.clone();
    compare(
        "increments, 512 in one step",
        &[
            command("INCR (floor)", connection, |_| {
                let mut command = redis::cmd("INCR");
                command.arg("plain");
                command
            }),
            subject("keep apply of 512", move |number| {
                let counter = apply.clone();
                let is_asked = number % 512 == 0;
                async move {
                    if is_asked {
                        counter.apply((0..512_u64).map(|key| Increment::new(key, 1, ttl::METRIC))).await.unwrap();
                    }
                }
            }),
        ],
    )
    .await;
    add(counter, options).await;
}

/// `add` has no command: nanoseconds of a buffered key, in turn, and allocations.
async fn add(counter: Counter, options: CounterOptions) {
    let lax = LaxCounter::new(options);
    let key = DistkitRedisKey::try_from("hits".to_owned()).unwrap();
    let (rounds, number) = (bc::env_num("BENCH_ROUNDS", 5) * 3, bc::env_num("BENCH_N", 20_000));
    let (mut times, mut allocs) = ([Vec::new(), Vec::new()], [0.0; 2]);
    for _ in 0..rounds {
        counter.add("hits", 1, ttl::METRIC).unwrap();
        lax.inc(&key, 1).await.unwrap();
        let began = Instant::now();
        let (_, counted, _) = bc::count_allocs(|| {
            for _ in 0..number {
                counter.add(black_box("hits"), 1, ttl::METRIC).unwrap();
            }
        });
        times[0].push(began.elapsed().as_nanos() as f64 / number as f64);
        allocs[0] = counted as f64 / number as f64;
        let began = Instant::now();
        for _ in 0..number {
            black_box(lax.inc(black_box(&key), 1).await.unwrap());
        }
        times[1].push(began.elapsed().as_nanos() as f64 / number as f64);
        tokio::task::yield_now().await;
    }
    let rows = ["keep add", "distkit 0.7 LaxCounter::inc"].into_iter().enumerate().map(|(at, name)| {
        let over: Vec<f64> = times[at].iter().zip(&times[1]).map(|(own, lax)| own / lax).collect();
        let counted = if at == 0 { format!("{:.2}", allocs[0]) } else { "-".to_owned() };
        vec![name.to_owned(), format!("{:.0}", bc::median(&times[at])), format!("{:.2}", bc::median(&over)), counted]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    bc::table("an increment that is buffered", &["subject", "ns", "x distkit", "allocs"], &rows);
}

async fn lock(url: &str, connection: &MultiplexedConnection) {
    let store = store(url).await;
    let named = |number: u64| LockKey { name: "bench".into(), key: number.into_key() };
    let owner = |number: u64| {
        let mut bits = [7; 16];
        bits[..8].copy_from_slice(&number.to_be_bytes());
        Owner(bits)
    };
    let rslock = LockManager::new(vec![url]);
    let (one, two, three) = (store.clone(), store.clone(), store);
    let floor = || {
        command("SET NX PX (floor)", connection, |number| {
            let mut command = redis::cmd("SET");
            command.arg(format!("plain:{number}")).arg("an owner's sixteen").arg("NX").arg("PX").arg(30_000);
            command
        })
    };
    let held = 1_000_000;
    for number in 0..1_000 {
        three.acquire(&named(held + number), owner(0), LEASE, Asking::Once).await.unwrap();
    }
    compare(
        "a free lock is taken",
        &[
            floor(),
            subject("keep acquire", move |number| {
                let taken = one.acquire(&named(number), owner(number), LEASE, Asking::Once);
                async move {
                    black_box(taken.await.unwrap());
                }
            }),
            subject("rslock 0.10 lock", move |number| {
                let rslock = rslock.clone();
                async move {
                    black_box(rslock.lock(format!("rs:{number}").as_str(), LEASE).await.unwrap());
                }
            }),
        ],
    )
    .await;
    redis::cmd("DEL").arg("nothing").exec_async(&mut connection.clone()).await.unwrap();
    compare(
        "a held lock is renewed",
        &[
            floor(),
            subject("keep extend", move |number| {
                let extended = two.extend(&named(held + number % 1_000), owner(0), LEASE);
                async move {
                    black_box(extended.await.unwrap());
                }
            }),
        ],
    )
    .await;
    compare(
        "a lock is released (those taken before, each once; then what is lost)",
        &[
            floor(),
            subject("keep release", move |number| {
                let released = three.release(&named(number), owner(number));
                async move {
                    black_box(released.await.unwrap());
                }
            }),
        ],
    )
    .await;
}

async fn topic(url: &str, connection: &MultiplexedConnection) {
    let topic: Topic<String> = Topic::new(store(url).await, "expert");
    let text = "x".repeat(100);
    let (published, payload) = (topic.clone(), text.clone());
    compare(
        "an event of 100 bytes, to one of a hundred logs of at most 256",
        &[
            command("XADD MAXLEN 256 (floor)", connection, move |number| {
                let mut command = redis::cmd("XADD");
                command.arg(format!("plain:{}", number % 100)).arg("MAXLEN").arg("=").arg(256).arg("*").arg("payload").arg(&payload);
                command
            }),
            subject("keep publish", move |number| {
                let (topic, text) = (published.clone(), text.clone());
                async move {
                    black_box(topic.publish(number % 100, &text).await.unwrap());
                }
            }),
        ],
    )
    .await;
    let mut feeds = Vec::new();
    for _ in 0..1_000 {
        feeds.push(topic.subscribe("all").await.unwrap());
    }
    let (mut published, mut served) = (Vec::new(), Vec::new());
    for round in 0..bc::env_num("BENCH_HANDS", 40) {
        let mut readers = tokio::task::JoinSet::new();
        for mut feed in feeds.drain(..) {
            readers.spawn(async move {
                let Some(Event::Message { .. }) = feed.next().await else { panic!("a gap") };
                (feed, Instant::now())
            });
        }
        tokio::task::yield_now().await;
        let began = Instant::now();
        topic.publish("all", &round.to_string()).await.unwrap();
        published.push(began.elapsed().as_secs_f64() * 1e3);
        let mut last = began;
        while let Some(ended) = readers.join_next().await {
            let (feed, at) = ended.unwrap();
            last = last.max(at);
            feeds.push(feed);
        }
        served.push((last - began).as_secs_f64() * 1e3);
    }
    let row = |name: &str, times: &[f64]| vec![name.to_owned(), format!("{:.2}", bc::median(times)), format!("{:.2}", bc::quantile(times, 0.9))];
    let rows = [row("publish has answered", &published), row("the last of 1,000 readers has it", &served)];
    bc::table("ms since publish was called", &["moment", "median", "p90"], &rows);
}

async fn once(url: &str, connection: &MultiplexedConnection) {
    let tokens: Once<String> = Once::new(store(url).await, "oauth", ttl::OAUTH_STATE);
    let (put, take) = (tokens.clone(), tokens);
    compare(
        "a token is kept",
        &[
            command("SET NX PX (floor)", connection, |number| {
                let mut command = redis::cmd("SET");
                command.arg(format!("plain:{number}")).arg("x".repeat(60)).arg("NX").arg("PX").arg(900_000);
                command
            }),
            subject("keep put", move |number| {
                let tokens = put.clone();
                async move {
                    black_box(tokens.put(format!("a token that nobody guesses {number:>015}"), &"x".repeat(60)).await.unwrap());
                }
            }),
        ],
    )
    .await;
    compare(
        "a token is taken",
        &[
            command("GETDEL (floor)", connection, |number| {
                let mut command = redis::cmd("GETDEL");
                command.arg(format!("plain:{number}"));
                command
            }),
            subject("keep take", move |number| {
                let tokens = take.clone();
                async move {
                    black_box(tokens.take(format!("a token that nobody guesses {number:>015}")).await.unwrap());
                }
            }),
        ],
    )
    .await;
}

async fn cache(url: &str, connection: &MultiplexedConnection) {
    let users: Cache<u64, String> = Cache::new(store(url).await, "user", ttl::USER).local(Local::off());
    for size in [100, 1_000] {
        let value = "x".repeat(size);
        for number in 0..1_000_u64 {
            users.put(&number, value.clone()).await.unwrap();
            let mut set = redis::cmd("SET");
            set.arg(format!("plain:{number}")).arg(&value);
            set.exec_async(&mut connection.clone()).await.unwrap();
        }
        let read = users.clone();
        compare(
            &format!("a shared hit of {size} bytes"),
            &[
                command("GET of the same bytes (floor)", connection, |number| {
                    let mut command = redis::cmd("GET");
                    command.arg(format!("plain:{}", number % 1_000));
                    command
                }),
                subject("keep get, local level off", move |number| {
                    let users = read.clone();
                    async move {
                    black_box(users.get(&(number % 1_000)).await.unwrap().unwrap());
                }
                }),
            ],
        )
        .await;
    }
}
