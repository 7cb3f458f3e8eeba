//! `Cache-Status` members under the default name: those of the first hour ready made, so that a hit writes none.

use std::sync::OnceLock;

use http::HeaderValue;

/// The default name.
pub(super) const NAME: &str = "tower-keep";

const HIT: &[u8] = b"tower-keep;hit;ttl=";
const MISS: &[u8] = b"tower-keep;fwd=uri-miss;stored;ttl=";
/// Lifetimes up to this many seconds are ready made.
const MOST: usize = 3_600;
const DIGITS: usize = 4;

static HITS: [u8; (MOST + 1) * (HIT.len() + DIGITS)] = text(HIT);
static MISSES: [u8; (MOST + 1) * (MISS.len() + DIGITS)] = text(MISS);

/// Members that were asked for; a value of static text is cloned for nothing, but dear to check.
type Values = [OnceLock<HeaderValue>; MOST + 1];

static HIT_VALUES: Values = [const { OnceLock::new() }; MOST + 1];
static MISS_VALUES: Values = [const { OnceLock::new() }; MOST + 1];

/// The member of a hit.
pub(super) fn hit(ttl: i64) -> Option<HeaderValue> {
    value(&HIT_VALUES, &HITS, HIT.len() + DIGITS, ttl)
}

/// The member of an answer that was fetched and stored.
pub(super) fn miss(ttl: i64) -> Option<HeaderValue> {
    value(&MISS_VALUES, &MISSES, MISS.len() + DIGITS, ttl)
}

fn value(
    values: &'static Values,
    text: &'static [u8],
    width: usize,
    ttl: i64,
) -> Option<HeaderValue> {
    let place = values.get(usize::try_from(ttl).ok()?)?;
    if let Some(value) = place.get() {
        return Some(value.clone());
    }
    let text = ready(text, width, ttl)?;
    Some(place.get_or_init(|| HeaderValue::from_static(text)).clone())
}

fn ready(text: &'static [u8], width: usize, ttl: i64) -> Option<&'static str> {
    let ttl = usize::try_from(ttl).ok().filter(|ttl| *ttl <= MOST)?;
    let unused = match ttl {
        0..10 => 3,
        10..100 => 2,
        100..1_000 => 1,
        _ => 0,
    };
    let start = ttl * width;
    str::from_utf8(&text[start..start + width - unused]).ok()
}

/// `start` before all numbers up to `MOST`, each flush left in a place of its own.
const fn text<const LENGTH: usize>(start: &[u8]) -> [u8; LENGTH] {
    let (mut text, width) = ([b' '; LENGTH], start.len() + DIGITS);
    let mut number = 0;
    while number <= MOST {
        let mut at = 0;
        while at < start.len() {
            text[number * width + at] = start[at];
            at += 1;
        }
        let mut worth = 1_000;
        while worth > 1 && worth > number {
            worth /= 10;
        }
        while worth > 0 {
            text[number * width + at] = b'0' + (number / worth % 10) as u8;
            worth /= 10;
            at += 1;
        }
        number += 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_what_would_be_written() {
        for ttl in -2..4_000 {
            let there = (0..=3_600).contains(&ttl);
            let expected = |start: &str| there.then(|| format!("{start}{ttl}"));
            for _ in 0..2 {
                let hit = hit(ttl).map(|value| value.to_str().unwrap().to_owned());
                assert_eq!(hit, expected("tower-keep;hit;ttl="));
                let miss = miss(ttl).map(|value| value.to_str().unwrap().to_owned());
                assert_eq!(miss, expected("tower-keep;fwd=uri-miss;stored;ttl="));
            }
        }
    }
}
