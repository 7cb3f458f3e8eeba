//! One byte range of a complete answer (RFC 9110 §14).

use http::header::{self, HeaderMap};

use super::date;
use super::revalidate::strong_etag;

/// Which part of a complete answer a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: no range, several, another unit, or bad syntax.
    Whole,
    /// From the first to the last byte, both included.
    Bytes(u64, u64),
    /// None of it.
    Unsatisfiable,
}

/// Decides which part of `length` bytes the request's fields ask for; `now` settles two-digit years.
pub(super) fn part(request: &HeaderMap, stored: &HeaderMap, length: u64, now: i64) -> Part {
    let mut lines = request.get_all(header::RANGE).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Part::Whole;
    };
    if !if_range_holds(request, stored, now) {
        return Part::Whole;
    }
    parse(line.as_bytes(), length)
}

fn parse(line: &[u8], length: u64) -> Part {
    let Some(set) = line.split_at_checked(6).and_then(|(unit, set)| {
        unit.eq_ignore_ascii_case(b"bytes=")
            .then_some(set.trim_ascii())
    }) else {
        return Part::Whole;
    };
    let Some(dash) = set.iter().position(|byte| *byte == b'-') else {
        return Part::Whole;
    };
    let (first, last) = (&set[..dash], &set[dash + 1..]);
    match (
        first.is_empty(),
        last.is_empty(),
        number(first),
        number(last),
    ) {
        // The last so many bytes.
        (true, false, _, Some(0)) => Part::Unsatisfiable,
        (true, false, _, Some(_)) if length == 0 => Part::Unsatisfiable,
        (true, false, _, Some(count)) => Part::Bytes(length.saturating_sub(count), length - 1),
        (false, true, Some(first), _) if first < length => Part::Bytes(first, length - 1),
        (false, true, Some(_), _) => Part::Unsatisfiable,
        (false, false, Some(first), Some(last)) if first > last => Part::Whole,
        (false, false, Some(first), Some(last)) if first < length => {
            Part::Bytes(first, last.min(length - 1))
        }
        (false, false, Some(_), Some(_)) => Part::Unsatisfiable,
        _ => Part::Whole,
    }
}

/// Reads digits; saturates, so that absurd positions lie beyond every body.
fn number(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| {
        digits.iter().fold(0_u64, |sum, digit| {
            sum.saturating_mul(10)
                .saturating_add(u64::from(digit - b'0'))
        })
    })
}

/// A strong tag, or a last change at least a second before Date (RFC 9110 §13.1.5).
fn if_range_holds(request: &HeaderMap, stored: &HeaderMap, now: i64) -> bool {
    let Some(wanted) = request.get(header::IF_RANGE) else {
        return true;
    };
    if let Some(tag) = strong_etag(wanted) {
        return stored.get(header::ETAG).and_then(strong_etag) == Some(tag);
    }
    let read = |value: &http::HeaderValue| date::parse(value.as_bytes(), now);
    let (wanted, changed) = (
        read(wanted),
        stored.get(header::LAST_MODIFIED).and_then(read),
    );
    let date = stored.get(header::DATE).and_then(read);
    matches!((wanted, changed, date), (Some(wanted), Some(changed), Some(date)) if wanted == changed && changed < date)
}

/// Says whether a request asks for a range from the first byte on, which a fetch of the whole can answer.
pub(super) fn is_from_start(request: &HeaderMap) -> bool {
    let mut lines = request.get_all(header::RANGE).iter();
    matches!((lines.next(), lines.next()), (Some(line), None) if line.as_bytes().eq_ignore_ascii_case(b"bytes=0-"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(range: &str, length: u64) -> Part {
        let mut request = HeaderMap::new();
        request.insert(header::RANGE, range.parse().unwrap());
        part(&request, &HeaderMap::new(), length, 0)
    }

    proptest! {
        /// The oracle marks each byte by the words of RFC 9110 §14.1.2.
        #[test]
        fn a_part_is_what_a_slice_says(length in 0_u64..40, first in proptest::option::of(0_u64..60), last in proptest::option::of(0_u64..60)) {
            prop_assume!(first.is_some() || last.is_some());
            prop_assume!(first.zip(last).is_none_or(|(first, last)| first <= last));
            let text = |n: Option<u64>| n.map_or(String::new(), |n| n.to_string());
            let wanted: Vec<u64> = (0..length).filter(|at| match (first, last) {
                (Some(first), Some(last)) => (first..=last).contains(at),
                (Some(first), None) => *at >= first,
                (None, Some(count)) => length - at <= count,
                (None, None) => false,
            }).collect();
            let part = of(&format!("bytes={}-{}", text(first), text(last)), length);
            let got: Vec<u64> = match part {
                Part::Bytes(first, last) => (first..=last).collect(),
                Part::Unsatisfiable => Vec::new(),
                Part::Whole => vec![u64::MAX],
            };
            prop_assert_eq!(got, wanted);
        }
    }

    #[test]
    fn several_ranges_other_units_and_bad_syntax_mean_the_whole() {
        for range in [
            "bytes=0-1,3-4",
            "items=0-1",
            "bytes=a-b",
            "bytes=",
            "bytes=-",
            "bytes=5-2",
            "0-1",
            "bytes=1",
        ] {
            assert_eq!(of(range, 10), Part::Whole, "{range}");
        }
        assert_eq!(of("Bytes=2-", 10), Part::Bytes(2, 9));
        assert_eq!(of("bytes=99999999999999999999-", 10), Part::Unsatisfiable);
    }

    #[test]
    fn if_range_needs_a_strong_tag_or_an_old_enough_date() {
        let part_with = |if_range: &'static str, stored: &[(&'static str, &'static str)]| {
            let mut request = HeaderMap::new();
            request.insert(header::RANGE, "bytes=0-0".parse().unwrap());
            request.insert(header::IF_RANGE, if_range.parse().unwrap());
            let stored = stored
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                .collect();
            part(&request, &stored, 10, 784_111_777)
        };
        let changed = "Sun, 06 Nov 1994 08:49:37 GMT";
        let later = "Sun, 06 Nov 1994 08:49:38 GMT";
        assert_eq!(part_with("\"a\"", &[("etag", "\"a\"")]), Part::Bytes(0, 0));
        assert_eq!(part_with("\"b\"", &[("etag", "\"a\"")]), Part::Whole);
        assert_eq!(part_with("W/\"a\"", &[("etag", "W/\"a\"")]), Part::Whole);
        assert_eq!(
            part_with(changed, &[("last-modified", changed), ("date", later)]),
            Part::Bytes(0, 0)
        );
        let short = "Sunday, 06-Nov-94 08:49:37 GMT";
        assert_eq!(
            part_with(short, &[("last-modified", changed), ("date", later)]),
            Part::Bytes(0, 0)
        );
        assert_eq!(
            part_with(changed, &[("last-modified", changed), ("date", changed)]),
            Part::Whole
        );
    }
}
