//! HTTP dates, read strictly (RFC 9110 §5.6.7): a date that is not quite one must not make anything fresh.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;

const MONTHS: [&[u8; 3]; 12] = [
    b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec",
];
const DAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];

/// Reads a date in any of the three forms; seconds since the Unix epoch. `now` settles two-digit years.
pub(super) fn parse(text: &[u8], now: i64) -> Option<i64> {
    let lower = text.to_ascii_lowercase();
    let comma = lower.iter().position(|byte| *byte == b',');
    match comma {
        Some(3) => imf(&lower),
        Some(at) => rfc850(&lower, at, now),
        None => asctime(&lower),
    }
}

/// Writes `seconds` since the Unix epoch as IMF-fixdate.
pub(super) fn write(seconds: u64) -> Option<HeaderValue> {
    // The latest moment that the form can hold is the end of the year 9999.
    let seconds = seconds.min(253_402_300_799);
    let moment: SystemTime = UNIX_EPOCH + Duration::from_secs(seconds);
    HeaderValue::try_from(httpdate::fmt_http_date(moment)).ok()
}

/// `sun, 06 nov 1994 08:49:37 gmt`
fn imf(text: &[u8]) -> Option<i64> {
    let [
        a,
        b,
        c,
        b',',
        b' ',
        d1,
        d2,
        b' ',
        m1,
        m2,
        m3,
        b' ',
        y1,
        y2,
        y3,
        y4,
        b' ',
        time @ ..,
    ] = text
    else {
        return None;
    };
    short_day(&[*a, *b, *c])?;
    let year = number(&[*y1, *y2, *y3, *y4])?;
    moment(
        year,
        month(&[*m1, *m2, *m3])?,
        number(&[*d1, *d2])?,
        clock(time.strip_suffix(b" gmt")?)?,
    )
}

/// `sunday, 06-nov-94 08:49:37 gmt`
fn rfc850(text: &[u8], comma: usize, now: i64) -> Option<i64> {
    DAYS.iter().find(|day| day.as_bytes() == &text[..comma])?;
    let [
        b',',
        b' ',
        d1,
        d2,
        b'-',
        m1,
        m2,
        m3,
        b'-',
        y1,
        y2,
        b' ',
        time @ ..,
    ] = &text[comma..]
    else {
        return None;
    };
    let (day, month) = (number(&[*d1, *d2])?, month(&[*m1, *m2, *m3])?);
    let time = clock(time.strip_suffix(b" gmt")?)?;
    let this_year = civil_year(now);
    let year = this_year - this_year.rem_euclid(100) + number(&[*y1, *y2])?;
    let at = moment(year, month, day, time)?;
    // More than 50 years ahead means the latest past year with these digits.
    let fifty_years = moment(civil_year(now) + 50, 1, 1, 0)? - moment(civil_year(now), 1, 1, 0)?;
    if at > now + fifty_years {
        moment(year - 100, month, day, time)
    } else {
        Some(at)
    }
}

/// `sun nov  6 08:49:37 1994`
fn asctime(text: &[u8]) -> Option<i64> {
    let [
        a,
        b,
        c,
        b' ',
        m1,
        m2,
        m3,
        b' ',
        d1,
        d2,
        b' ',
        t @ ..,
        b' ',
        y1,
        y2,
        y3,
        y4,
    ] = text
    else {
        return None;
    };
    short_day(&[*a, *b, *c])?;
    let day = match (*d1, *d2) {
        (b' ', digit) => number(&[digit])?,
        (first, second) => number(&[first, second])?,
    };
    moment(
        number(&[*y1, *y2, *y3, *y4])?,
        month(&[*m1, *m2, *m3])?,
        day,
        clock(t)?,
    )
}

fn short_day(name: &[u8]) -> Option<()> {
    DAYS.iter()
        .any(|day| &day.as_bytes()[..3] == name)
        .then_some(())
}

fn month(name: &[u8]) -> Option<i64> {
    MONTHS
        .iter()
        .position(|month| &month[..] == name)
        .map(|at| at as i64 + 1)
}

/// `08:49:37`, in seconds; a leap second is allowed.
fn clock(text: &[u8]) -> Option<i64> {
    let [h1, h2, b':', m1, m2, b':', s1, s2] = text else {
        return None;
    };
    let (hour, minute, second) = (
        number(&[*h1, *h2])?,
        number(&[*m1, *m2])?,
        number(&[*s1, *s2])?,
    );
    (hour < 24 && minute < 60 && second <= 60).then_some(hour * 3_600 + minute * 60 + second)
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().all(u8::is_ascii_digit).then(|| {
        digits
            .iter()
            .fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'))
    })
}

fn moment(year: i64, month: i64, day: i64, seconds: i64) -> Option<i64> {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let length = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    (1..=length)
        .contains(&day)
        .then(|| days(year, month, day) * 86_400 + seconds)
}

/// Days since the Unix epoch, counted in years that begin in March, so that leap days come last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let since_march = (month + 9) % 12;
    let day_of_year = (153 * since_march + 2) / 5 + day - 1;
    let cycle = year.div_euclid(400);
    let year_of_cycle = year.rem_euclid(400);
    cycle * 146_097 + year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year
        - 719_468
}

/// The year of a moment: guessed by the mean length of a year, then stepped to the right one.
fn civil_year(seconds: i64) -> i64 {
    let day = seconds.div_euclid(86_400);
    let mut year = 1_970 + day.div_euclid(366);
    while days(year + 1, 1, 1) <= day {
        year += 1;
    }
    year
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_900_000_000; // 2030

    #[test]
    fn all_three_forms_mean_the_same_in_any_case() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "sun, 06 nov 1994 08:49:37 gmt",
            "SUNDAY, 06-NOV-94 08:49:37 GMT",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), Some(784_111_777), "{text}");
        }
    }

    #[test]
    fn two_digit_years_over_fifty_years_ahead_are_past() {
        let year = |text: &str| {
            parse(
                format!("Sunday, 01-Jan-{text} 00:00:00 GMT").as_bytes(),
                NOW,
            )
            .map(civil_year)
        };
        assert_eq!(
            [year("30"), year("79"), year("81"), year("99"), year("00")],
            [Some(2030), Some(2079), Some(1981), Some(1999), Some(2000)]
        );
    }

    #[test]
    fn what_is_not_quite_a_date_is_none() {
        for text in [
            "",
            "0",
            "-1",
            "now",
            "1994",
            "784111777",
            "Sun, 06 Nov 1994 08:49:37",
            "Sun, 06 Nov 1994 08:49:37 UTC",
            "Sun, 06 Nov 1994 08:49:37 +0000",
            "Sun, 06 Nov 1994 08:49:37 EST",
            "Sun, 06 Nov 1994 08:49:37 GMT+1",
            "Sun, 06 Nov 1994 08:49:37 Z",
            "Sun, 06 Nov 1994  08:49:37 GMT",
            "Sun,  06 Nov 1994 08:49:37 GMT",
            "Sun,06 Nov 1994 08:49:37 GMT",
            " Sun, 06 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT ",
            "Sun 06 Nov 1994 08:49:37 GMT",
            "Sun, 06-Nov-1994 08:49:37 GMT",
            "Sun, 06 Nov 94 08:49:37 GMT",
            "Sunday, 06-Nov-1994 08:49:37 GMT",
            "Sunday, 06 Nov 94 08:49:37 GMT",
            "Sun, 6 Nov 1994 08:49:37 GMT",
            "Sun, 006 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 8:49:37 GMT",
            "Sun, 06 Nov 1994 08.49.37 GMT",
            "Sun, 06 Nov 1994 08:49 GMT",
            "Sun, 06 Nov 1994 08:49:37.5 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:60:00 GMT",
            "Sun, 06 Nov 1994 08:49:61 GMT",
            "Sun, 31 Feb 1994 08:49:37 GMT",
            "Tue, 29 Feb 2029 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Foo, 06 Nov 1994 08:49:37 GMT",
            "Sun Nov 6 08:49:37 1994",
            "Sun Nov  6 08:49:37 94",
            "Sun Nov  6 08:49:37 1994 GMT",
            "Sun Nov  0 08:49:37 1994",
            "1994-11-06T08:49:37Z",
            "Sun, 06 Nov +994 08:49:37 GMT",
            "Sun, 06 Nov 1994 08:49:37 gm",
        ] {
            assert_eq!(parse(text.as_bytes(), NOW), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_agrees_with_a_library(seconds in 0_u64..253_402_300_800) {
            let text = write(seconds).unwrap();
            prop_assert_eq!(parse(text.as_bytes(), NOW), Some(seconds as i64));
            let moment = UNIX_EPOCH + Duration::from_secs(seconds);
            prop_assert_eq!(httpdate::parse_http_date(text.to_str().unwrap()).ok(), Some(moment));
        }

        #[test]
        fn a_year_is_the_one_its_days_lie_in(seconds in 0_i64..253_402_300_800) {
            let text = write(seconds as u64).unwrap();
            let year: i64 = text.to_str().unwrap()[12..16].parse().unwrap();
            prop_assert_eq!(civil_year(seconds), year);
        }

        #[test]
        fn anything_at_all_can_be_read(text in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&text, NOW);
        }
    }
}
