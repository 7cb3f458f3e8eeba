//! Digests, and the bounds of a queue.

use std::sync::Arc;

use super::{HOUR, MS, Suite, digest, job, texts};
use crate::core::{IntoKey, StoreErrorKind};
use crate::data::queue::store::{
    Again, Due, EnqueueOutcome, JobState, Listing, NewJob, Rules, Settle, Settled,
};

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    pub(super) async fn a_digest_is_due_after_its_window_or_when_full(&self) {
        let id = self.add(digest("a", "1", 3)).await.id();
        assert_eq!(
            self.add(digest("a", "2", 3)).await,
            EnqueueOutcome::Joined(id)
        );
        assert!(matches!(
            self.add(digest("b", "1", 3)).await,
            EnqueueOutcome::New(_)
        ));
        let due = self.now() + 10 * MS;
        assert_eq!(self.take_none().await, Some(due));
        // Full: due now, and the next opens another.
        assert_eq!(
            self.add(digest("a", "3", 3)).await,
            EnqueueOutcome::Joined(id)
        );
        let next = self.add(digest("a", "4", 3)).await;
        assert!(matches!(next, EnqueueOutcome::New(_)));
        assert_eq!(texts(&self.take(1, 1, None).await.jobs), ["1+2+3"]);
        self.clock.advance(10 * MS);
        assert_eq!(
            self.add(digest("a", "5", 3)).await,
            EnqueueOutcome::Joined(next.id())
        );
        assert_eq!(texts(&self.take(2, 1, Some("a")).await.jobs), ["4+5"]);
        // Leasing closed it.
        assert!(matches!(
            self.add(digest("a", "6", 3)).await,
            EnqueueOutcome::New(_)
        ));
        let alone = self.add(digest("c", "alone", 1)).await;
        assert!(matches!(alone, EnqueueOutcome::New(_)));
        assert_eq!(texts(&self.take(3, 1, Some("c")).await.jobs), ["alone"]);
    }

    pub(super) async fn a_job_of_any_size_comes_back_whole(&self) {
        let sizes = [0, 1, 999, 1_019, 1_020, 1_021, 1_024, 1_025, 5_000, 70_000];
        let text = |size: usize| "x".repeat(size);
        let all = sizes.map(|size| job("a", &text(size)));
        let ids: Vec<_> = self.add_all(all.into()).await;
        let ids: Vec<_> = ids.iter().map(|added| added.id()).collect();
        // Given back and leased again, the whole of it each time; then gone, with all that it had.
        for token in [1, 2] {
            let jobs = self.take(token, 99, None).await.jobs;
            assert_eq!(texts(&jobs), sizes.map(text));
            let listed = self.list(Listing::Of("a".into_key(), 99)).await;
            let listed: Vec<usize> = listed.iter().map(|job| job.items[0].len()).collect();
            assert_eq!(listed, sizes);
            for id in ids.iter().take(usize::from(token == 1) * 99) {
                assert_eq!(self.nack(1, *id, Settle::GiveBack).await, Settled::Done);
            }
        }
        for id in &ids {
            assert_eq!(self.ack(2, *id).await, Settled::Done);
        }
        // A large one takes a small one's place, and the other way round.
        let given = |size: usize| NewJob {
            once: Some([7; 32]),
            again: Again::Replace,
            ..job("a", &text(size))
        };
        let id = self.add(given(10)).await.id();
        for size in [2_000, 20, 3_000, 4_000] {
            assert_eq!(self.add(given(size)).await, EnqueueOutcome::Replaced(id));
            let shown = self.show(id).await.unwrap();
            assert_eq!(shown.items[0].len(), size);
        }
        let jobs = self.take(3, 9, None).await.jobs;
        assert_eq!(texts(&jobs), [text(4_000)]);
        assert_eq!(self.ack(3, id).await, Settled::Done);
    }

    pub(super) async fn a_digest_over_its_bytes_is_closed_and_loses_nothing(&self) {
        let large = "x".repeat(100 * 1_024);
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.push(self.add(digest("a", &large, 100)).await.id());
        }
        assert_eq!((ids[0], ids[2], ids[4]), (ids[1], ids[3], ids[4]));
        assert!(ids[0] < ids[2] && ids[2] < ids[4]);
        self.clock.advance(10 * MS);
        let jobs = self.take(1, 9, None).await.jobs;
        let counts: Vec<usize> = jobs.iter().map(|job| job.items.len()).collect();
        assert_eq!(counts, [2, 2, 1]);
    }

    pub(super) async fn a_full_queue_refuses_all_of_a_call(&self) {
        let suite = self.under(Rules {
            capacity: 4,
            per_recipient: 2,
            ..self.rules
        });
        let add = |jobs| suite.store.enqueue(&suite.name, jobs, &suite.rules);
        let refused = add(vec![
            job("b", "1"),
            job("a", "1"),
            job("a", "2"),
            job("a", "3"),
        ])
        .await;
        assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Full);
        assert_eq!(suite.numbers(None).await, [0; 4]);
        let of_a = vec![job("a", "1"), job("a", "2")];
        assert_eq!(add(of_a).await.unwrap().len(), 2);
        assert_eq!(
            add(vec![job("a", "3")]).await.unwrap_err().kind(),
            StoreErrorKind::Full
        );
        let once = |item: &str| NewJob {
            once: Some([1; 32]),
            ..job("b", item)
        };
        add(vec![once("1"), digest("c", "1", 9)]).await.unwrap();
        assert_eq!(
            add(vec![job("d", "1")]).await.unwrap_err().kind(),
            StoreErrorKind::Full
        );
        // What adds no job needs no room.
        let joined = add(vec![once("2"), digest("c", "2", 9)]).await.unwrap();
        assert!(matches!(
            joined[..],
            [EnqueueOutcome::Duplicate(_), EnqueueOutcome::Joined(_)]
        ));
        // What is dead takes none.
        suite.clock.advance(suite.rules.expire_after + 10 * MS);
        assert_eq!(add(vec![job("a", "4")]).await.unwrap().len(), 1);
    }

    pub(super) async fn what_is_over_makes_room_before_what_is_due(&self) {
        let suite = self.under(Rules {
            capacity: 240,
            expire_after: HOUR,
            ..self.rules
        });
        let later = |_| NewJob {
            due: Due::After(HOUR),
            ..job("b", "later")
        };
        suite
            .add_all((0..120).map(|_| job("a", "now")).collect())
            .await;
        suite.add_all((0..120).map(later).collect()).await;
        suite.clock.advance(HOUR);
        let new = suite.add(job("a", "new")).await.id();
        let shown = suite.show(new).await.unwrap();
        assert_eq!(shown.state, JobState::Ready);
    }

    /// Neither by their bytes nor by their number, in one call or in many.
    pub(super) async fn digests_go_over_no_bound(&self) {
        let rules = Rules {
            per_recipient: 2,
            ..self.rules
        };
        let add = |jobs| self.store.enqueue(&self.name, jobs, &rules);
        let is_full = |answer: Result<Vec<EnqueueOutcome>, crate::core::StoreError>| {
            assert_eq!(answer.unwrap_err().kind(), StoreErrorKind::Full);
        };
        let large = "x".repeat(200 * 1_024);
        for item in ["1", "2"] {
            add(vec![digest("a", &(item.to_owned() + &large), 9)])
                .await
                .unwrap();
        }
        is_full(add(vec![digest("a", &large, 9)]).await);
        is_full(add(vec![digest("a", "small", 9), digest("a", &large, 9)]).await);
        let five = |most| (0..5).map(|_| digest("b", "1", most)).collect::<Vec<_>>();
        is_full(add(five(1)).await);
        is_full(add(five(2)).await);
        // Three and two.
        assert_eq!(add(five(3)).await.unwrap().len(), 5);
        assert_eq!(self.numbers(None).await, [2, 2, 0, 0]);
        // A replacement closes a digest: what would have joined is new.
        let opens = NewJob {
            once: Some([7; 32]),
            ..digest("c", "1", 9)
        };
        let replaces = NewJob {
            again: Again::Replace,
            ..opens.clone()
        };
        let joins = || digest("c", "2", 9);
        let and_two = [joins(), job("c", "3")];
        let refused = [&[opens.clone(), replaces.clone()][..], &and_two].concat();
        is_full(add(refused).await);
        add(vec![opens]).await.unwrap();
        is_full(add([&[replaces.clone()][..], &and_two].concat()).await);
        let taken = add(vec![replaces, joins()]).await.unwrap();
        assert!(matches!(
            taken[..],
            [EnqueueOutcome::Replaced(_), EnqueueOutcome::New(_)]
        ));
    }

    pub(super) async fn twenty_at_once_are_twenty(&self) {
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..20 {
            let (store, name, rules) =
                (Arc::clone(&self.store), Arc::clone(&self.name), self.rules);
            calls.spawn(async move {
                let jobs = vec![job("a", &number.to_string())];
                store
                    .enqueue(&name, jobs, &rules)
                    .await
                    .map(|added| added[0])
            });
        }
        let mut ids = std::collections::BTreeSet::new();
        while let Some(added) = calls.join_next().await {
            ids.insert(added.unwrap().unwrap().id());
        }
        assert_eq!(ids.len(), 20);
        assert_eq!(self.numbers(Some(&"a".into_key())).await, [20, 0, 0, 0]);
        let listed = self.list(Listing::Of("a".into_key(), 99)).await;
        assert_eq!(listed.len(), 20);
    }
}
