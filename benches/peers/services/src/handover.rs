//! How long a lock takes from its holder's release to a waiter in another process.
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bench_common as bc;
use rslock::LockManager;
use tower_keep::SECOND;
use tower_keep::data::lock::Lock;

use crate::subjects::{plain, store};

const LEASE: Duration = Duration::from_secs(10);

/// Both processes are on one machine: they read one clock.
fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

/// Whoever waits: is told "go", takes the lock, says when it had it, gives it back.
pub async fn wait(url: &str, what: &str) {
    let (lock, rslock) = (Lock::new(store(url).await, "hand"), LockManager::new(vec![url]));
    for line in std::io::stdin().lines() {
        let key = line.unwrap();
        println!("asking");
        let had = if what == "keep" {
            let guard = lock.acquire(&key, 20 * SECOND).await.unwrap();
            let had = now();
            guard.release().await.unwrap();
            had
        } else {
            let guard = rslock.acquire(key.as_str(), LEASE).await.unwrap();
            let had = now();
            guard.release().await;
            had
        };
        println!("{had}");
    }
}

/// Milliseconds from before the release to the moment at which the other process has the lock.
async fn handed_over(url: &str, what: &str, rounds: u64) -> Vec<f64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([url, "wait", what])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    let (lock, rslock) = (Lock::new(store(url).await, "hand"), LockManager::new(vec![url]));
    let mut times = Vec::new();
    for round in 0..rounds {
        let key = format!("{what} {round}");
        let ours = if what == "keep" { Some(lock.try_acquire(&key).await.unwrap()) } else { None };
        let theirs = if what == "keep" { None } else { Some(rslock.acquire(key.as_str(), LEASE).await.unwrap()) };
        writeln!(to, "{key}").unwrap();
        from.next();
        // It asks and listens by then.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let began = now();
        if let Some(guard) = ours {
            guard.release().await.unwrap();
        }
        if let Some(guard) = theirs {
            guard.release().await;
        }
        let had: u128 = from.next().unwrap().unwrap().parse().unwrap();
        times.push(had.saturating_sub(began) as f64 / 1e6);
    }
    drop(to);
    child.wait().unwrap();
    times
}

pub async fn run(url: &str) {
    let mut connection = plain(url).await;
    let mut pings = Vec::new();
    for _ in 0..200 {
        let began = now();
        let _: String = redis::cmd("PING").query_async(&mut connection).await.unwrap();
        pings.push((now() - began) as f64 / 1e6);
    }
    let trip = bc::median(&pings);
    let mut rows = vec![vec!["round trip (PING)".to_owned(), format!("{trip:.3}"), format!("{:.3}", bc::quantile(&pings, 0.9))]];
    for (what, name) in [("keep", "keep"), ("rslock", "rslock 0.10")] {
        let times = handed_over(url, what, bc::env_num("BENCH_HANDS", 40)).await;
        rows.push(vec![name.to_owned(), format!("{:.3}", bc::median(&times)), format!("{:.3}", bc::quantile(&times, 0.9))]);
    }
    bc::table("a lock handed over to another process", &["subject", "median ms", "p90 ms"], &rows);
    println!("\nTwo round trips and a millisecond: {:.3} ms", 2.0 * trip + 1.0);
}
