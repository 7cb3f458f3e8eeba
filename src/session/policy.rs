//! Decisions on values and `now`: what counts as live, when activity is recorded, who gives way.

use std::net::IpAddr;
use std::time::Duration;

use http::StatusCode;

use super::device::{Browser, Os};
use super::event::Signal;
use super::limits::{LONGEST_INTERVAL, LimitRule, SessionLimit};
use super::store::{EndCause, NotLive, REMEMBERED_MILLIS, Seen, SessionRecord, Verifier};
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

/// Compares what a renewal recorded with what was seen before: signals only between two known values of one kind.
pub(super) fn changes(before: &Seen, now: &Seen) -> impl Iterator<Item = Signal> + use<> {
    let is_other_device = match (before.device, now.device) {
        (Some(before), Some(now)) => {
            let known_os = before.os != Os::Unknown && now.os != Os::Unknown;
            let known_browser =
                before.browser != Browser::Unknown && now.browser != Browser::Unknown;
            (known_os && before.os != now.os) || (known_browser && before.browser != now.browser)
        }
        _ => false,
    };
    let is_other_network = match (before.ip, now.ip) {
        (Some(IpAddr::V4(before)), Some(IpAddr::V4(now))) => {
            before.octets()[..3] != now.octets()[..3]
        }
        (Some(IpAddr::V6(before)), Some(IpAddr::V6(now))) => {
            before.octets()[..6] != now.octets()[..6]
        }
        _ => false,
    };
    [
        is_other_device.then_some(Signal::DeviceChanged),
        is_other_network.then_some(Signal::NetworkChanged),
    ]
    .into_iter()
    .flatten()
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
    fn a_change_is_one_between_two_known_values_of_one_kind() {
        use crate::session::device::Device;
        let seen = |agent: &str, ip: &str| Seen {
            device: (!agent.is_empty()).then(|| Device::of_user_agent(agent.as_bytes())),
            ip: ip.parse().ok(),
        };
        let changes = |before: Seen, now: Seen| changes(&before, &now).collect::<Vec<_>>();
        let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
        let before = seen(firefox, "192.0.2.7");
        for same in [
            seen(
                "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Firefox/140.0",
                "192.0.2.255",
            ),
            seen("", "2001:db8::1"),
            seen("something of its own", ""),
        ] {
            assert_eq!(changes(before, same), []);
        }
        assert_eq!(
            changes(
                before,
                seen("Mozilla/5.0 (Windows NT 10.0) Firefox/128.0", "")
            ),
            [Signal::DeviceChanged]
        );
        assert_eq!(
            changes(before, seen("curl/8 (Linux)", "192.0.3.7")),
            [Signal::DeviceChanged, Signal::NetworkChanged]
        );
        let six = |text| seen("", text);
        assert_eq!(changes(six("2001:db8:1:2::1"), six("2001:db8:1:3::1")), []);
        assert_eq!(
            changes(six("2001:db8:1::1"), six("2001:db8:2::1")),
            [Signal::NetworkChanged]
        );
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
