//! Leased jobs, and how a lease ends.

use super::{LEASE, MS, Suite, job, texts};
use crate::data::queue::store::{
    Due, JobId, JobState, Listing, NewJob, Priority, Rules, Settle, Settled, Token,
};

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    pub(super) async fn a_lease_ends_exactly_then_and_tries_are_counted(&self) {
        let id = self.add(job("a", "work")).await.id();
        for attempt in 1..=3 {
            let job = self.take_one(attempt, "work").await;
            assert_eq!((job.id, job.attempt), (id, u32::from(attempt)));
            self.clock.advance(LEASE - MS);
            assert_eq!(self.take_none().await, Some(self.now() + MS));
            self.clock.advance(MS);
        }
        let leased = self.take(9, 1, None).await;
        assert_eq!(
            (leased.jobs.len(), leased.swept.lost, leased.swept.dead),
            (0, 1, 1)
        );
        assert_eq!(self.show(id).await.unwrap().state, JobState::Dead);
    }

    pub(super) async fn a_late_ack_changes_nothing(&self) {
        let id = self.add(job("a", "work")).await.id();
        self.take_one(1, "work").await;
        assert_eq!(self.ack(7, id).await, Settled::Lost);
        self.clock.advance(LEASE);
        assert_eq!(self.ack(1, id).await, Settled::Lost);
        self.take_one(2, "work").await;
        assert_eq!(self.ack(1, id).await, Settled::Lost);
        let late = Settle::Dead("late".to_owned());
        assert_eq!(self.nack(1, id, late).await, Settled::Lost);
        assert_eq!(self.show(id).await.unwrap().state, JobState::Leased);
        assert_eq!(self.ack(2, id).await, Settled::Done);
        assert_eq!(self.show(id).await, None);
    }

    pub(super) async fn an_extended_lease_holds(&self) {
        let id = self.add(job("a", "work")).await.id();
        self.take_one(1, "work").await;
        self.clock.advance(LEASE - MS);
        let extend = |token: u8, ids| {
            self.store
                .extend(&self.name, Token([token; 16]), ids, LEASE)
        };
        let unknown = JobId(u64::MAX / 4);
        assert_eq!(
            extend(1, vec![id, unknown]).await.unwrap(),
            [Settled::Done, Settled::Gone]
        );
        assert_eq!(extend(2, vec![id]).await.unwrap(), [Settled::Lost]);
        self.clock.advance(LEASE - MS);
        assert_eq!(self.take_none().await, Some(self.now() + MS));
        assert_eq!(self.ack(1, id).await, Settled::Done);
    }

    pub(super) async fn a_failed_job_comes_again_later_until_it_is_dead(&self) {
        let id = self.add(job("a", "work")).await.id();
        self.take_one(1, "work").await;
        let later = Settle::After(5 * MS, "x".repeat(600));
        assert_eq!(self.nack(1, id, later).await, Settled::Done);
        assert_eq!(self.take_none().await, Some(self.now() + 5 * MS));
        let shown = self.show(id).await.unwrap();
        assert_eq!((shown.state, shown.attempts), (JobState::Delayed, 1));
        assert_eq!(shown.last_error, Some("x".repeat(500)));
        self.clock.advance(5 * MS);
        self.take_one(2, "work").await;
        let at = Settle::At(self.now() + 7 * MS, "again".to_owned());
        assert_eq!(self.nack(2, id, at).await, Settled::Done);
        self.clock.advance(7 * MS);
        assert_eq!(self.take_one(3, "work").await.attempt, 3);
        let last = Settle::After(MS, "given up".to_owned());
        assert_eq!(self.nack(3, id, last).await, Settled::Died);
        let shown = self.show(id).await.unwrap();
        assert_eq!(
            (shown.state, shown.last_error.as_deref()),
            (JobState::Dead, Some("given up"))
        );
        let poison = self.add(job("a", "poison")).await.id();
        self.take_one(4, "poison").await;
        let dead = Settle::Dead("no".to_owned());
        assert_eq!(self.nack(4, poison, dead).await, Settled::Died);
        let dead: Vec<JobId> = self
            .list(Listing::Dead(9))
            .await
            .iter()
            .map(|job| job.id)
            .collect();
        assert_eq!(dead, [poison, id]);
    }

    pub(super) async fn a_job_given_back_is_not_counted(&self) {
        let id = self.add(job("a", "work")).await.id();
        for token in 0..9 {
            assert_eq!(self.take_one(token, "work").await.attempt, 1);
            assert_eq!(self.nack(token, id, Settle::GiveBack).await, Settled::Done);
        }
        assert_eq!(self.show(id).await.unwrap().attempts, 0);
    }

    /// A hundred leases of the last attempt end together, and other jobs are due then.
    pub(super) async fn what_is_due_is_leased_beside_any_number_that_is_over(&self) {
        let suite = self.under(Rules {
            attempts: 1,
            ..self.rules
        });
        suite
            .add_all((0..100).map(|_| job("a", "lost")).collect())
            .await;
        let due = |_| NewJob {
            due: Due::After(LEASE),
            ..job("b", "due")
        };
        suite.add_all((0..10).map(due).collect()).await;
        assert_eq!(suite.take(1, 100, None).await.jobs.len(), 100);
        suite.clock.advance(LEASE);
        assert_eq!(texts(&suite.take(2, 5, None).await.jobs), ["due"; 5]);
    }

    /// Neither what is due of others comes before it, nor is all that is over of it put away at once.
    pub(super) async fn a_recipient_waits_for_nobody_elses_jobs(&self) {
        let due = |to: &str, wait| NewJob {
            due: Due::After(wait),
            ..job(to, to)
        };
        let others = (0..192).map(|_| due("others", MS));
        self.add_all(others.collect()).await;
        self.add(due("a", 2 * MS)).await;
        self.clock.advance(2 * MS);
        assert_eq!(texts(&self.take(1, 1, Some("a")).await.jobs), ["a"]);
        for priority in [Priority::High, Priority::Normal, Priority::Low] {
            let old = || NewJob {
                priority,
                ..job("b", "old")
            };
            self.add_all((0..150).map(|_| old()).collect()).await;
        }
        self.clock.advance(self.rules.expire_after);
        self.add(job("b", "new")).await;
        loop {
            let leased = self.take(2, 100, Some("b")).await;
            // A look at one store after the other may put away a little more, but never all of it.
            let swept = leased.swept;
            assert!(swept.expired <= 201, "{swept:?}");
            if !leased.jobs.is_empty() {
                assert_eq!(texts(&leased.jobs), ["new"]);
                break;
            }
            assert!(swept.expired > 0);
        }
    }
}
