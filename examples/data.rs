//! The data services at work, without a server: a customer through a cache, visits counted, a token used once, a payment
//! under a lock, notices by a queue, a status by a topic, and the health of it all.
//!
//! `cargo run --example data -- memory:` (or `redis://…`, from which a second process sees the same locks, jobs and events).
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tower_keep::core::{Email, IntoKey, Timestamp};
use tower_keep::data::cache::{Cache, CacheGroup, Tag, Target};
use tower_keep::data::counter::{Bucket, Counter, Increment, Series};
use tower_keep::data::health::Health;
use tower_keep::data::lock::{Fence, Lock, LockError};
use tower_keep::data::once::{Expect, Once, Progress};
use tower_keep::data::queue::{Batch, Digest, Job, JobError, Priority, Queue};
use tower_keep::data::topic::{Event, Topic};
use tower_keep::store::Store;
use tower_keep::{DAY, HOUR, MINUTE, SECOND, ttl};

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Customer {
    id: String,
    user: String,
    email: String,
}

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
    customers: Cache<String, Customer>,
    group: CacheGroup,
    metrics: Counter,
    visits: Series,
    states: Once<String>,
    forms: Progress<Vec<String>>,
    health: Health,
    payments: Lock,
    notices: Queue<Notice>,
    status: Topic<Status>,
}

impl App {
    fn new(store: Arc<dyn Store>) -> Self {
        let group = CacheGroup::new(Arc::clone(&store), "db");
        let metrics = Counter::new(Arc::clone(&store), "metrics");
        let buckets = [Bucket::HOUR.keep(48), Bucket::DAY.keep(400)];
        Self {
            customers: group
                .cache("customer", ttl::CUSTOMER)
                .alias("user", |customer: &Customer| Some(customer.user.clone()))
                .alias("email", |customer| Some(Email(customer.email.clone())))
                .tag_with(|_, customer| [Tag::new("user", &customer.user)]),
            group,
            visits: metrics.series("visits", buckets),
            metrics,
            states: Once::new(Arc::clone(&store), "oauth", ttl::OAUTH_STATE),
            forms: Progress::new(Arc::clone(&store), "form_progress", ttl::FORM_PROGRESS),
            health: Health::new().required("store", Arc::clone(&store)),
            payments: Lock::new(Arc::clone(&store), "payment").lease(MINUTE),
            notices: Queue::new(Arc::clone(&store), "notifications").expire_after(HOUR),
            status: Topic::new(store, "expert").event("status"),
        }
    }

    /// Finds or creates a customer by either name, once for all who ask; one call forgets what is known of a user.
    async fn customer(&self) -> Result<(), Box<dyn Error>> {
        let names = [
            ("user", "u1".into_key()),
            ("email", Email("Ann@x.test").into_key()),
        ];
        let create = || async {
            println!("a customer is created at the provider");
            let customer = Customer {
                id: "c1".to_owned(),
                user: "u1".to_owned(),
                email: "ann@x.test".to_owned(),
            };
            Ok::<_, std::io::Error>((customer.id.clone(), customer))
        };
        for _ in 0..2 {
            let customer = self.customers.get_or_load_by(names.clone(), create).await?;
            println!("{}: {:?}", customer.id, customer.outcome());
        }
        let known = self.customers.get_by("email", Email(" ANN@x.test")).await?;
        println!("found by address: {}", known.is_some());
        self.group
            .invalidate([Target::tag(Tag::new("user", "u1"))])
            .await;
        println!(
            "forgotten: {}",
            self.customers.get_by("user", "u1").await?.is_none()
        );
        Ok(())
    }

    /// Counts: seats that run out, and visits by hour and day.
    async fn count(&self) -> Result<(), Box<dyn Error>> {
        let seat = |event: &str| {
            let seat = Increment::new("seats", 1, ttl::METRIC);
            seat.within(0..=2).once(event)
        };
        let seats = ["evt_1", "evt_1", "evt_2", "evt_3"].map(seat);
        let counts = self.metrics.apply(seats).await?;
        let applied: Vec<bool> = counts.iter().map(|count| count.applied).collect();
        println!("seats given: {applied:?}");
        self.visits.incr("home", 3).await?;
        let now = Timestamp::of(&tower_keep::core::SystemClock);
        let days = self
            .visits
            .range("home", Bucket::DAY, now.minus(DAY)..now + DAY);
        let visits: i64 = days.await?.iter().map(|day| day.count).sum();
        println!("visits: {visits}");
        Ok(())
    }

    /// A state that is used once, and a form that two tabs fill in.
    async fn once(&self) -> Result<(), Box<dyn Error>> {
        let token = self.states.issue(&"/after-login".to_owned()).await?;
        let (one, two) = tokio::join!(self.states.take(&token), self.states.take(&token));
        let taken = [one?, two?].into_iter().flatten().count();
        println!("of two takes {taken} got the state");
        let form = ("u1", "intake");
        let name = vec!["name".to_owned()];
        let first = self.forms.save(form, &name, Expect::Absent).await?;
        println!("one tab: {first:?}");
        let second = self.forms.save(form, &Vec::new(), Expect::Absent).await?;
        println!("the other: {second:?}");
        self.forms.take(form).await?;
        Ok(())
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
    app.follow().await?;
    app.customer().await?;
    app.count().await?;
    app.once().await?;
    println!("health: {}", app.health.report().await.status);
    Ok(())
}
