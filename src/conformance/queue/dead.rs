//! Dead letters, and jobs that are taken back.

use std::sync::Arc;

use super::{HOUR, MS, Suite, job};
use crate::core::{IntoKey, StoreErrorKind};
use crate::data::queue::store::{JobId, JobState, Listing, Rules, Settle, Settled};

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    pub(super) async fn what_is_not_delivered_in_time_is_a_dead_letter(&self) {
        let id = self.add(job("a", "old")).await.id();
        self.clock.advance(self.rules.expire_after - MS);
        assert_eq!(self.show(id).await.unwrap().state, JobState::Ready);
        self.clock.advance(MS);
        let leased = self.take(1, 1, None).await;
        assert_eq!((leased.jobs.len(), leased.swept.expired), (0, 1));
        let dead = self.list(Listing::Dead(9)).await;
        assert_eq!(
            (dead[0].id, dead[0].state, dead[0].attempts),
            (id, JobState::Dead, 0)
        );
        assert_eq!(dead[0].last_error.as_deref(), Some("expired"));
        assert_eq!(self.numbers(None).await, [0, 0, 0, 1]);
        assert_eq!(self.numbers(Some(&"a".into_key())).await, [0; 4]);
    }

    pub(super) async fn only_what_waits_is_cancelled_and_only_by_its_recipient(&self) {
        let jobs = vec![job("a", "1"), job("a", "2"), job("b", "3")];
        let ids: Vec<JobId> = self
            .add_all(jobs)
            .await
            .iter()
            .map(|job| job.id())
            .collect();
        self.take_one(1, "1").await;
        let cancelled = self.store.cancel(&self.name, &"a".into_key(), ids.clone());
        assert_eq!(cancelled.await.unwrap(), [ids[1]]);
        assert_eq!(self.show(ids[1]).await, None);
        self.take_one(2, "3").await;
        assert_eq!(self.ack(1, ids[0]).await, Settled::Done);
    }

    pub(super) async fn a_dead_letter_comes_back_with_fresh_tries(&self) {
        let id = self.add(job("a", "work")).await.id();
        self.take_one(1, "work").await;
        let words = format!("no\0way{}", "é".repeat(300));
        assert_eq!(self.nack(1, id, Settle::Dead(words)).await, Settled::Died);
        let kept = self.show(id).await.unwrap().last_error.unwrap();
        assert!(kept.starts_with("no wayé"), "{kept}");
        assert_eq!(kept.len(), 500);
        let live = self.add(job("b", "live")).await.id();
        let revive = |ids, rules: Rules| {
            let (store, name) = (Arc::clone(&self.store), Arc::clone(&self.name));
            async move { store.revive(&name, ids, &rules).await }
        };
        let tight = Rules {
            capacity: 1,
            ..self.rules
        };
        let refused = revive(vec![id], tight).await.unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Full);
        assert_eq!(revive(vec![id, live, id], self.rules).await.unwrap(), [id]);
        assert_eq!(self.take(2, 1, Some("a")).await.jobs[0].attempt, 1);
        assert_eq!(self.numbers(None).await, [1, 0, 1, 0]);
    }

    pub(super) async fn dead_letters_are_forgotten_after_a_week(&self) {
        let id = self.add(job("a", "work")).await.id();
        self.take_one(1, "work").await;
        self.nack(1, id, Settle::Dead("no".to_owned())).await;
        self.clock.advance(7 * 24 * HOUR - MS);
        assert!(self.show(id).await.is_some());
        self.clock.advance(MS);
        assert_eq!(self.take(1, 1, None).await.swept.dropped, 1);
        assert_eq!(self.show(id).await, None);
    }

    /// Nobody works, and what is new buries what is over.
    pub(super) async fn however_many_die_no_more_are_kept_than_promised(&self) {
        let suite = self.under(Rules {
            capacity: 200,
            expire_after: HOUR,
            ..self.rules
        });
        for _ in 0..130 {
            let jobs = (0..100).map(|_| job("a", "work"));
            assert_eq!(suite.add_all(jobs.collect()).await.len(), 100);
            suite.clock.advance(HOUR);
        }
        let [_, _, _, dead] = suite.numbers(None).await;
        assert!((9_000..=10_100).contains(&dead), "{dead} are kept");
        suite.clock.advance(7 * 24 * HOUR);
        for _ in 0..130 {
            suite.take(1, 1, None).await;
            suite.numbers(None).await;
        }
        // But for those that died last.
        let [_, _, _, dead] = suite.numbers(None).await;
        assert!(dead <= 200, "{dead} are kept");
    }
}
