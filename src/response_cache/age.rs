//! `Age` values: the first hour ready made, so that a hit writes none.

use http::HeaderValue;

/// Ages below this many seconds are ready made.
const READY: usize = 3_600;
const DIGITS: usize = 4;

static TEXT: [u8; READY * DIGITS] = text();

/// Makes the value of `Age`.
pub(super) fn value(seconds: u64) -> HeaderValue {
    let ready = usize::try_from(seconds).ok().and_then(ready);
    ready.map_or_else(|| HeaderValue::from(seconds), HeaderValue::from_static)
}

fn ready(seconds: usize) -> Option<&'static str> {
    let digits = match seconds {
        0..10 => 1,
        10..100 => 2,
        100..1_000 => 3,
        1_000..READY => 4,
        _ => return None,
    };
    let end = (seconds + 1) * DIGITS;
    std::str::from_utf8(&TEXT[end - digits..end]).ok()
}

/// All numbers below `READY`, each in four digits.
const fn text() -> [u8; READY * DIGITS] {
    let mut text = [0; READY * DIGITS];
    let mut number = 0;
    while number < READY {
        let (mut rest, mut at) = (number, DIGITS);
        while at > 0 {
            at -= 1;
            text[number * DIGITS + at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        number += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_age_is_written_in_decimal_digits() {
        for seconds in (0..5_000).chain([u64::from(u32::MAX), 1 << 31]) {
            assert_eq!(value(seconds), *seconds.to_string());
        }
    }
}
