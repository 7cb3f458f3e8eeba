//! JSON by value: order of members and spelling of numbers and strings do not matter.

use serde::de::IgnoredAny;

/// Deeper nesting counts as bytes.
const DEEPEST: usize = 128;

/// A JSON value whose scalars are already in their one canonical spelling.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Json {
    Scalar(Vec<u8>),
    Array(Vec<Self>),
    Object(Vec<(String, Self)>),
}

impl Json {
    /// Reads a document; `None` where it is invalid, too deep, or names a member twice.
    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        // The walk below trusts the grammar, so a real parser goes first.
        serde_json::from_slice::<IgnoredAny>(text).ok()?;
        let mut walk = Walk { text, at: 0 };
        walk.value(0)
    }

    /// Returns bytes that are equal exactly for equal values.
    pub(super) fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut Vec<u8>) {
        let open = |out: &mut Vec<u8>, tag: u8, length: usize| {
            out.push(tag);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        };
        match self {
            Self::Scalar(text) => {
                open(out, b's', text.len());
                out.extend_from_slice(text);
            }
            Self::Array(items) => {
                open(out, b'a', items.len());
                items.iter().for_each(|item| item.write(out));
            }
            Self::Object(members) => {
                open(out, b'o', members.len());
                for (name, value) in members {
                    open(out, b'm', name.len());
                    out.extend_from_slice(name.as_bytes());
                    value.write(out);
                }
            }
        }
    }

    /// Finds what an RFC 6901 pointer means.
    pub(super) fn at(&self, pointer: &str) -> Option<&Self> {
        pointer
            .split('/')
            .skip(1)
            .try_fold(self, |value, token| match value {
                Self::Object(members) => {
                    let name = unescape(token);
                    members
                        .iter()
                        .find(|(own, _)| *own == name)
                        .map(|(_, value)| value)
                }
                Self::Array(items) => items.get(index(token)?),
                Self::Scalar(_) => None,
            })
    }

    /// Removes what an RFC 6901 pointer means, if it is there; an item of an array becomes a hole.
    pub(super) fn remove(&mut self, pointer: &str) {
        let Some((parent, token)) = pointer.rsplit_once('/') else {
            *self = Self::Scalar(Vec::new());
            return;
        };
        let parent = parent
            .split('/')
            .skip(1)
            .try_fold(self, |value, token| match value {
                Self::Object(members) => {
                    let name = unescape(token);
                    members
                        .iter_mut()
                        .find(|(own, _)| *own == name)
                        .map(|(_, value)| value)
                }
                Self::Array(items) => items.get_mut(index(token)?),
                Self::Scalar(_) => None,
            });
        match parent {
            Some(Self::Object(members)) => {
                let name = unescape(token);
                members.retain(|(own, _)| *own != name);
            }
            Some(Self::Array(items)) => {
                if let Some(item) = index(token).and_then(|index| items.get_mut(index)) {
                    *item = Self::Scalar(Vec::new());
                }
            }
            _ => {}
        }
    }
}

fn unescape(token: &str) -> String {
    token.replace("~1", "/").replace("~0", "~")
}

fn index(token: &str) -> Option<usize> {
    let canonical = token == "0" || !token.starts_with(['0', '+']);
    token.parse().ok().filter(|_| canonical)
}

/// Walks over a text that is known to be JSON.
struct Walk<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    fn peek(&mut self) -> Option<u8> {
        while self.text.get(self.at)?.is_ascii_whitespace() {
            self.at += 1;
        }
        self.text.get(self.at).copied()
    }

    fn value(&mut self, depth: usize) -> Option<Json> {
        if depth > DEEPEST {
            return None;
        }
        match self.peek()? {
            b'{' => self.object(depth),
            b'[' => self.array(depth),
            b'"' => {
                let mut text = vec![b'"'];
                text.extend_from_slice(self.string()?.as_bytes());
                Some(Json::Scalar(text))
            }
            _ => Some(Json::Scalar(scalar(self.word()))),
        }
    }

    fn object(&mut self, depth: usize) -> Option<Json> {
        self.at += 1;
        let mut members = Vec::new();
        while self.peek()? != b'}' {
            if self.peek()? == b',' {
                self.at += 1;
                self.peek()?;
            }
            let name = self.string()?;
            self.peek()?; // the colon
            self.at += 1;
            members.push((name, self.value(depth + 1)?));
        }
        self.at += 1;
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        let twice = members.windows(2).any(|two| two[0].0 == two[1].0);
        (!twice).then_some(Json::Object(members))
    }

    fn array(&mut self, depth: usize) -> Option<Json> {
        self.at += 1;
        let mut items = Vec::new();
        while self.peek()? != b']' {
            if self.peek()? == b',' {
                self.at += 1;
            }
            items.push(self.value(depth + 1)?);
        }
        self.at += 1;
        Some(Json::Array(items))
    }

    fn string(&mut self) -> Option<String> {
        let start = self.at;
        self.at += 1;
        while *self.text.get(self.at)? != b'"' {
            self.at += if self.text[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        serde_json::from_slice(&self.text[start..self.at]).ok()
    }

    fn word(&mut self) -> &'a [u8] {
        let rest = &self.text[self.at..];
        let ends = |byte: &u8| byte.is_ascii_whitespace() || b",]}".contains(byte);
        let length = rest.iter().position(ends).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }
}

/// Spells a number in one way (sign, digits, power of ten); `true`, `false` and `null` stay as they are.
fn scalar(word: &[u8]) -> Vec<u8> {
    if !word
        .first()
        .is_some_and(|byte| *byte == b'-' || byte.is_ascii_digit())
    {
        return word.to_vec();
    }
    let spelled = word;
    let (negative, word) = word
        .strip_prefix(b"-")
        .map_or((false, word), |rest| (true, rest));
    let at = word
        .iter()
        .position(|byte| matches!(byte, b'e' | b'E'))
        .unwrap_or(word.len());
    let (mantissa, exponent) = (&word[..at], word.get(at + 1..).unwrap_or_default());
    let point = mantissa
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(mantissa.len());
    let fraction = mantissa.len().saturating_sub(point + 1);
    let digits: Vec<u8> = mantissa
        .iter()
        .copied()
        .filter(u8::is_ascii_digit)
        .collect();
    let leading = digits.iter().take_while(|digit| **digit == b'0').count();
    let digits = &digits[leading..];
    let trailing = digits
        .iter()
        .rev()
        .take_while(|digit| **digit == b'0')
        .count();
    let digits = &digits[..digits.len() - trailing];
    if digits.is_empty() {
        return b"0".to_vec();
    }
    let exponent: Option<i128> = if exponent.is_empty() {
        Some(0)
    } else {
        std::str::from_utf8(exponent)
            .ok()
            .and_then(|text| text.parse().ok())
    };
    // An exponent beyond 128 bits is kept as it is spelled: nothing else could equal it but by its own text.
    let Some(exponent) = exponent.and_then(|e| e.checked_add(trailing as i128 - fraction as i128))
    else {
        return spelled.to_vec();
    };
    let mut out = if negative { vec![b'-'] } else { Vec::new() };
    out.extend_from_slice(digits);
    out.push(b'e');
    out.extend_from_slice(exponent.to_string().as_bytes());
    out
}

#[cfg(test)]
mod tests;
