//! What every store of queues promises, and random histories against a sorted list.

mod model;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::core::{Clock, IntoKey, Key, ManualClock, StoreErrorKind, Timestamp};
use crate::data::queue::store::{
    Again, Attempt, Claim, DigestWish, Due, EnqueueOutcome, JobId, JobState, Leased, Listed,
    Listing, NewJob, Priority, QueueStore, Rules, Settle, Settled, Token,
};

pub use model::histories;

const LEASE: Duration = Duration::from_secs(30);
const HOUR: Duration = Duration::from_secs(3_600);
const MS: Duration = Duration::from_millis(1);

/// Runs the whole suite. `store` must be empty and tell the time of `clock`.
///
/// # Panics
/// When the store breaks a promise of [`QueueStore`].
pub async fn queue(store: Arc<dyn QueueStore>, clock: &ManualClock) {
    let make = |name: &str| Suite {
        store: Arc::clone(&store),
        clock: clock.clone(),
        name: Arc::from(name),
        rules: rules(),
    };
    make("order").priority_then_time_then_enqueueing().await;
    make("batch")
        .a_batch_is_of_one_recipient_and_priority()
        .await;
    make("from").a_recipients_jobs_come_in_any_priority().await;
    make("due")
        .no_job_comes_before_its_time_and_its_life_starts_then()
        .await;
    make("expiry")
        .what_is_not_delivered_in_time_is_a_dead_letter()
        .await;
    make("lease")
        .a_lease_ends_exactly_then_and_tries_are_counted()
        .await;
    make("late").a_late_ack_changes_nothing().await;
    make("extend").an_extended_lease_holds().await;
    make("nack")
        .a_failed_job_comes_again_later_until_it_is_dead()
        .await;
    make("back").a_job_given_back_is_not_counted().await;
    make("once")
        .an_id_is_known_while_its_job_lives_and_as_long_as_remembered()
        .await;
    make("replace")
        .a_replaced_job_keeps_its_number_until_it_is_leased()
        .await;
    make("digest")
        .a_digest_is_due_after_its_window_or_when_full()
        .await;
    make("large")
        .a_digest_over_its_bytes_is_closed_and_loses_nothing()
        .await;
    make("room").a_full_queue_refuses_all_of_a_call().await;
    make("replace.others")
        .a_job_is_not_replaced_for_somebody_else_nor_with_what_others_put_in()
        .await;
    make("room.digests").digests_go_over_no_bound().await;
    make("cancel")
        .only_what_waits_is_cancelled_and_only_by_its_recipient()
        .await;
    make("revive")
        .a_dead_letter_comes_back_with_fresh_tries()
        .await;
    make("dead").dead_letters_are_forgotten_after_a_week().await;
    make("aging").an_aged_job_overtakes().await;
    make("told").sleeping_workers_are_told().await;
    make("parallel").twenty_at_once_are_twenty().await;
}

fn rules() -> Rules {
    Rules {
        capacity: 100_000,
        per_recipient: 1_000,
        attempts: 3,
        expire_after: 24 * HOUR,
        remember_for: 24 * HOUR,
        aging: Duration::ZERO,
    }
}

fn job(to: &str, item: &str) -> NewJob {
    NewJob {
        recipient: to.into_key(),
        priority: Priority::Normal,
        due: Due::After(Duration::ZERO),
        item: Bytes::copy_from_slice(item.as_bytes()),
        once: None,
        again: Again::Keep,
        digest: None,
    }
}

fn digest(to: &str, item: &str, max: u32) -> NewJob {
    NewJob {
        digest: Some(DigestWish {
            key: "comments".into_key(),
            window: 10 * MS,
            max,
        }),
        ..job(to, item)
    }
}

struct Suite {
    store: Arc<dyn QueueStore>,
    clock: ManualClock,
    name: Arc<str>,
    rules: Rules,
}

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    async fn add(&self, job: NewJob) -> EnqueueOutcome {
        self.add_all(vec![job]).await[0]
    }

    async fn add_all(&self, jobs: Vec<NewJob>) -> Vec<EnqueueOutcome> {
        let added = self.store.enqueue(&self.name, jobs, &self.rules);
        added.await.unwrap()
    }

    async fn take(&self, token: u8, most: usize, of: Option<&str>) -> Leased {
        let claim = Claim {
            token: Token([token; 16]),
            most,
            lease: LEASE,
            recipient: of.map(IntoKey::into_key),
        };
        self.store
            .lease(&self.name, claim, &self.rules)
            .await
            .unwrap()
    }

    /// Leases one, which must be `item`.
    async fn take_one(&self, token: u8, item: &str) -> Attempt {
        let mut leased = self.take(token, 1, None).await;
        assert_eq!(texts(&leased.jobs), [item]);
        leased.jobs.remove(0)
    }

    async fn take_none(&self) -> Option<Timestamp> {
        let leased = self.take(99, 9, None).await;
        assert_eq!((texts(&leased.jobs), leased.recipient), (vec![], None));
        leased.next_due
    }

    async fn ack(&self, token: u8, id: JobId) -> Settled {
        let acked = self.store.ack(&self.name, Token([token; 16]), vec![id]);
        acked.await.unwrap()[0]
    }

    async fn nack(&self, token: u8, id: JobId, how: Settle) -> Settled {
        let jobs = vec![(id, how)];
        let settled = self
            .store
            .nack(&self.name, Token([token; 16]), jobs, &self.rules);
        settled.await.unwrap()[0]
    }

    async fn show(&self, id: JobId) -> Option<Listed> {
        self.list(Listing::Ids(vec![id])).await.pop()
    }

    async fn list(&self, listing: Listing) -> Vec<Listed> {
        self.store
            .list(&self.name, listing, &self.rules)
            .await
            .unwrap()
    }

    async fn numbers(&self, of: Option<&Key>) -> [u64; 4] {
        let depth = self.store.count(&self.name, of, &self.rules).await.unwrap();
        [depth.ready, depth.delayed, depth.leased, depth.dead]
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.now_micros() / 1_000)
    }

    async fn priority_then_time_then_enqueueing(&self) {
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

    async fn a_batch_is_of_one_recipient_and_priority(&self) {
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

    async fn a_recipients_jobs_come_in_any_priority(&self) {
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

    async fn no_job_comes_before_its_time_and_its_life_starts_then(&self) {
        let suite = Suite {
            rules: Rules {
                expire_after: HOUR,
                ..self.rules
            },
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            name: Arc::clone(&self.name),
        };
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

    async fn what_is_not_delivered_in_time_is_a_dead_letter(&self) {
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

    async fn a_lease_ends_exactly_then_and_tries_are_counted(&self) {
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

    async fn a_late_ack_changes_nothing(&self) {
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

    async fn an_extended_lease_holds(&self) {
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

    async fn a_failed_job_comes_again_later_until_it_is_dead(&self) {
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

    async fn a_job_given_back_is_not_counted(&self) {
        let id = self.add(job("a", "work")).await.id();
        for token in 0..9 {
            assert_eq!(self.take_one(token, "work").await.attempt, 1);
            assert_eq!(self.nack(token, id, Settle::GiveBack).await, Settled::Done);
        }
        assert_eq!(self.show(id).await.unwrap().attempts, 0);
    }

    async fn an_id_is_known_while_its_job_lives_and_as_long_as_remembered(&self) {
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
        assert_eq!(self.add(far).await, EnqueueOutcome::Duplicate(far_id));
    }

    async fn a_replaced_job_keeps_its_number_until_it_is_leased(&self) {
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

    async fn a_digest_is_due_after_its_window_or_when_full(&self) {
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

    async fn a_digest_over_its_bytes_is_closed_and_loses_nothing(&self) {
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

    async fn a_full_queue_refuses_all_of_a_call(&self) {
        let suite = Suite {
            rules: Rules {
                capacity: 4,
                per_recipient: 2,
                ..self.rules
            },
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            name: Arc::clone(&self.name),
        };
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

    async fn a_job_is_not_replaced_for_somebody_else_nor_with_what_others_put_in(&self) {
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

    /// Neither by their bytes nor by their number, in one call or in many.
    async fn digests_go_over_no_bound(&self) {
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

    async fn only_what_waits_is_cancelled_and_only_by_its_recipient(&self) {
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

    async fn a_dead_letter_comes_back_with_fresh_tries(&self) {
        let id = self.add(job("a", "work")).await.id();
        self.take_one(1, "work").await;
        self.nack(1, id, Settle::Dead("no".to_owned())).await;
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

    async fn dead_letters_are_forgotten_after_a_week(&self) {
        let id = self.add(job("a", "work")).await.id();
        self.take_one(1, "work").await;
        self.nack(1, id, Settle::Dead("no".to_owned())).await;
        self.clock.advance(7 * 24 * HOUR - MS);
        assert!(self.show(id).await.is_some());
        self.clock.advance(MS);
        assert_eq!(self.take(1, 1, None).await.swept.dropped, 1);
        assert_eq!(self.show(id).await, None);
    }

    async fn an_aged_job_overtakes(&self) {
        let suite = Suite {
            rules: Rules {
                aging: 10 * MS,
                ..self.rules
            },
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            name: Arc::clone(&self.name),
        };
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

    async fn sleeping_workers_are_told(&self) {
        let told = Arc::new(tokio::sync::Semaphore::new(0));
        let listening = self
            .store
            .subscribe(&self.name, super::bell(&told))
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
        drop(listening);
    }

    async fn twenty_at_once_are_twenty(&self) {
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

/// The items of each job, joined.
fn texts(jobs: &[Attempt]) -> Vec<String> {
    let text = |item: &Bytes| String::from_utf8_lossy(item).into_owned();
    let joined = |job: &Attempt| job.items.iter().map(text).collect::<Vec<_>>().join("+");
    jobs.iter().map(joined).collect()
}
