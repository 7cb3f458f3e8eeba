//! Services on Redis beside the plain commands and the crates of their field, in turn, in one run.
//!   bench-services URL            empties that server: give it one of its own
//! BENCH_ROUNDS: rounds (5); BENCH_N: calls of one round (20,000); BENCH_GROUP: a part of count, lock, handover, topic,
//! once, cache. Calls are 64 in flight; "one by one" is a single caller that waits for each answer; the last column has calls
//! coming at half that rate, whatever the answers do. A ratio is that of
//! rates to the floor's of the same round: more is better.
mod handover;
mod subjects;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bench_common as bc;

#[global_allocator]
static A: bc::Counting = bc::Counting;

type Call = Arc<dyn Fn(u64) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A call under a name; the first of a table is its floor.
pub struct Subject {
    name: &'static str,
    call: Call,
}

pub fn subject<F>(name: &'static str, call: impl Fn(u64) -> F + Send + Sync + 'static) -> Subject
where
    F: Future<Output = ()> + Send + 'static,
{
    let call = Arc::new(move |number| -> Pin<Box<dyn Future<Output = ()> + Send>> { Box::pin(call(number)) });
    Subject { name, call }
}

/// Calls a second.
async fn rate(call: &Call, first: u64, number: u64, lanes: u64) -> f64 {
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for lane in 0..lanes {
        let call = Arc::clone(call);
        running.spawn(async move {
            for step in (lane..number).step_by(lanes as usize) {
                call(first + step).await;
            }
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    number as f64 / began.elapsed().as_secs_f64()
}

/// Milliseconds that only one call in a hundred outlasts, where they come at `each_ms` a millisecond, whatever the
/// answers do.
async fn p99(call: &Call, first: u64, number: u64, each_ms: u64) -> f64 {
    let mut running = tokio::task::JoinSet::new();
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let mut step = 0;
    while step < number {
        let due = tick.tick().await;
        for _ in 0..each_ms {
            let (call, number) = (Arc::clone(call), first + step);
            running.spawn(async move {
                call(number).await;
                due.elapsed().as_secs_f64() * 1e3
            });
            step += 1;
        }
    }
    let mut times = Vec::new();
    while let Some(ended) = running.join_next().await {
        times.push(ended.unwrap());
    }
    bc::quantile(&times, 0.99)
}

pub async fn compare(title: &str, subjects: &[Subject]) {
    let (rounds, number) = (bc::env_num("BENCH_ROUNDS", 5), bc::env_num("BENCH_N", 20_000));
    let mut many = vec![Vec::new(); subjects.len()];
    let mut alone = vec![Vec::new(); subjects.len()];
    let mut next = vec![0; subjects.len()];
    for round in 0..rounds {
        for turn in 0..subjects.len() {
            let at = (turn + round as usize) % subjects.len();
            let few = (number / 10).max(1);
            many[at].push(rate(&subjects[at].call, next[at], number, 64).await);
            alone[at].push(rate(&subjects[at].call, next[at] + number, few, 1).await);
            next[at] += number + few;
        }
    }
    let mut rows = Vec::new();
    for (at, subject) in subjects.iter().enumerate() {
        let over = |rates: &[Vec<f64>]| {
            let ratios: Vec<f64> = rates[at].iter().zip(&rates[0]).map(|(own, floor)| own / floor).collect();
            format!("{:.2}", bc::median(&ratios))
        };
        let half = (bc::median(&many[at]) / 2_000.0).max(1.0) as u64;
        rows.push(vec![
            subject.name.to_owned(),
            format!("{:.0}", bc::median(&many[at])),
            over(&many),
            format!("{:.1}", bc::noise_pct(&many[at])),
            over(&alone),
            format!("{:.2}", p99(&subject.call, next[at], number, half).await),
        ]);
    }
    let head = ["subject", "a second", "x floor", "±%", "x floor, one by one", "p99 ms at half load"];
    bc::table(title, &head, &rows);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [url] => subjects::run(url).await,
        [url, child, what] if child == "wait" => handover::wait(url, what).await,
        _ => println!("bench-services URL, of a server that may be emptied"),
    }
}
