//! What a queue counts.

use super::batch::SettleReport;
use super::store::{Depth, EnqueueOutcome, JobId, Leased, Settled};
use crate::core::telemetry::{count, gauge, warn};

fn jobs(queue: &str, event: &'static str, number: u64) {
    let _ = (queue, event);
    if number > 0 {
        count!("keep_queue_jobs_total", number, "queue" => queue.to_owned(), "event" => event);
    }
}

pub(super) fn enqueued(queue: &str, outcomes: &[EnqueueOutcome]) {
    let of = |is: fn(&EnqueueOutcome) -> bool| outcomes.iter().filter(|one| is(one)).count() as u64;
    jobs(
        queue,
        "new",
        of(|one| matches!(one, EnqueueOutcome::New(_))),
    );
    jobs(
        queue,
        "duplicate",
        of(|one| matches!(one, EnqueueOutcome::Duplicate(_))),
    );
    jobs(
        queue,
        "replaced",
        of(|one| matches!(one, EnqueueOutcome::Replaced(_))),
    );
    jobs(
        queue,
        "joined",
        of(|one| matches!(one, EnqueueOutcome::Joined(_))),
    );
}

pub(super) fn leased(queue: &str, leased: &Leased) {
    jobs(queue, "leased", leased.jobs.len() as u64);
    jobs(queue, "lost_lease", leased.swept.lost);
    jobs(queue, "dead", leased.swept.dead);
    jobs(queue, "expired", leased.swept.expired);
    jobs(queue, "dropped", leased.swept.dropped);
    if leased.swept.dead + leased.swept.expired > 0 {
        warn!(
            queue,
            dead = leased.swept.dead,
            expired = leased.swept.expired,
            "jobs died"
        );
    }
    if let Some(now) = leased.depth {
        depth(queue, now);
    }
    if let Some(first) = leased.jobs.first() {
        let _ = first;
        gauge!("keep_queue_lag_seconds", leased.now.since(first.due).as_secs_f64(), "queue" => queue.to_owned());
    }
}

pub(super) fn acked(queue: &str, report: &SettleReport) {
    jobs(queue, "acked", report.done.len() as u64);
    jobs(queue, "lost_lease", report.lost.len() as u64);
}

pub(super) fn nacked(queue: &str, settled: &[(JobId, Settled)]) {
    let of = |wanted| settled.iter().filter(|(_, one)| *one == wanted).count() as u64;
    jobs(queue, "retried", of(Settled::Done));
    jobs(queue, "dead", of(Settled::Died));
    jobs(queue, "lost_lease", of(Settled::Lost) + of(Settled::Gone));
    for (id, _) in settled.iter().filter(|(_, one)| *one == Settled::Died) {
        let _ = id;
        warn!(queue, job = %id, "a job died");
    }
}

pub(super) fn depth(queue: &str, depth: Depth) {
    let _ = (queue, depth);
    gauge!("keep_queue_ready", depth.ready as f64, "queue" => queue.to_owned());
    gauge!("keep_queue_delayed", depth.delayed as f64, "queue" => queue.to_owned());
    gauge!("keep_queue_leased", depth.leased as f64, "queue" => queue.to_owned());
    gauge!("keep_queue_dead", depth.dead as f64, "queue" => queue.to_owned());
}
