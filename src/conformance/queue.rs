//! What every store of queues promises, and random histories against a sorted list.

mod dead;
mod ids;
mod leases;
mod model;
mod order;
mod room;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::core::{Clock, IntoKey, Key, ManualClock, Timestamp};
use crate::data::queue::store::{
    Again, Attempt, Claim, DigestWish, Due, EnqueueOutcome, JobId, Leased, Listed, Listing, NewJob,
    Priority, QueueStore, Rules, Settle, Settled, Token,
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
    make("once.expired")
        .what_expired_is_not_known_any_more_though_nobody_has_noticed()
        .await;
    make("once.revived").a_revived_job_has_its_id_again().await;
    make("replace")
        .a_replaced_job_keeps_its_number_until_it_is_leased()
        .await;
    make("digest")
        .a_digest_is_due_after_its_window_or_when_full()
        .await;
    make("sizes").a_job_of_any_size_comes_back_whole().await;
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
    make("room.over")
        .what_is_over_makes_room_before_what_is_due()
        .await;
    make("dead.many")
        .however_many_die_no_more_are_kept_than_promised()
        .await;
    make("lease.many")
        .what_is_due_is_leased_beside_any_number_that_is_over()
        .await;
    make("lease.from")
        .a_recipient_waits_for_nobody_elses_jobs()
        .await;
    make("dead").dead_letters_are_forgotten_after_a_week().await;
    make("aging").an_aged_job_overtakes().await;
    make("aging.expiry")
        .what_expired_is_found_behind_younger_ones_that_aging_puts_before_it()
        .await;
    make("aging.window")
        .what_expired_is_found_among_any_number_that_aging_puts_beside_it()
        .await;
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
    /// The same queue under other rules.
    fn under(&self, rules: Rules) -> Self {
        Self {
            store: Arc::clone(&self.store),
            clock: self.clock.clone(),
            name: Arc::clone(&self.name),
            rules,
        }
    }

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
}

/// The items of each job, joined.
fn texts(jobs: &[Attempt]) -> Vec<String> {
    let text = |item: &Bytes| String::from_utf8_lossy(item).into_owned();
    let joined = |job: &Attempt| job.items.iter().map(text).collect::<Vec<_>>().join("+");
    jobs.iter().map(joined).collect()
}
