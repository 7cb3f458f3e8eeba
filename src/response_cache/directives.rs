//! What `Cache-Control` says: a list parser that knows quoted strings (RFC 9111 §5.2).

use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;

/// Larger numbers of seconds are cut to this (RFC 9111 §1.2.2).
pub(super) const MOST_SECONDS: u64 = 1 << 31;

/// The directives of a request or a response; what is absent is `false` or `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Directives {
    /// A Cache-Control line was there, whatever it said.
    pub(super) present: bool,
    /// A targeted field said it: neither Cache-Control nor Expires counts (RFC 9213 §2.2).
    pub(super) targeted: bool,
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) proxy_revalidate: bool,
    pub(super) must_understand: bool,
    pub(super) only_if_cached: bool,
    pub(super) max_age: Option<u64>,
    pub(super) s_maxage: Option<u64>,
    pub(super) stale_while_revalidate: Option<u64>,
    pub(super) stale_if_error: Option<u64>,
    pub(super) min_fresh: Option<u64>,
    /// `u64::MAX` without a value: however stale.
    pub(super) max_stale: Option<u64>,
    /// The fields that `no-cache="…"` and `private="…"` name.
    pub(super) hidden: SmallVec<[HeaderName; 1]>,
}

impl Directives {
    /// Reads all lines.
    pub(super) fn of<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Self {
        let mut found = Self::default();
        for line in lines {
            found.present = true;
            if !line.as_bytes().contains(&b'"') {
                let members = line.as_bytes().split(|byte| *byte == b',');
                members.for_each(|member| found.take(member.trim_ascii()));
                continue;
            }
            for member in members(line.as_bytes()) {
                found.take(member);
            }
            if let Some(open) = unterminated(line.as_bytes()) {
                let mut swallowed = Self::default();
                for member in open.split(|byte| *byte == b',') {
                    swallowed.take(member.trim_ascii());
                }
                found.restrict(&swallowed);
            }
        }
        found
    }

    /// Takes in what restricts, of text that may or may not have been meant: nothing becomes fresher by it.
    fn restrict(&mut self, other: &Self) {
        self.no_store |= other.no_store;
        self.no_cache |= other.no_cache || !other.hidden.is_empty();
        self.private |= other.private || !other.hidden.is_empty();
        self.must_revalidate |= other.must_revalidate;
        self.proxy_revalidate |= other.proxy_revalidate;
        let lower = |own: &mut Option<u64>, other: Option<u64>| {
            *own = own.map(|own| other.map_or(own, |other| own.min(other)));
        };
        lower(&mut self.max_age, other.max_age);
        lower(&mut self.s_maxage, other.s_maxage);
        lower(
            &mut self.stale_while_revalidate,
            other.stale_while_revalidate,
        );
        lower(&mut self.stale_if_error, other.stale_if_error);
    }

    fn take(&mut self, member: &[u8]) {
        let (name, value) = match member.iter().position(|byte| *byte == b'=') {
            Some(at) => (&member[..at], Some(&member[at + 1..])),
            None => (member, None),
        };
        // Space around `=` is not allowed; such a member is one of an unknown name.
        let spaced = |text: &[u8], byte: Option<&u8>| text.is_empty() || byte.is_some_and(is_space);
        if spaced(name, name.last())
            || value.is_some_and(|value| value.first().is_some_and(is_space))
        {
            return;
        }
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache |= self.hides(value);
        } else if is("private") {
            self.private |= self.hides(value);
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") {
            self.must_revalidate = true;
        } else if is("proxy-revalidate") {
            self.proxy_revalidate = true;
        } else if is("must-understand") {
            self.must_understand = true;
        } else if is("only-if-cached") {
            self.only_if_cached = true;
        } else if is("max-stale") {
            let said = value.map_or(u64::MAX, |value| seconds(Some(value)));
            self.max_stale = Some(self.max_stale.map_or(said, |before| before.min(said)));
        } else if let Some(slot) = self.number(name) {
            let said = seconds(value);
            *slot = Some(slot.map_or(said, |before| before.min(said)));
        }
    }

    fn number(&mut self, name: &[u8]) -> Option<&mut Option<u64>> {
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if is("max-age") {
            Some(&mut self.max_age)
        } else if is("s-maxage") {
            Some(&mut self.s_maxage)
        } else if is("stale-while-revalidate") {
            Some(&mut self.stale_while_revalidate)
        } else if is("stale-if-error") {
            Some(&mut self.stale_if_error)
        } else if is("min-fresh") {
            Some(&mut self.min_fresh)
        } else {
            None
        }
    }

    /// Takes in the field names of `no-cache="…"`; says whether the directive means the whole answer.
    fn hides(&mut self, value: Option<&[u8]>) -> bool {
        match value {
            Some([b'"', inner @ .., b'"']) => self.hides_named(inner),
            _ => true,
        }
    }

    /// Takes in a list of field names; says whether it is none, so that the directive means the whole answer.
    pub(super) fn hides_named(&mut self, inner: &[u8]) -> bool {
        let names: Option<SmallVec<[HeaderName; 1]>> = inner
            .split(|byte| *byte == b',')
            .map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
            .collect();
        match names {
            Some(names) => {
                self.hidden.extend(names);
                false
            }
            // Not a list of names: the stricter reading.
            None => true,
        }
    }
}

/// Splits a list at the commas outside quoted strings, and trims the members.
pub(super) fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let text = rest?;
        let end = end_of_member(text);
        rest = text.get(end + 1..);
        Some(text[..end].trim_ascii())
    })
}

fn end_of_member(text: &[u8]) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return at,
            _ => {}
        }
    }
    text.len()
}

/// What stands behind a quote that never ends.
fn unterminated(line: &[u8]) -> Option<&[u8]> {
    let (mut open, mut escaped) = (None, false);
    for (at, byte) in line.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if open.is_some() => escaped = true,
            b'"' => open = if open.is_some() { None } else { Some(at) },
            _ => {}
        }
    }
    open.map(|at| &line[at + 1..])
}

const fn is_space(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Reads delta seconds; what is no digit string counts as 0 (RFC 9111 §4.2.1: treat as stale).
fn seconds(value: Option<&[u8]>) -> u64 {
    let digits = match value {
        Some([b'"', inner @ .., b'"']) => inner,
        Some(value) => value,
        None => return 0,
    };
    digit_string(digits).unwrap_or(0)
}

/// Reads a non-empty string of digits, cut to [`MOST_SECONDS`].
pub(super) fn digit_string(digits: &[u8]) -> Option<u64> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    plain.then(|| {
        digits.iter().fold(0_u64, |sum, digit| {
            (sum * 10 + u64::from(digit - b'0')).min(MOST_SECONDS)
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(lines: &[&str]) -> Directives {
        let lines: Vec<HeaderValue> = lines.iter().map(|line| line.parse().unwrap()).collect();
        Directives::of(&lines)
    }

    /// Reads one line character by character, as a state machine over the grammar of RFC 9110 §5.6.
    fn oracle(line: &str) -> Vec<String> {
        let (mut members, mut current, mut state) = (Vec::new(), String::new(), 'o');
        for character in line.chars() {
            state = match (state, character) {
                ('o', ',') => {
                    members.push(std::mem::take(&mut current));
                    continue;
                }
                ('o', '"') => 'q',
                ('q', '"') => 'o',
                ('q', '\\') => 'e',
                ('e', _) => 'q',
                (same, _) => same,
            };
            current.push(character);
        }
        members.push(current);
        members
            .into_iter()
            .map(|member| member.trim_matches([' ', '\t']).to_owned())
            .collect()
    }

    proptest! {
        #[test]
        fn members_are_split_as_the_grammar_says(line in "[a-c=,\" \t\\\\]{0,24}") {
            let split: Vec<String> = members(line.as_bytes()).map(|member| String::from_utf8(member.to_vec()).unwrap()).collect();
            prop_assert_eq!(split, oracle(&line));
        }

        #[test]
        fn max_age_is_what_the_members_say(line in "(max-age|Max-Age|s-maxage|x|private|\"max-age=9\")(=|=\"|= | =)?[0-9'\\-.]{0,3}\"?(, ?max-age=[0-9]{1,2})?") {
            let mut expected: Option<u64> = None;
            for member in oracle(&line) {
                let Some((name, value)) = member.split_once('=').or(Some((&member[..], "none"))) else { continue };
                if !name.eq_ignore_ascii_case("max-age") || value.starts_with(' ') {
                    continue;
                }
                let digits = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
                let said = digits.parse::<u64>().ok().filter(|_| digits.chars().all(|digit| digit.is_ascii_digit())).unwrap_or(0);
                expected = Some(expected.map_or(said, |before| before.min(said)));
            }
            prop_assert_eq!(of(&[&line]).max_age, expected, "{}", line);
        }

        #[test]
        fn anything_at_all_can_be_read(line in "[ -~\t]{0,60}") {
            of(&[&line]);
        }
    }

    #[test]
    fn odd_values_are_read_the_stricter_way() {
        for (line, expected) in [
            ("max-age=60", Some(60)),
            ("max-age=\"60\"", Some(60)),
            ("max-age=0060", Some(60)),
            ("max-age='60'", Some(0)),
            ("max-age=-1", Some(0)),
            ("max-age=60.0", Some(0)),
            ("max-age=1a", Some(0)),
            ("max-age=", Some(0)),
            ("max-age", Some(0)),
            ("max-age=99999999999999999999", Some(MOST_SECONDS)),
            ("max-age=60, max-age=30", Some(30)),
            ("max-age =60", None),
            ("max-age= 60", None),
            ("ext=\"max-age=9\"", None),
            ("ext=\"a, max-age=9\"", None),
            ("x-max-age=9", None),
        ] {
            assert_eq!(of(&[line]).max_age, expected, "{line}");
        }
        assert_eq!(of(&["max-age=60", "Max-Age=20"]).max_age, Some(20));
        assert_eq!(of(&["max-stale"]).max_stale, Some(u64::MAX));
    }

    #[test]
    fn a_quote_that_never_ends_hides_no_restriction_and_makes_nothing_fresher() {
        let said = of(&["max-age=60, ext=\"a, no-store, max-age=30, s-maxage=90"]);
        assert!(said.no_store);
        assert_eq!((said.max_age, said.s_maxage), (Some(30), None));
        assert!(of(&["ext=\"a\\\", private"]).private);
        assert!(of(&["no-cache=\"set-cookie, private"]).private);
        let closed = of(&["max-age=60, ext=\"no-store\""]);
        assert_eq!((closed.no_store, closed.max_age), (false, Some(60)));
    }

    #[test]
    fn named_fields_are_hidden_and_the_directive_then_means_only_them() {
        let said = of(&["no-cache=\"a, B\", private=\"c\""]);
        assert_eq!((said.no_cache, said.private), (false, false));
        assert_eq!(
            said.hidden
                .iter()
                .map(HeaderName::as_str)
                .collect::<Vec<_>>(),
            ["a", "b", "c"]
        );
        assert!(of(&["no-cache=\"a\", no-cache"]).no_cache);
        for strict in [
            "no-cache=a",
            "no-cache=\"\"",
            "no-cache=\"a b\"",
            "no-cache=\"a",
            "NO-CACHE",
        ] {
            assert!(of(&[strict]).no_cache, "{strict}");
        }
    }
}
