//! Decisions on values and `now`: what counts as live, when activity is recorded, who gives way.

use std::time::Duration;

use http::StatusCode;

use super::limits::{LONGEST_INTERVAL, LimitRule, SessionLimit};
use super::store::{EndCause, NotLive, REMEMBERED_MILLIS, SessionRecord, Verifier};
use crate::core::Timestamp;

/// What decides whether a session counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) record: &'a SessionRecord,
    pub(super) verifier: &'a Verifier,
    /// The verifier before, and when it was replaced.
    pub(super) previous: Option<&'a (Verifier, Timestamp)>,
    /// Sessions set up until then are ended.
    pub(super) cut_off: Option<Timestamp>,
}

/// Checks a record: both ends, cut-off, verifier.
pub(super) fn check(facts: Facts<'_>, offered: &Verifier, now: Timestamp) -> Result<(), NotLive> {
    check_ends(facts, now)?;
    if facts.verifier == offered {
        return Ok(());
    }
    match facts.previous {
        Some((verifier, replaced)) if verifier == offered => Err(if remembers(*replaced, now) {
            NotLive::Superseded
        } else {
            NotLive::Replayed
        }),
        _ => Err(NotLive::WrongSecret),
    }
}

/// Checks a record without its verifier.
pub(super) fn check_ends(facts: Facts<'_>, now: Timestamp) -> Result<(), NotLive> {
    if facts.record.expires_at() <= now {
        return Err(NotLive::Missing);
    }
    if facts
        .cut_off
        .is_some_and(|cut_off| facts.record.created <= cut_off)
    {
        return Err(NotLive::Ended(EndCause::Everyone));
    }
    Ok(())
}

/// Says whether something of the moment `at` is still remembered.
pub(super) const fn remembers(at: Timestamp, now: Timestamp) -> bool {
    now.as_millis().saturating_sub(at.as_millis()) <= REMEMBERED_MILLIS
}

/// Says whether something last recorded at `recorded`, which lasts for `lifetime`, is to be recorded again.
pub(super) fn is_due(recorded: Timestamp, lifetime: Duration, now: Timestamp) -> bool {
    now.since(recorded) > (lifetime / 10).min(LONGEST_INTERVAL)
}

/// Says whether a login that began `age` ago rests on what was known before `change`.
pub(super) fn is_overtaken(change: Option<Timestamp>, age: Duration, now: Timestamp) -> bool {
    change.is_some_and(|change| now.minus(age) <= change)
}

/// Names the sessions that give way to one more; `None` if it is refused.
pub(super) fn evictions(others: &[&SessionRecord], limit: SessionLimit) -> Option<Vec<usize>> {
    let excess = (others.len() + 1).saturating_sub(usize::from(limit.most));
    if excess == 0 {
        return Some(Vec::new());
    }
    let mut order: Vec<usize> = (0..others.len()).collect();
    match limit.rule {
        LimitRule::Reject => return None,
        LimitRule::EvictOldest => {
            order.sort_by_key(|at| (others[*at].created, others[*at].id.to_string()))
        }
        LimitRule::EvictLongestIdle => {
            order.sort_by_key(|at| (others[*at].last_activity, others[*at].id.to_string()));
        }
    }
    order.truncate(excess);
    Some(order)
}

/// What an answer other than live means to a buffered write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeadWrite {
    /// The write is dropped.
    Drop,
    /// It sets up a new session.
    StartAnew,
}

/// Decides about a write that did not find its session live.
pub(super) const fn dead_write(why: NotLive, was_seen_live: bool) -> DeadWrite {
    match why {
        NotLive::Superseded | NotLive::Ended(_) => DeadWrite::Drop,
        _ if was_seen_live => DeadWrite::Drop,
        NotLive::Replayed | NotLive::WrongSecret | NotLive::Missing => DeadWrite::StartAnew,
    }
}

/// Says whether the cookie of a session that is not live is removed. It is left alone where the browser may
/// already hold a newer one.
pub(super) const fn removes_cookie(why: NotLive) -> bool {
    !matches!(why, NotLive::Superseded | NotLive::Ended(EndCause::Logout))
}

/// Says whether what a handler buffered is kept, by the status it answered.
pub(super) fn keeps_buffer(status: StatusCode) -> bool {
    !status.is_server_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn activity_is_recorded_when_the_recorded_one_is_older_than_a_tenth_or_a_minute() {
        let idle = Duration::from_secs(900);
        assert!(!is_due(at(0), idle, at(60_000)));
        assert!(is_due(at(0), idle, at(60_001)));
        assert!(is_due(at(0), Duration::from_secs(10), at(1_001)));
        assert!(!is_due(at(5_000), idle, at(0)), "a clock that went back");
    }

    #[test]
    fn a_login_as_old_as_the_change_is_overtaken() {
        let age = Duration::from_millis(10);
        assert!(is_overtaken(Some(at(90)), age, at(100)));
        assert!(!is_overtaken(Some(at(89)), age, at(100)));
        assert!(!is_overtaken(None, age, at(100)));
    }

    #[test]
    fn a_write_never_follows_a_session_that_this_request_saw_alive() {
        for why in [NotLive::Missing, NotLive::Replayed, NotLive::WrongSecret] {
            assert_eq!(dead_write(why, false), DeadWrite::StartAnew);
            assert_eq!(dead_write(why, true), DeadWrite::Drop);
        }
        for why in [NotLive::Superseded, NotLive::Ended(EndCause::Revoked)] {
            assert_eq!(dead_write(why, false), DeadWrite::Drop);
        }
        assert!(!removes_cookie(NotLive::Ended(EndCause::Logout)));
        assert!(removes_cookie(NotLive::Ended(EndCause::Revoked)));
    }
}
