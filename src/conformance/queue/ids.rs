//! Jobs that are given an id, and come again.

use std::time::Duration;

use super::{HOUR, MS, Suite, digest, job, texts};
use crate::data::queue::store::{Again, Due, EnqueueOutcome, NewJob, Rules, Settle, Settled};

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    pub(super) async fn an_id_is_known_while_its_job_lives_and_as_long_as_remembered(&self) {
        let with_id = |item: &str| NewJob {
            once: Some([7; 32]),
            ..job("a", item)
        };
        let first = self.add_all(vec![with_id("one"), with_id("two")]).await;
        let id = first[0].id();
        assert_eq!(
            first,
            [EnqueueOutcome::New(id), EnqueueOutcome::Duplicate(id)]
        );
        self.take_one(1, "one").await;
        assert_eq!(
            self.add(with_id("three")).await,
            EnqueueOutcome::Duplicate(id)
        );
        assert_eq!(self.ack(1, id).await, Settled::Done);
        self.clock.advance(self.rules.remember_for - MS);
        assert_eq!(
            self.add(with_id("four")).await,
            EnqueueOutcome::Duplicate(id)
        );
        self.clock.advance(MS);
        let next = self.add(with_id("five")).await;
        assert!(matches!(next, EnqueueOutcome::New(new) if new > id));
        let far = NewJob {
            once: Some([8; 32]),
            due: Due::After(3 * self.rules.remember_for),
            ..job("a", "far")
        };
        let far_id = self.add(far.clone()).await.id();
        self.clock.advance(2 * self.rules.remember_for);
        // Tidied up in between, it is known all the same: its job lives.
        self.take(9, 1, None).await;
        assert_eq!(
            self.add(far.clone()).await,
            EnqueueOutcome::Duplicate(far_id)
        );
        self.clock.advance(self.rules.remember_for);
        self.take_one(2, "far").await;
        assert_eq!(self.ack(2, far_id).await, Settled::Done);
        // Given again, it is remembered anew, also when the first job's life would be over.
        self.clock.advance(self.rules.expire_after - MS);
        let soon = NewJob {
            due: Due::After(Duration::ZERO),
            ..far
        };
        let soon_id = self.add(soon.clone()).await.id();
        self.take_one(3, "far").await;
        assert_eq!(self.ack(3, soon_id).await, Settled::Done);
        self.clock.advance(MS);
        self.take(9, 1, None).await;
        assert_eq!(self.add(soon).await, EnqueueOutcome::Duplicate(soon_id));
    }

    pub(super) async fn what_expired_is_not_known_any_more_though_nobody_has_noticed(&self) {
        let suite = self.under(Rules {
            remember_for: HOUR,
            expire_after: 2 * HOUR,
            ..self.rules
        });
        let with_id = |item: &str| NewJob {
            once: Some([7; 32]),
            ..job("a", item)
        };
        let first = suite.add(with_id("one")).await.id();
        suite.clock.advance(2 * HOUR - MS);
        let known = suite.add(with_id("two")).await;
        assert_eq!(known, EnqueueOutcome::Duplicate(first));
        suite.clock.advance(MS);
        // What is new must not be buried with it.
        let new = suite.add(with_id("three")).await;
        assert!(matches!(new, EnqueueOutcome::New(id) if id > first));
        suite.clock.advance(2 * HOUR);
        let many = (0..70).map(|number| NewJob {
            once: Some([if number == 0 { 7 } else { 100 + number }; 32]),
            ..job("b", "many")
        });
        let many = suite.add_all(many.collect()).await;
        assert!(matches!(many[0], EnqueueOutcome::New(id) if id > new.id()));
        // Somebody may still be at one that is leased.
        suite.take(1, 1, Some("b")).await;
        suite.clock.advance(2 * HOUR);
        let at_work = suite.add(with_id("four")).await;
        assert_eq!(at_work, EnqueueOutcome::Duplicate(many[0].id()));
    }

    pub(super) async fn a_revived_job_has_its_id_again(&self) {
        let with_id = |id: u8| NewJob {
            once: Some([id; 32]),
            ..job("a", "work")
        };
        let (mut dead, gone) = (Vec::new(), with_id(3));
        for id in 1..=3 {
            let added = self.add(with_id(id)).await.id();
            self.take_one(id, "work").await;
            let buried = self.nack(id, added, Settle::Dead(String::new())).await;
            assert_eq!(buried, Settled::Died);
            dead.push(added);
        }
        let (one, two) = (dead[0], dead[1]);
        self.clock.advance(self.rules.remember_for - MS);
        let known = EnqueueOutcome::Duplicate(one);
        assert_eq!(self.add(with_id(1)).await, known);
        self.clock.advance(MS);
        // Tidied up in between: a dead letter may live again.
        self.take_none().await;
        let revived = self.store.revive(&self.name, vec![one], &self.rules).await;
        assert_eq!(revived.unwrap(), [one]);
        assert_eq!(self.add(with_id(1)).await, known);
        // One that is dead no longer stands for its id, which goes to the next that has it.
        let next = self.add(with_id(2)).await;
        assert!(matches!(next, EnqueueOutcome::New(new) if new > two));
        let revived = self.store.revive(&self.name, vec![two], &self.rules).await;
        assert_eq!(revived.unwrap(), [two]);
        let again = self.add(with_id(2)).await;
        assert_eq!(again, EnqueueOutcome::Duplicate(next.id()));
        // Nor does one that nobody can revive any more.
        self.clock.advance(8 * 24 * HOUR);
        self.take_none().await;
        assert!(matches!(self.add(gone).await, EnqueueOutcome::New(_)));
    }

    pub(super) async fn a_replaced_job_keeps_its_number_until_it_is_leased(&self) {
        let with_id = |item: &str, after, again| NewJob {
            once: Some([9; 32]),
            due: Due::After(after),
            again,
            ..job("a", item)
        };
        let id = self.add(with_id("one", HOUR, Again::Keep)).await.id();
        let two = with_id("two", Duration::ZERO, Again::Replace);
        assert_eq!(self.add(two).await, EnqueueOutcome::Replaced(id));
        assert_eq!(self.numbers(None).await, [1, 0, 0, 0]);
        self.take_one(1, "two").await;
        let three = with_id("three", Duration::ZERO, Again::Replace);
        assert_eq!(self.add(three.clone()).await, EnqueueOutcome::Duplicate(id));
        let later = Settle::After(HOUR, String::new());
        assert_eq!(self.nack(1, id, later).await, Settled::Done);
        // It was leased: what may have been sent is not exchanged under its number.
        assert_eq!(self.add(three).await, EnqueueOutcome::Duplicate(id));
    }

    pub(super) async fn a_job_is_not_replaced_for_somebody_else_nor_with_what_others_put_in(&self) {
        let replacing = |job: NewJob| NewJob {
            once: Some([9; 32]),
            again: Again::Replace,
            ..job
        };
        let opened = self.add(digest("a", "1", 9)).await.id();
        let joined = self.add(replacing(digest("a", "2", 9))).await;
        assert_eq!(joined, EnqueueOutcome::Joined(opened));
        let again = self.add(replacing(job("a", "3"))).await;
        assert_eq!(again, EnqueueOutcome::Duplicate(opened));
        self.clock.advance(10 * MS);
        let jobs = self.take(1, 9, None).await.jobs;
        assert_eq!(texts(&jobs), ["1+2"]);
        assert_eq!(self.ack(1, opened).await, Settled::Done);
        let with_id = |to: &str, item: &str| NewJob {
            once: Some([8; 32]),
            again: Again::Replace,
            ..job(to, item)
        };
        let id = self.add(with_id("a", "for a")).await.id();
        let foreign = self.add(with_id("b", "for b")).await;
        assert_eq!(foreign, EnqueueOutcome::Duplicate(id));
        self.take_one(2, "for a").await;
    }
}
