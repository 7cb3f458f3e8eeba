//! What a record holds beside its head: an answer, or what is left of one, and its bytes.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use http::{HeaderMap, StatusCode};

use super::record::{Content, Fingerprint, State};

/// What `complete` writes: the answer or a tombstone, and the payload it belongs to.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The payload: a record that was lost meanwhile is written back with it.
    pub fingerprint: Fingerprint,
    /// The answer.
    pub content: AnswerContent,
}

/// The two forms of an [`Answer`]; cheap to clone.
#[derive(Clone, Debug)]
pub enum AnswerContent {
    /// The whole answer.
    Full(Arc<StoredAnswer>),
    /// What is left of it.
    Tombstone(Arc<Tombstone>),
}

impl AnswerContent {
    /// Returns the state of a record that holds this.
    #[must_use]
    pub const fn state(&self) -> State {
        match self {
            Self::Full(_) => State::Answered,
            Self::Tombstone(_) => State::Tombstone,
        }
    }

    /// Returns about how many bytes it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        match self {
            Self::Full(answer) => answer.weight(),
            Self::Tombstone(left) => weight_of(&left.fields),
        }
    }

    /// Writes what follows the head.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.weight() + 32);
        self.write_text(&mut out);
        if let Self::Full(answer) = self {
            write_length(&mut out, answer.body.len());
            out.extend_from_slice(&answer.body);
        }
        out
    }

    /// Writes status, fields and trailers: all but the body.
    pub(super) fn write_text(&self, out: &mut Vec<u8>) {
        match self {
            Self::Full(answer) => {
                out.extend_from_slice(&answer.status.as_u16().to_be_bytes());
                out.push(u8::from(answer.trailers.is_some()));
                write_fields(out, &answer.fields);
                if let Some(trailers) = &answer.trailers {
                    write_fields(out, trailers);
                }
            }
            Self::Tombstone(left) => {
                out.extend_from_slice(&left.status.as_u16().to_be_bytes());
                out.push(left.reason as u8);
                write_fields(out, &left.fields);
            }
        }
    }
}

impl From<AnswerContent> for Content {
    fn from(content: AnswerContent) -> Self {
        match content {
            AnswerContent::Full(answer) => Self::Full(answer),
            AnswerContent::Tombstone(left) => Self::Tombstone(left),
        }
    }
}

/// An answer as it is kept: status, fields, body and trailers, byte for byte. Printed, it shows how much it is, not what.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredAnswer {
    /// The status.
    pub status: StatusCode,
    /// The fields, repeated ones and values that are not UTF-8 included; those marked sensitive stay so.
    pub fields: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// The trailers, if there were any.
    pub trailers: Option<HeaderMap>,
}

impl StoredAnswer {
    /// Returns about how many bytes it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let trailers = self.trailers.as_ref().map_or(0, weight_of);
        self.body.len() + weight_of(&self.fields) + trailers
    }
}

impl fmt::Debug for StoredAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredAnswer")
            .field("status", &self.status)
            .field("fields", &self.fields.len())
            .field("body", &self.body.len())
            .field("trailers", &self.trailers.as_ref().map(HeaderMap::len))
            .finish()
    }
}

fn weight_of(fields: &HeaderMap) -> usize {
    fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 64)
        .sum()
}

/// What is kept of an answer that cannot be given again. Printed, it shows no values.
#[derive(Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// The status of the answer.
    pub status: StatusCode,
    /// Its `Location`, `Content-Location` and `ETag`.
    pub fields: HeaderMap,
    /// Why the answer itself was not kept.
    pub reason: TombstoneReason,
}

impl fmt::Debug for Tombstone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tombstone")
            .field("status", &self.status)
            .field("fields", &self.fields.len())
            .field("reason", &self.reason)
            .finish()
    }
}

/// Why an answer was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TombstoneReason {
    /// Larger than the layer or the store keeps.
    TooLarge = 1,
    /// A stream, an upgrade, or of unknown size and not over in time.
    Streamed = 2,
    /// The body failed before its end.
    BodyFailed = 3,
    /// The handler or the policy said so.
    NoStore = 4,
}

impl TombstoneReason {
    const ALL: [Self; 4] = [
        Self::TooLarge,
        Self::Streamed,
        Self::BodyFailed,
        Self::NoStore,
    ];
}

fn write_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push((length & 0x7F) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

/// Stands before the name of a field whose value is sensitive; no name begins so.
const SENSITIVE: u8 = b':';

pub(super) fn write_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    write_length(out, fields.len());
    for (name, value) in fields {
        let (name, is_sensitive) = (name.as_str().as_bytes(), value.is_sensitive());
        write_length(out, name.len() + usize::from(is_sensitive));
        if is_sensitive {
            out.push(SENSITIVE);
        }
        out.extend_from_slice(name);
        write_length(out, value.len());
        out.extend_from_slice(value.as_bytes());
    }
}

pub(super) fn decode_answer(mut rest: Bytes) -> Option<StoredAnswer> {
    let answer = read_text(&mut rest)?;
    let length = read_length(&mut rest)?;
    (rest.len() == length).then_some(StoredAnswer {
        body: rest,
        ..answer
    })
}

/// Reads an answer without its body.
pub(super) fn read_text(rest: &mut Bytes) -> Option<StoredAnswer> {
    let (status, has_trailers) = (read_status(rest)?, read_byte(rest)?);
    let fields = read_fields(rest)?;
    let trailers = match has_trailers {
        0 => None,
        1 => Some(read_fields(rest)?),
        _ => return None,
    };
    Some(StoredAnswer {
        status,
        fields,
        body: Bytes::new(),
        trailers,
    })
}

pub(super) fn decode_tombstone(mut rest: Bytes) -> Option<Tombstone> {
    let (status, reason) = (read_status(&mut rest)?, read_byte(&mut rest)?);
    let reason = TombstoneReason::ALL
        .into_iter()
        .find(|known| *known as u8 == reason)?;
    let fields = read_fields(&mut rest)?;
    rest.is_empty().then_some(Tombstone {
        status,
        fields,
        reason,
    })
}

fn take(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (rest.len() >= length).then(|| rest.split_to(length))
}

fn read_byte(rest: &mut Bytes) -> Option<u8> {
    let byte = *rest.first()?;
    rest.advance(1);
    Some(byte)
}

fn read_status(rest: &mut Bytes) -> Option<StatusCode> {
    let status = u16::from_be_bytes(*rest.first_chunk()?);
    rest.advance(2);
    StatusCode::from_u16(status).ok()
}

fn read_length(rest: &mut Bytes) -> Option<usize> {
    let mut length = 0_usize;
    for shift in (0..28).step_by(7) {
        let byte = read_byte(rest)?;
        length |= usize::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(length);
        }
    }
    None
}

/// A replay adds two fields; their room is there from the start.
const ROOM: usize = 2;

pub(super) fn read_fields(rest: &mut Bytes) -> Option<HeaderMap> {
    let count = read_length(rest)?;
    // A forged count reserves little, and a count of lines that repeat a name is no capacity that a map need have.
    let mut fields = HeaderMap::with_capacity(count.min(1_024) + ROOM);
    for _ in 0..count {
        let length = read_length(rest)?;
        let line = rest.get(..length)?;
        let is_sensitive = line.first() == Some(&SENSITIVE);
        let name = http::HeaderName::from_lowercase(&line[usize::from(is_sensitive)..]).ok()?;
        rest.advance(length);
        let length = read_length(rest)?;
        let mut value = http::HeaderValue::from_maybe_shared(take(rest, length)?).ok()?;
        value.set_sensitive(is_sensitive);
        fields.try_append(name, value).ok()?;
    }
    Some(fields)
}
