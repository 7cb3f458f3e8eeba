//! What is kept, what is believed, and what ends it.

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::core::{ManualClock, Timestamp};
use crate::rate_limit::store::{Scope, Tag};
use crate::rate_limit::{PartitionKey, Quota};

struct Desk {
    cache: Arc<DenyCache>,
    clock: ManualClock,
    scope: Scope,
    key: PartitionKey,
}

impl Desk {
    /// A list that hears notices.
    fn new() -> Self {
        let desk = Self::deaf();
        desk.cache.hear(Notice::Restored);
        desk
    }

    fn deaf() -> Self {
        let clock = ManualClock::at("2030-01-01T00:00:00Z".parse::<Timestamp>().unwrap());
        let keys = MemoryStore::builder()
            .clock(clock.clone())
            .max_entries(MOST_KEYS);
        Self {
            cache: Arc::new(DenyCache::new(keys.build(), true)),
            scope: Scope::new("g", Tag::Key, "p", Quota::per_minute(5)),
            key: PartitionKey::from("k"),
            clock,
        }
    }

    fn charge(&self, limit: u32, cost: u32) -> Charge<'_> {
        Charge {
            bucket: Bucket {
                scope: &self.scope,
                key: &self.key,
            },
            limit,
            cost,
            mode: Mode::Enforced,
        }
    }

    fn asked(&self) -> Option<Asked> {
        self.cache.asked(&[self.charge(5, 1)])
    }

    /// The server says that the key is full at 5 and that a unit is free in so many seconds.
    fn full(&self, asked: &Asked, seconds: u64) {
        let wait = Some(Duration::from_secs(seconds));
        let state = PolicyState::new((Outcome::Denied, wait), 5, (5, wait), None);
        self.told(asked, state, None);
    }

    fn told(&self, asked: &Asked, state: PolicyState, block: Option<u64>) {
        let verdict = Verdict {
            admitted: false,
            states: SmallVec::from_iter([state]),
            now: self.cache.keys.now_micros(),
            source: Source::Store,
        };
        asked.answered(&verdict, &[block]);
    }

    fn refuses(&self, limit: u32, cost: u32) -> Option<Duration> {
        let verdict = self.cache.refuse(&[self.charge(limit, cost)])?;
        assert!(!verdict.admitted && verdict.source == Source::DenyCache);
        verdict.states[0].retry_in()
    }

    fn freed(&self) {
        let payload = DenyCache::payload(&self.charge(5, 1).bucket);
        self.cache
            .hear(Notice::Payload(Bytes::copy_from_slice(&payload)));
    }
}

const fn secs(seconds: u64) -> Option<Duration> {
    Some(Duration::from_secs(seconds))
}

#[test]
fn a_full_key_is_refused_until_a_unit_is_free_and_told_the_true_wait() {
    let desk = Desk::new();
    desk.full(&desk.asked().unwrap(), 3);
    assert_eq!(desk.refuses(5, 1), secs(3));
    desk.clock.advance(Duration::from_secs(2));
    assert_eq!(desk.refuses(5, 1), secs(1));
    assert_eq!(desk.refuses(6, 1), None, "a higher limit has room");
    assert_eq!(desk.refuses(5, 0), None, "nothing always fits");
    assert_eq!(desk.refuses(5, 6), None, "refused for good, not for now");
    assert_eq!(desk.refuses(5, 2), None, "its wait is not known");
    desk.clock.advance(Duration::from_secs(1));
    assert_eq!(desk.refuses(5, 1), None);
}

#[test]
fn nothing_is_believed_longer_than_five_seconds_nor_before_it_was_asked_for() {
    let desk = Desk::new();
    desk.full(&desk.asked().unwrap(), 60);
    desk.clock.advance(Duration::from_micros(4_999_999));
    assert!(desk.refuses(5, 1) > secs(55));
    desk.clock.advance(Duration::from_micros(1));
    assert_eq!(desk.refuses(5, 1), None);
    desk.full(&desk.asked().unwrap(), 60);
    desk.clock.set_micros(desk.cache.keys.now_micros() - 1);
    assert_eq!(desk.refuses(5, 1), None, "the clock was set back");
    desk.clock.advance(Duration::from_secs(1));
    assert_eq!(desk.refuses(5, 1), None, "and what was known is not again");
}

#[test]
fn larger_costs_and_lower_limits_are_told_their_own_waits_until_there_are_too_many() {
    let desk = Desk::new();
    let ask = |limit, cost, seconds| {
        let asked = desk.cache.asked(&[desk.charge(limit, cost)]).unwrap();
        let wait = |seconds| Some(Duration::from_secs(seconds));
        let retry = (Outcome::Denied, wait(seconds));
        let state = PolicyState::new(retry, limit, (5, wait(1)), None);
        desk.told(&asked, state, None);
    };
    ask(5, 1, 1);
    ask(5, 2, 2);
    ask(4, 2, 3);
    assert_eq!(desk.refuses(5, 1), secs(1), "the higher limit stands");
    assert_eq!((desk.refuses(5, 2), desk.refuses(4, 2)), (secs(2), secs(3)));
    assert_eq!(desk.refuses(3, 3), None);
    ask(5, 3, 3);
    ask(5, 4, 4);
    assert_eq!(desk.refuses(3, 3), secs(1), "no further way to the server");
}

#[test]
fn a_blocked_key_refuses_every_cost() {
    let desk = Desk::new();
    let wait = Some(Duration::from_secs(2));
    let state = PolicyState::new((Outcome::Blocked, wait), 5, (0, None), None);
    desk.told(&desk.asked().unwrap(), state, Some(2_000_000));
    assert_eq!((desk.refuses(5, 0), desk.refuses(9, 1)), (wait, wait));
    desk.clock.advance(Duration::from_secs(2));
    assert_eq!(desk.refuses(5, 0), None);
}

#[test]
fn what_has_something_left_or_only_counts_is_not_kept() {
    let desk = Desk::new();
    let wait = Some(Duration::from_secs(2));
    let some_left = PolicyState::new((Outcome::Denied, wait), 5, (4, wait), None);
    desk.told(&desk.asked().unwrap(), some_left, None);
    let shadow = Charge {
        mode: Mode::Shadow,
        ..desk.charge(5, 1)
    };
    desk.full(&desk.cache.asked(&[shadow]).unwrap(), 3);
    assert_eq!(desk.refuses(5, 1), None);
    desk.full(&desk.asked().unwrap(), 3);
    assert!(desk.cache.refuse(&[shadow]).is_none());
}

#[test]
fn a_key_that_is_freed_is_forgotten_and_so_is_every_reply_that_was_asked_for_before() {
    let desk = Desk::new();
    let (early, late) = (desk.asked().unwrap(), desk.asked().unwrap());
    desk.full(&early, 3);
    desk.freed();
    assert_eq!(desk.refuses(5, 1), None);
    desk.full(&late, 3);
    assert_eq!(desk.refuses(5, 1), None, "it crossed the notice");
    let after = desk.asked().unwrap();
    desk.full(&after, 2);
    assert_eq!(desk.refuses(5, 1), secs(2));
    desk.full(&late, 3);
    assert_eq!(
        desk.refuses(5, 1),
        secs(2),
        "nor does it replace a newer one"
    );
    desk.clock.advance(Duration::from_secs(3));
    desk.full(&late, 9);
    assert_eq!(desk.refuses(5, 1), None, "also when that one is over");
}

#[test]
fn without_notices_nothing_is_kept_and_what_was_kept_before_is_not_believed_after() {
    let desk = Desk::deaf();
    assert!(desk.asked().is_none());
    desk.cache.hear(Notice::Restored);
    let before = desk.asked().unwrap();
    desk.full(&before, 3);
    desk.cache.hear(Notice::Lost);
    assert_eq!(desk.refuses(5, 1), None);
    assert!(desk.asked().is_none());
    desk.cache.hear(Notice::Restored);
    desk.full(&before, 3);
    assert_eq!(desk.refuses(5, 1), None);
    desk.full(&desk.asked().unwrap(), 3);
    assert_eq!(desk.refuses(5, 1), secs(3));
    desk.cache.hear(Notice::Payload(Bytes::from_static(b"?")));
    assert_eq!(
        desk.refuses(5, 1),
        None,
        "a notice that cannot be read may mean any key"
    );
}

#[test]
fn a_flood_of_full_keys_stays_within_the_bound() {
    let mut desk = Desk::new();
    for n in 0..MOST_KEYS as u64 + 5_000 {
        desk.key = PartitionKey::from(format!("{n}"));
        desk.full(&desk.asked().unwrap(), 3);
    }
    assert_eq!(desk.cache.keys.table::<Known>().entries(), MOST_KEYS);
    assert_eq!(desk.refuses(5, 1), secs(3));
}

#[test]
fn a_flood_of_keys_that_are_freed_leaves_what_is_known_of_others() {
    let mut desk = Desk::new();
    desk.full(&desk.asked().unwrap(), 3);
    for n in 0..MOST_KEYS {
        desk.key = PartitionKey::from(format!("{n}"));
        desk.freed();
    }
    desk.key = PartitionKey::from("k");
    assert_eq!(desk.refuses(5, 1), secs(3));
    assert!(desk.cache.keys.table::<Known>().entries() <= 1);
}
