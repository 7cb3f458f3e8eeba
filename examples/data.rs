//! The data services at work, without a server: a payment under a lock, notices by a queue, a status by a topic.
//!
//! `cargo run --example data -- memory:` (or `redis://…`, from which a second process sees the same locks, jobs and events).
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tower_keep::data::lock::{Fence, Lock, LockError};
use tower_keep::data::queue::{Batch, Digest, Job, JobError, Priority, Queue};
use tower_keep::data::topic::{Event, Topic};
use tower_keep::store::Store;
use tower_keep::{HOUR, MINUTE, SECOND};

#[derive(Debug, Serialize, Deserialize)]
struct Notice {
    title: String,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Online,
    Busy,
}

/// What handlers share: services are cheap to clone.
struct App {
    payments: Lock,
    notices: Queue<Notice>,
    status: Topic<Status>,
}

impl App {
    fn new(store: Arc<dyn Store>) -> Self {
        Self {
            payments: Lock::new(Arc::clone(&store), "payment").lease(MINUTE),
            notices: Queue::new(Arc::clone(&store), "notifications").expire_after(HOUR),
            status: Topic::new(store, "expert").event("status"),
        }
    }

    /// Pays once at a time: a second click is refused at once, and a process that dies frees the lock with its lease.
    async fn pay(&self, appointment: &str) -> Result<(), Box<dyn Error>> {
        let guard = self.payments.try_acquire(appointment).await?;
        match self.payments.try_acquire(appointment).await {
            Err(LockError::Busy { retry_after }) => {
                println!("a second click is told to come back in {retry_after} s");
            }
            other => return Err(format!("two hold one lock: {other:?}").into()),
        }
        charge(appointment, guard.fence());
        guard.release().await?;
        let work = |fence| async move { charge(appointment, fence) };
        self.payments.run(appointment, 5 * SECOND, work).await?;
        Ok(())
    }

    /// Queues what the users are told; the worker may be another process.
    async fn notify(&self) -> Result<(), Box<dyn Error>> {
        let notice = |title: &str| Notice {
            title: title.to_owned(),
        };
        let booked = || {
            Job::to("u1", notice("booked"))
                .priority(Priority::High)
                .once("booked:r17")
        };
        self.notices.enqueue(booked()).await?;
        let again = self.notices.enqueue(booked()).await?;
        println!("the same event again: {again:?}");
        let digest = Digest::window(10 * MINUTE).max(3);
        for title in ["a comment", "another", "a third"] {
            let job = Job::to("u2", notice(title)).digest("comments", digest);
            self.notices.enqueue(job).await?;
        }
        let reminder = Job::to("u1", notice("tomorrow at nine")).after(HOUR);
        self.notices.enqueue(reminder).await?;
        let worker = self.notices.worker(|batch: Batch<Notice>| async move {
            for job in &batch.jobs {
                let titles: Vec<_> = job.items.iter().map(|notice| &notice.title[..]).collect();
                // The provider drops what it has seen under this number: a worker that dies sends it again.
                println!("to {}: {}", batch.recipient.as_str(), titles.join(", "));
            }
            Ok::<(), JobError>(())
        });
        let report = worker.concurrency(1).run_until_idle().await?;
        let depth = self.notices.depth().await?;
        println!(
            "{} jobs delivered, {} waiting for its time",
            report.delivered, depth.delayed
        );
        Ok(())
    }

    /// Follows an expert's status. A web handler gives the same feed to an EventSource by `status.sse(key, last)`.
    async fn follow(&self) -> Result<(), Box<dyn Error>> {
        let key = ("e1", "status");
        let mut feed = self.status.subscribe(key).await?;
        let first = self.status.publish(key, &Status::Online).await?;
        self.status.publish(key, &Status::Busy).await?;
        for _ in 0..2 {
            match feed.next().await {
                Some(Event::Message { value, .. }) => println!("the expert is {value:?}"),
                // Read the present state from where it is kept, and go on.
                Some(Event::Gap { .. }) | None => println!("something was missed"),
            }
        }
        drop(feed);
        let mut resumed = self.status.subscribe_after(key, first).await?;
        if let Some(Event::Message { value, .. }) = resumed.next().await {
            println!("resumed after the first: {value:?}");
        }
        Ok(())
    }
}

/// The resource: it remembers the highest fence, and refuses a holder that was paused past its lease.
fn charge(appointment: &str, fence: Fence) {
    let _accepted = fence;
    println!("{appointment} is charged under a fence");
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "memory:".to_owned());
    let app = App::new(tower_keep::store::open(&url).await?);
    app.pay("appointment-7").await?;
    app.notify().await?;
    app.follow().await
}
