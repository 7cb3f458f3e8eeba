//! What is kept under one key: a head of 84 bytes, then the answer or what is left of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::{HeaderMap, StatusCode};

pub use super::id::{NotARecordId, RecordId, ScopeTag};
use super::policy::LeaseEnd;
use crate::core::Timestamp;

/// The length of a record's head in bytes.
pub const HEAD_BYTES: usize = 84;
/// An undecided outcome is kept at least this long, so that an operator can resolve it.
pub const UNKNOWN_KEPT: Duration = Duration::from_secs(7 * 86_400);

/// Names one owner of one claim: 16 bytes that no other claim has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nonce(pub [u8; 16]);

/// Rises with every owner of a key, over all its lives: for the handler's own fenced writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl Fence {
    /// The store's time at the claim, unless its clock had stepped back.
    pub(super) const fn time(self) -> Timestamp {
        Timestamp::from_millis(self.0 / 1_000)
    }
}

/// The keyed hash of a request's payload, and the rule by which it was made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// The tag of the rule; fingerprints of different rules are never compared.
    pub rule: u8,
    /// The hash.
    pub hash: [u8; 32],
}

impl Fingerprint {
    /// Says whether both were made by one rule and differ; the hashes are compared in constant time.
    #[must_use]
    pub fn contradicts(&self, other: &Self) -> bool {
        use subtle::ConstantTimeEq;
        self.rule == other.rule && !bool::from(self.words().ct_eq(&other.words()))
    }

    /// The hash in four words: an eighth of the steps of a comparison by bytes.
    fn words(&self) -> [u64; 4] {
        let (words, _) = self.hash.as_chunks();
        std::array::from_fn(|n| words.get(n).map_or(0, |word| u64::from_ne_bytes(*word)))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fingerprint")
            .field("rule", &self.rule)
            .finish_non_exhaustive()
    }
}

/// What a record says of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Claimed: running, or left behind by a crash once its lease is over.
    Claimed,
    /// The whole answer is kept.
    Answered,
    /// It ran, but the answer cannot be given again.
    Tombstone,
    /// It ran, perhaps: the record cannot be decoded.
    Unreadable,
}

/// The part of a record that every decision needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// What the record says of its run.
    pub state: State,
    /// What the end of the lease means, by the policy of the run that wrote it.
    pub at_lease_end: LeaseEnd,
    /// Who owns it.
    pub nonce: Nonce,
    /// The owner's fence.
    pub fence: Fence,
    /// The payload it belongs to.
    pub fingerprint: Fingerprint,
    /// When the key was first claimed.
    pub created: Timestamp,
    /// At exactly this moment the lease is over.
    pub lease_until: Timestamp,
    /// At exactly this moment the record is gone.
    pub expires_at: Timestamp,
    /// The store's time when it was read; not stored.
    pub read_at: Timestamp,
}

impl Head {
    /// The head of what cannot be read.
    const fn unreadable(read_at: Timestamp) -> Self {
        Self {
            state: State::Unreadable,
            at_lease_end: LeaseEnd::Indeterminate,
            nonce: Nonce([0; 16]),
            fence: Fence(0),
            fingerprint: Fingerprint {
                rule: 0,
                hash: [0; 32],
            },
            created: Timestamp::EPOCH,
            lease_until: Timestamp::EPOCH,
            expires_at: Timestamp::MAX,
            read_at,
        }
    }

    /// Says whether a claim's lease still runs.
    #[must_use]
    pub fn is_leased(&self) -> bool {
        self.state == State::Claimed && self.read_at < self.lease_until
    }

    /// Writes the head: big-endian, version 1.
    #[must_use]
    pub fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut out = [0; HEAD_BYTES];
        let state = match self.state {
            State::Claimed => 1,
            State::Answered => 2,
            State::Tombstone => 3,
            State::Unreadable => 0,
        };
        out[..4].copy_from_slice(&[1, state, self.at_lease_end.byte(), self.fingerprint.rule]);
        out[4..20].copy_from_slice(&self.nonce.0);
        out[20..28].copy_from_slice(&self.fence.0.to_be_bytes());
        out[28..60].copy_from_slice(&self.fingerprint.hash);
        let times = [self.created, self.lease_until, self.expires_at];
        for (time, place) in times.into_iter().zip(out[60..].chunks_exact_mut(8)) {
            place.copy_from_slice(&time.as_millis().to_be_bytes());
        }
        out
    }

    /// Reads a head; `None` for another version or damage.
    #[must_use]
    pub fn decode(bytes: &[u8], read_at: Timestamp) -> Option<Self> {
        let bytes: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
        let state = match (bytes[0], bytes[1]) {
            (1, 1) => State::Claimed,
            (1, 2) => State::Answered,
            (1, 3) => State::Tombstone,
            _ => return None,
        };
        let time = |at: usize| {
            let millis = number(bytes, at)?;
            (millis <= Timestamp::MAX.as_millis()).then(|| Timestamp::from_millis(millis))
        };
        Some(Self {
            state,
            at_lease_end: LeaseEnd::from_byte(bytes[2])?,
            nonce: Nonce(*bytes[4..].first_chunk()?),
            fence: Fence(number(bytes, 20)?),
            fingerprint: Fingerprint {
                rule: bytes[3],
                hash: *bytes[28..].first_chunk()?,
            },
            created: time(60)?,
            lease_until: time(68)?,
            expires_at: time(76)?,
            read_at,
        })
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A record as a store hands it out.
#[derive(Clone, Debug)]
pub struct Record {
    /// The head.
    pub head: Head,
    /// What comes after it.
    pub content: Content,
}

/// What a record holds beside its head.
#[derive(Clone, Debug)]
pub enum Content {
    /// Nothing yet.
    Claimed,
    /// The whole answer.
    Full(Arc<StoredAnswer>),
    /// What is left of an answer that cannot be given again.
    Tombstone(Arc<Tombstone>),
    /// Bytes that this version cannot decode.
    Unreadable,
}

impl Record {
    /// Reads a record. Values and body are slices of `bytes`; damage gives [`Content::Unreadable`], never a panic.
    #[must_use]
    pub fn decode(bytes: &Bytes, read_at: Timestamp) -> Self {
        let Some(head) = Head::decode(bytes, read_at) else {
            return Self::unreadable(read_at);
        };
        Self::of(head, bytes.slice(HEAD_BYTES..))
    }

    /// Reads what follows a head.
    pub(super) fn of(head: Head, rest: Bytes) -> Self {
        let content = match head.state {
            State::Claimed => rest.is_empty().then_some(Content::Claimed),
            State::Answered => decode_answer(rest).map(|answer| Content::Full(Arc::new(answer))),
            _ => decode_tombstone(rest).map(|left| Content::Tombstone(Arc::new(left))),
        };
        match content {
            Some(content) => Self { head, content },
            None => Self::unreadable(head.read_at),
        }
    }

    /// A record that this version cannot read.
    pub(super) const fn unreadable(read_at: Timestamp) -> Self {
        Self {
            head: Head::unreadable(read_at),
            content: Content::Unreadable,
        }
    }
}

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

fn write_fields(out: &mut Vec<u8>, fields: &HeaderMap) {
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

fn decode_answer(mut rest: Bytes) -> Option<StoredAnswer> {
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

fn read_fields(rest: &mut Bytes) -> Option<HeaderMap> {
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

#[cfg(test)]
mod tests;
