//! A number as text, without an allocation.

use http::HeaderValue;

/// A number in decimal.
pub(crate) struct Digits {
    digits: [u8; 20],
    first: usize,
}

/// All pairs of digits: two cost what one would.
const PAIRS: [[u8; 2]; 100] = {
    let (mut pairs, mut number) = ([[0; 2]; 100], 0);
    while number < 100 {
        pairs[number] = [b'0' + (number / 10) as u8, b'0' + (number % 10) as u8];
        number += 1;
    }
    pairs
};

impl Digits {
    pub(crate) fn of(mut number: u64) -> Self {
        let (mut digits, mut first) = ([0_u8; 20], 20);
        while number >= 10 {
            first -= 2;
            [digits[first], digits[first + 1]] = PAIRS[(number % 100) as usize];
            number /= 100;
        }
        // What is left is one digit, or nothing behind an even number of them.
        if number > 0 || first == 20 {
            first -= 1;
            digits[first] = b'0' + number as u8;
        }
        Self { digits, first }
    }

    pub(crate) fn text(&self) -> &[u8] {
        &self.digits[self.first..]
    }
}

/// Numbers below this are fields without an allocation.
const WRITTEN: usize = 10_000;

/// All of them, four digits each.
static DIGITS: [u8; 4 * WRITTEN] = {
    let (mut digits, mut number) = ([0; 4 * WRITTEN], 0);
    while number < WRITTEN {
        let ([a, b], [c, d]) = (PAIRS[number / 100], PAIRS[number % 100]);
        [digits[4 * number], digits[4 * number + 1]] = [a, b];
        [digits[4 * number + 2], digits[4 * number + 3]] = [c, d];
        number += 1;
    }
    digits
};

static TEXT: &str = match std::str::from_utf8(&DIGITS) {
    Ok(text) => text,
    Err(_) => "",
};

/// The number as the value of a field.
pub(crate) fn number_field(number: u64) -> HeaderValue {
    let zeros = match number {
        0..10 => 3,
        10..100 => 2,
        100..1_000 => 1,
        1_000..10_000 => 0,
        _ => return HeaderValue::from(number),
    };
    let at = 4 * number as usize;
    let text = TEXT.get(at + zeros..at + 4);
    text.map_or_else(|| HeaderValue::from(number), HeaderValue::from_static)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_length_is_written_as_the_standard_library_does() {
        let powers = (0..20).map(|exponent| 10_u64.pow(exponent));
        let edges = powers.flat_map(|power| [power - 1, power, power + 1]);
        for number in edges.chain([u64::MAX, 12_345, 100_001]) {
            assert_eq!(Digits::of(number).text(), number.to_string().as_bytes());
        }
    }

    #[test]
    fn every_number_is_the_same_field() {
        for number in (0..20_000).chain([u64::MAX]) {
            assert_eq!(number_field(number), number.to_string().as_str());
        }
    }

    proptest! {
        #[test]
        fn so_is_any_number(number: u64, shift in 0_u32..64) {
            let number = number >> shift;
            let (digits, text) = (Digits::of(number), number.to_string());
            prop_assert_eq!(digits.text(), text.as_bytes());
        }
    }
}
