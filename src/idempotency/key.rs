//! The key field: which values are keys, and how they are read.

use std::fmt;
use std::ops::Range;

use http::HeaderValue;

/// The longest key in bytes.
const LONGEST: usize = 255;

/// Which values of the field are keys. All are 1–255 bytes of visible text once decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct KeyFormat {
    form: Form,
    min_len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Lenient,
    Structured,
    Uuid,
}

impl KeyFormat {
    /// A quoted value is a String Item of RFC 9651, any other is taken bare; `"k"` and `k` are one key.
    pub const fn lenient() -> Self {
        Self {
            form: Form::Lenient,
            min_len: 1,
        }
    }

    /// Only a String Item of RFC 9651, as the IETF draft asks for.
    pub const fn structured() -> Self {
        Self {
            form: Form::Structured,
            min_len: 1,
        }
    }

    /// Only a UUID of any version, quoted or bare; upper and lower case are one key.
    pub const fn uuid() -> Self {
        Self {
            form: Form::Uuid,
            min_len: 1,
        }
    }

    /// Asks for at least `bytes` bytes, 1 to 255.
    pub const fn min_len(mut self, bytes: usize) -> Self {
        self.min_len = if bytes < 1 { 1 } else { bytes };
        self
    }

    /// Spells a key as it is looked up.
    pub(super) fn fold(self, key: ClientKey) -> ClientKey {
        match self.form {
            Form::Lenient | Form::Structured => key,
            Form::Uuid => read_uuid(key.clone()).unwrap_or(key),
        }
    }

    /// Reads the key of one field line; `None` is a 400.
    pub(super) fn read(self, line: &HeaderValue) -> Option<ClientKey> {
        let bytes = line.as_bytes();
        let quoted = bytes.first() == Some(&b'"');
        let key = match self.form {
            Form::Lenient if quoted => read_item(line)?,
            Form::Lenient => read_bare(line)?,
            Form::Structured => read_item(line)?,
            Form::Uuid => read_uuid(if quoted {
                read_item(line)?
            } else {
                read_bare(line)?
            })?,
        };
        (self.min_len..=LONGEST)
            .contains(&key.as_bytes().len())
            .then_some(key)
    }
}

impl Default for KeyFormat {
    fn default() -> Self {
        Self::lenient()
    }
}

/// A key as the client sent it, decoded. Debug does not show it.
#[derive(Clone)]
pub struct ClientKey(Bytes);

#[derive(Clone)]
enum Bytes {
    Part(HeaderValue, Range<usize>),
    Owned(Box<[u8]>),
}

impl ClientKey {
    /// Returns the key's bytes. They are a secret of the client: never log them.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Bytes::Part(line, range) => &line.as_bytes()[range.clone()],
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl From<&str> for ClientKey {
    fn from(text: &str) -> Self {
        Self(Bytes::Owned(text.as_bytes().into()))
    }
}

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientKey(..)")
    }
}

/// `%x21-7E` without the quote, and without the comma, which may be two joined lines.
fn read_bare(line: &HeaderValue) -> Option<ClientKey> {
    let bytes = line.as_bytes();
    bytes
        .iter()
        .all(|byte| PLAIN[usize::from(*byte)])
        .then(|| ClientKey(Bytes::Part(line.clone(), 0..bytes.len())))
}

/// What a bare key may have, by byte: every guarded request asks for each of its key's.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0x21;
    while byte <= 0x7E {
        plain[byte] = !matches!(byte as u8, b'"' | b',');
        byte += 1;
    }
    plain
};

/// A String Item: optional spaces, a string, parameters that are checked and ignored, optional spaces.
fn read_item(line: &HeaderValue) -> Option<ClientKey> {
    let mut input = Input {
        bytes: line.as_bytes(),
        at: 0,
    };
    input.skip_spaces();
    let start = input.at + 1;
    let escaped = input.string()?;
    let end = input.at - 1;
    input.parameters()?;
    input.skip_spaces();
    if input.at != input.bytes.len() {
        return None;
    }
    if !escaped {
        return Some(ClientKey(Bytes::Part(line.clone(), start..end)));
    }
    let mut text = Vec::with_capacity(end - start);
    let mut bytes = input.bytes[start..end].iter();
    while let Some(byte) = bytes.next() {
        text.push(if *byte == b'\\' {
            *bytes.next()?
        } else {
            *byte
        });
    }
    Some(ClientKey(Bytes::Owned(text.into())))
}

fn read_uuid(key: ClientKey) -> Option<ClientKey> {
    let bytes = key.as_bytes();
    let is_uuid = bytes.len() == 36
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        });
    if !is_uuid {
        return None;
    }
    let folded = bytes
        .iter()
        .any(u8::is_ascii_uppercase)
        .then(|| bytes.to_ascii_lowercase());
    Some(folded.map_or(key, |folded| ClientKey(Bytes::Owned(folded.into()))))
}

/// Walks over the grammar of RFC 9651 §4.2, as far as an Item needs it.
struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, wanted: u8) -> Option<()> {
        (self.next()? == wanted).then_some(())
    }

    fn skip_spaces(&mut self) {
        self.skip_while(|byte| byte == b' ');
    }

    /// Returns how many bytes were skipped.
    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) -> usize {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.at += 1;
        }
        self.at - start
    }

    /// Walks over a string and says whether it had escapes.
    fn string(&mut self) -> Option<bool> {
        self.take(b'"')?;
        let mut escaped = false;
        loop {
            match self.next()? {
                b'"' => return Some(escaped),
                b'\\' => {
                    escaped = true;
                    matches!(self.next()?, b'"' | b'\\').then_some(())?;
                }
                0x20..=0x7E => {}
                _ => return None,
            }
        }
    }

    fn parameters(&mut self) -> Option<()> {
        while self.peek() == Some(b';') {
            self.at += 1;
            self.skip_spaces();
            matches!(self.next()?, b'a'..=b'z' | b'*').then_some(())?;
            self.skip_while(
                |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' | b'*'),
            );
            if self.peek() == Some(b'=') {
                self.at += 1;
                self.bare_item()?;
            }
        }
        Some(())
    }

    fn bare_item(&mut self) -> Option<()> {
        match self.peek()? {
            b'-' | b'0'..=b'9' => self.number().map(drop),
            b'"' => self.string().map(drop),
            b'a'..=b'z' | b'A'..=b'Z' | b'*' => {
                self.skip_while(is_token);
                Some(())
            }
            b':' => self.byte_sequence(),
            b'?' => {
                self.at += 1;
                matches!(self.next()?, b'0' | b'1').then_some(())
            }
            b'@' => {
                self.at += 1;
                (!self.number()?).then_some(())
            }
            b'%' => self.display_string(),
            _ => None,
        }
    }

    /// Walks over an integer or a decimal and says whether it was a decimal.
    fn number(&mut self) -> Option<bool> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        let whole = self.skip_while(|byte| byte.is_ascii_digit());
        if self.peek() != Some(b'.') {
            return (1..=15).contains(&whole).then_some(false);
        }
        self.at += 1;
        let fraction = self.skip_while(|byte| byte.is_ascii_digit());
        ((1..=12).contains(&whole) && (1..=3).contains(&fraction)).then_some(true)
    }

    fn byte_sequence(&mut self) -> Option<()> {
        use base64::Engine;
        self.at += 1;
        let start = self.at;
        self.skip_while(|byte| byte != b':');
        let text = &self.bytes[start..self.at];
        self.take(b':')?;
        LENIENT_BASE64.decode(text).is_ok().then_some(())
    }

    fn display_string(&mut self) -> Option<()> {
        self.at += 1;
        self.take(b'"')?;
        let mut text = Vec::new();
        loop {
            match self.next()? {
                b'"' => return std::str::from_utf8(&text).is_ok().then_some(()),
                b'%' => {
                    let (high, low) = (lower_hex(self.next()?)?, lower_hex(self.next()?)?);
                    text.push(high << 4 | low);
                }
                byte @ 0x20..=0x7E => text.push(byte),
                _ => return None,
            }
        }
    }
}

/// RFC 9651 §4.2.7 asks parsers to accept missing padding and pad bits that are not zero.
const LENIENT_BASE64: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

fn lower_hex(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte)
}

#[cfg(test)]
mod tests;
