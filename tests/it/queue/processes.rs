//! A worker's process killed at each step.

use std::time::{Duration, Instant};

use tower_keep::data::queue::{Job, JobId, Queue};

use crate::lock::processes::Steps;
use crate::support::redis::{fresh_prefix, shared};

/// As the worker's process sets it, too.
const LEASE: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_worker_killed_at_any_step_loses_no_job_and_repeats_none_that_was_acked() {
    let server = shared().await;
    for step in ["leased", "sent", "acked"] {
        let prefix = fresh_prefix();
        let store = server.store_with(&prefix).await;
        let queue: Queue<u64> = Queue::new(store, "jobs").lease_for(LEASE);
        let jobs = (0..3).map(|number| Job::to(number, number));
        let ids: Vec<JobId> = queue
            .enqueue_many(jobs)
            .await
            .unwrap()
            .into_iter()
            .map(|added| added.id())
            .collect();
        let began = Instant::now();
        let mut worker = Steps::start(&["work", &server.url(), &prefix, step]);
        let struck: JobId = worker.until(step).parse().unwrap();
        worker.kill();
        assert_eq!(struck, ids[0]);
        let mut delivered = Vec::new();
        while queue.depth().await.unwrap().waiting() > 0 {
            match queue.lease(1).await.unwrap() {
                Some(batch) => {
                    let job = &batch.jobs[0];
                    delivered.push((job.id, job.attempt));
                    // While its lease holds, nobody else gets it.
                    assert!(job.id != struck || began.elapsed() >= LEASE, "{step}");
                    assert!(queue.ack(&batch).await.unwrap().is_complete());
                }
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
            assert!(began.elapsed() < 30 * LEASE, "{step}");
        }
        let mut expected = vec![(ids[1], 1), (ids[2], 1)];
        if step != "acked" {
            expected.insert(0, (struck, 2));
        }
        delivered.sort();
        assert_eq!(delivered, expected, "{step}");
    }
}

#[tokio::test]
async fn two_processes_share_a_queue_and_no_job_goes_to_both() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let queue: Queue<u64> = Queue::new(server.store_with(&prefix).await, "jobs");
    let jobs = (0..200).map(|number| Job::to(number % 7, number));
    let ids: std::collections::BTreeSet<JobId> = queue
        .enqueue_many(jobs)
        .await
        .unwrap()
        .into_iter()
        .map(|added| added.id())
        .collect();
    let url = server.url();
    let workers = [(); 2].map(|()| Steps::start(&["work", &url, &prefix, "never"]));
    let mut sent = Vec::new();
    for worker in &workers {
        loop {
            let (step, id) = worker.next();
            match &step[..] {
                "sent" => sent.push(id.parse().unwrap()),
                "idle" => break,
                _ => {}
            }
        }
    }
    assert_eq!(sent.len(), 200);
    assert_eq!(
        sent.into_iter()
            .collect::<std::collections::BTreeSet<JobId>>(),
        ids
    );
}
