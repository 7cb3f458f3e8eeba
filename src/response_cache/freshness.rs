//! Freshness and age: pure arithmetic of RFC 9111 §4.2, in microseconds unless a name says seconds.

use http::header::{self, HeaderMap};
use http::{HeaderValue, StatusCode};

use super::date;
use super::directives::{Directives, MOST_SECONDS, digit_string};

pub(super) const MICROS: u64 = 1_000_000;
/// Heuristic freshness never lasts longer.
const LONGEST_HEURISTIC: u64 = 24 * 3_600;

/// Where a lifetime comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Headers,
    Policy,
    Heuristic,
}

/// Reads the lifetime that the fields say, in seconds (RFC 9111 §4.2.1). `s-maxage` counts where the cache is shared.
pub(super) fn said_seconds(
    said: &Directives,
    fields: &HeaderMap,
    private: bool,
    now: i64,
) -> Option<u64> {
    let shared = if private { None } else { said.s_maxage };
    shared.or(said.max_age).or_else(|| {
        if said.targeted {
            return None;
        }
        let mut lines = fields.get_all(header::EXPIRES).iter();
        let first = lines.next()?;
        // Several lines that differ are as good as one that is no date: already expired.
        let expires = lines
            .all(|line| line == first)
            .then(|| date::parse(first.as_bytes(), now))
            .flatten();
        let date = date_seconds(fields, now).unwrap_or(now);
        Some(expires.map_or(0, |expires| seconds_between(date, expires)))
    })
}

/// A tenth of the time since the last change, at most a day (RFC 9111 §4.2.2), in seconds.
pub(super) fn heuristic_seconds(fields: &HeaderMap, now: i64) -> Option<u64> {
    let changed = date::parse(fields.get(header::LAST_MODIFIED)?.as_bytes(), now)?;
    let date = date_seconds(fields, now).unwrap_or(now);
    Some((seconds_between(changed, date) / 10).min(LONGEST_HEURISTIC))
}

/// Statuses that may be fresh without anybody saying so (RFC 9110 §15.1, parts left out).
pub(super) fn is_heuristic(status: StatusCode) -> bool {
    matches!(
        status.as_u16(),
        200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501
    )
}

/// Statuses that a route's plain `ttl` is for.
pub(super) fn is_plain(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308)
}

/// The age of a response when its head came (RFC 9111 §4.2.3): `asked` and `received` by the store's clock.
pub(super) fn initial_age(fields: &HeaderMap, asked: u64, received: u64) -> u64 {
    let now = seconds_of(received);
    let apparent = date_seconds(fields, now).map_or(0, |date| seconds_between(date, now));
    let said = fields.get(header::AGE).and_then(age_seconds).unwrap_or(0);
    let corrected = said * MICROS + received.saturating_sub(asked);
    (apparent * MICROS).max(corrected)
}

/// The first member of the first line; digits only, else nothing was said.
fn age_seconds(value: &HeaderValue) -> Option<u64> {
    let first = value.as_bytes().split(|byte| *byte == b',').next()?;
    digit_string(first.trim_ascii())
}

pub(super) fn date_seconds(fields: &HeaderMap, now: i64) -> Option<i64> {
    date::parse(fields.get(header::DATE)?.as_bytes(), now)
}

pub(super) fn seconds_of(micros: u64) -> i64 {
    i64::try_from(micros / MICROS).unwrap_or(i64::MAX)
}

fn seconds_between(from: i64, to: i64) -> u64 {
    u64::try_from(to.saturating_sub(from))
        .unwrap_or(0)
        .min(MOST_SECONDS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields(list: &[(&'static str, String)]) -> HeaderMap {
        list.iter()
            .map(|(name, value)| {
                (
                    http::HeaderName::from_static(name),
                    HeaderValue::try_from(value).unwrap(),
                )
            })
            .collect()
    }

    fn at(seconds: u64) -> String {
        date::write(seconds).unwrap().to_str().unwrap().to_owned()
    }

    proptest! {
        /// RFC 9111 §4.2.3 word for word, in whole seconds.
        #[test]
        fn the_age_is_what_the_rfc_computes(date in 0_u64..4_000_000, age in proptest::option::of(0_u64..1_000),
                                            asked in 0_u64..4_000_000, delay in 0_u64..100) {
            let received = asked + delay;
            let mut said = vec![("date", at(date))];
            said.extend(age.map(|age| ("age", age.to_string())));
            let apparent_age = 0.max(received as i64 - date as i64);
            let corrected_age_value = age.unwrap_or(0) as i64 + delay as i64;
            let oracle = apparent_age.max(corrected_age_value) as u64;
            prop_assert_eq!(initial_age(&fields(&said), asked * MICROS, received * MICROS), oracle * MICROS);
        }

        /// RFC 9111 §4.2.1 as its list of cases.
        #[test]
        fn the_lifetime_is_the_first_that_is_said(s in proptest::option::of(0_u64..100), m in proptest::option::of(0_u64..100),
                                                  e in proptest::option::of(0_u64..200), private: bool) {
            let mut list = vec![("date", at(100))];
            list.extend(e.map(|e| ("expires", at(e))));
            let said = Directives { s_maxage: s, max_age: m, ..Directives::default() };
            let oracle = match (s, m, e) {
                (Some(s), _, _) if !private => Some(s),
                (_, Some(m), _) => Some(m),
                (_, _, Some(e)) => Some(e.saturating_sub(100)),
                _ => None,
            };
            prop_assert_eq!(said_seconds(&said, &fields(&list), private, 5_000), oracle);
        }
    }

    #[test]
    fn several_differing_or_malformed_expires_lines_are_expired() {
        let said = |lines: &[&str]| {
            let mut map = HeaderMap::new();
            lines.iter().for_each(|line| {
                map.append("expires", line.parse().unwrap());
            });
            said_seconds(&Directives::default(), &map, false, 0)
        };
        let (a, b) = (at(100), at(200));
        assert_eq!(said(&[]), None);
        assert_eq!(said(&[&a]), Some(100));
        assert_eq!(said(&[&a, &a]), Some(100));
        assert_eq!(said(&[&a, &b]), Some(0));
        assert_eq!(said(&["0"]), Some(0));
    }

    #[test]
    fn an_age_that_is_no_number_is_ignored_and_a_list_means_its_first_member() {
        let age = |value: &str| initial_age(&fields(&[("age", value.to_owned())]), 0, 0) / MICROS;
        assert_eq!(
            [
                age("7"),
                age("7, 9"),
                age("-1"),
                age("7.5"),
                age("abc"),
                age("\"7\"")
            ],
            [7, 7, 0, 0, 0, 0]
        );
        assert_eq!(age("99999999999999999999"), MOST_SECONDS);
    }

    #[test]
    fn heuristics_are_a_tenth_and_at_most_a_day() {
        let said = |changed: u64, date: u64| {
            heuristic_seconds(
                &fields(&[("last-modified", at(changed)), ("date", at(date))]),
                0,
            )
        };
        assert_eq!(said(1_000, 2_000), Some(100));
        assert_eq!(said(0, 100_000_000), Some(LONGEST_HEURISTIC));
        assert_eq!(said(2_000, 1_000), Some(0));
        assert_eq!(heuristic_seconds(&HeaderMap::new(), 0), None);
    }
}
