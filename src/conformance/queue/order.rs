//! Which job comes first, and when.

use std::sync::Arc;
use std::time::Duration;

use super::{HOUR, LEASE, MS, Suite, job, texts};
use crate::core::IntoKey;
use crate::data::queue::store::{Due, EnqueueOutcome, JobState, NewJob, Priority, Rules, Settled};

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    pub(super) async fn priority_then_time_then_enqueueing(&self) {
        let of = |priority, after, item: &str| NewJob {
            priority,
            due: Due::After(after),
            ..job(item, item)
        };
        let jobs = [
            of(Priority::Low, Duration::ZERO, "low"),
            of(Priority::Normal, 2 * MS, "later"),
            of(Priority::Normal, Duration::ZERO, "first"),
            of(Priority::Normal, Duration::ZERO, "second"),
            of(Priority::High, 3 * MS, "high"),
        ];
        // One by one, the clock frozen: the order is that of enqueueing.
        for job in jobs {
            assert!(matches!(self.add(job).await, EnqueueOutcome::New(_)));
        }
        self.clock.advance(3 * MS);
        for (token, item) in (0..).zip(["high", "first", "second", "later", "low"]) {
            let job = self.take_one(token, item).await;
            assert_eq!(self.ack(token, job.id).await, Settled::Done);
            assert_eq!(self.ack(token, job.id).await, Settled::Gone);
        }
        assert_eq!(self.take_none().await, None);
    }

    pub(super) async fn a_batch_is_of_one_recipient_and_priority(&self) {
        let urgent = |to: &str, item: &str| NewJob {
            priority: Priority::High,
            ..job(to, item)
        };
        let jobs = vec![
            job("a", "a1"),
            job("b", "b1"),
            urgent("a", "a2"),
            job("a", "a3"),
            job("a", "a4"),
        ];
        self.add_all(jobs).await;
        let first = self.take(1, 5, None).await;
        assert_eq!(texts(&first.jobs), ["a2"]);
        assert_eq!(
            (first.recipient, first.until),
            (Some("a".into_key()), self.now() + LEASE)
        );
        assert_eq!(texts(&self.take(2, 2, None).await.jobs), ["a1", "a3"]);
        assert_eq!(texts(&self.take(3, 9, None).await.jobs), ["b1"]);
        assert_eq!(texts(&self.take(4, 9, None).await.jobs), ["a4"]);
        assert_eq!(self.numbers(Some(&"a".into_key())).await, [0, 0, 4, 0]);
    }

    pub(super) async fn a_recipients_jobs_come_in_any_priority(&self) {
        let low = NewJob {
            priority: Priority::Low,
            ..job("a", "low")
        };
        self.add_all(vec![low, job("b", "b1"), job("a", "normal")])
            .await;
        let leased = self.take(1, 9, Some("a")).await;
        assert_eq!(texts(&leased.jobs), ["normal", "low"]);
        assert_eq!(
            texts(&self.take(2, 9, Some("a")).await.jobs),
            Vec::<String>::new()
        );
        assert_eq!(
            texts(&self.take(3, 9, Some("ab")).await.jobs),
            Vec::<String>::new()
        );
        self.take_one(4, "b1").await;
    }

    pub(super) async fn no_job_comes_before_its_time_and_its_life_starts_then(&self) {
        let suite = self.under(Rules {
            expire_after: HOUR,
            ..self.rules
        });
        let due = self.now() + 2 * HOUR;
        let in_two_hours = NewJob {
            due: Due::At(due),
            ..job("a", "later")
        };
        suite.add(in_two_hours).await;
        assert_eq!(suite.take_none().await, Some(due));
        self.clock.advance(2 * HOUR - MS);
        assert_eq!(suite.take_none().await, Some(due));
        assert_eq!(suite.numbers(None).await, [0, 1, 0, 0]);
        self.clock.advance(MS);
        let job = suite.take_one(1, "later").await;
        assert_eq!((job.due, job.attempt), (due, 1));
    }

    pub(super) async fn an_aged_job_overtakes(&self) {
        let suite = self.under(Rules {
            aging: 10 * MS,
            ..self.rules
        });
        suite.add(job("old", "old")).await;
        self.clock.advance(11 * MS);
        let high = |item: &str| NewJob {
            priority: Priority::High,
            ..job(item, item)
        };
        suite.add(high("fresh")).await;
        suite.take_one(1, "old").await;
        suite.add(job("late", "late")).await;
        suite.take_one(2, "fresh").await;
    }

    pub(super) async fn what_expired_is_found_behind_younger_ones_that_aging_puts_before_it(&self) {
        let suite = self.under(Rules {
            aging: 12 * HOUR,
            capacity: 151,
            ..self.rules
        });
        let low = NewJob {
            priority: Priority::Low,
            ..job("low", "old")
        };
        let old = suite.add(low).await.id();
        suite.clock.advance(24 * HOUR - 1_000 * MS);
        let high = |_| NewJob {
            priority: Priority::High,
            ..job("high", "young")
        };
        suite.add_all((0..150).map(high).collect()).await;
        suite.clock.advance(1_000 * MS);
        // There is room for one more.
        let fresh = suite.add(job("a", "fresh")).await.id();
        assert_eq!(suite.numbers(None).await, [151, 0, 0, 1]);
        assert_eq!(suite.show(old).await.unwrap().state, JobState::Dead);
        assert_eq!(suite.take(1, 9, Some("a")).await.jobs[0].id, fresh);
    }

    pub(super) async fn what_expired_is_found_among_any_number_that_aging_puts_beside_it(&self) {
        let suite = self.under(Rules {
            aging: 12 * HOUR,
            ..self.rules
        });
        let low = NewJob {
            priority: Priority::Low,
            ..job("low", "old")
        };
        let old = suite.add(low).await.id();
        suite.clock.advance(24 * HOUR - 1_000 * MS);
        let due = suite.now() + 2_000 * MS;
        let high = |_| NewJob {
            priority: Priority::High,
            due: Due::At(due),
            ..job("high", "young")
        };
        suite.add_all((0..300).map(high).collect()).await;
        suite.clock.advance(3_000 * MS);
        // A look moves a hundred, and one that finds more than it takes in finds the others at another time.
        let mut looks = 0;
        while suite.show(old).await.unwrap().state != JobState::Dead {
            suite.numbers(None).await;
            suite.clock.advance(MS);
            looks += 1;
            assert!(looks < 200, "a job that expired is never found");
        }
        let [ready, delayed, _, dead] = suite.numbers(None).await;
        assert_eq!((ready + delayed, dead), (300, 1));
    }

    pub(super) async fn sleeping_workers_are_told(&self) {
        let told = Arc::new(tokio::sync::Semaphore::new(0));
        let listening = self
            .store
            .subscribe(&self.name, crate::conformance::bell(&told))
            .await
            .unwrap();
        let heard = async |what: &str| {
            let heard = tokio::time::timeout(Duration::from_secs(10), told.acquire()).await;
            heard
                .unwrap_or_else(|_| panic!("nobody told: {what}"))
                .unwrap()
                .forget();
        };
        self.add(job("a", "ready")).await;
        heard("a job is ready").await;
        self.take_one(1, "ready").await;
        let later = NewJob {
            due: Due::After(HOUR),
            ..job("a", "later")
        };
        self.add(later).await;
        heard("a job will be due").await;
        let sooner = NewJob {
            due: Due::After(HOUR - MS),
            ..job("a", "sooner")
        };
        self.add(sooner).await;
        heard("one will be due sooner").await;
        let many = (0..100).map(|number| job("a", &number.to_string()));
        self.add_all(many.collect()).await;
        heard("many are ready").await;
        drop(listening);
    }
}
