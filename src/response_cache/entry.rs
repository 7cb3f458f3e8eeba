//! A stored response: its head, its body, and the bytes it is kept as in a shared store.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{AGE, HeaderMap};
use http::{HeaderName, HeaderValue, StatusCode};
use parking_lot::Mutex;

use super::stamps::Stamp;
use super::target::Target;
use super::vary::Names;
use crate::core::fields::CACHE_STATUS;

/// Names one version of one stored response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryId(pub u64);

impl EntryId {
    /// Draws a new one.
    pub(crate) fn draw() -> Self {
        Self(super::key::random())
    }
}

/// What is remembered of how a response may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags(pub(super) u16);

impl Flags {
    /// Validated before each use.
    pub(super) const NO_CACHE: u16 = 1;
    /// Never used stale.
    pub(super) const NEVER_STALE: u16 = 1 << 1;
    /// May answer requests that carry Authorization.
    pub(super) const FOR_AUTHORIZED: u16 = 1 << 2;
    /// Its Cache-Control is ours, for clients; the origin sent none.
    pub(super) const OWN_CACHE_CONTROL: u16 = 1 << 3;
    /// Its ETag is ours.
    pub(super) const OWN_ETAG: u16 = 1 << 4;
    /// Fresh by a policy: gone at the end of its windows.
    pub(super) const BY_POLICY: u16 = 1 << 5;

    pub(super) const fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    pub(super) const fn set(&mut self, flag: u16, on: bool) {
        if on {
            self.0 |= flag;
        }
    }
}

/// Status, fields and terms of a stored response. Times in microseconds of the store's clock.
#[derive(Clone)]
pub struct Head {
    /// This version.
    pub(super) id: EntryId,
    /// The version that brought the body; stays when a head is freshened.
    pub(super) body_id: EntryId,
    /// The highest stamp when its fetch began.
    pub(super) begun: Stamp,
    /// When its fetch began.
    pub(super) at: u64,
    /// When its head came.
    pub(super) received: u64,
    pub(super) initial_age: u64,
    pub(super) lifetime: u64,
    /// The age from which it is refreshed while fresh.
    pub(super) refresh_after: Option<u64>,
    pub(super) stale_while_revalidate: u64,
    /// `None` where nobody said a window.
    pub(super) stale_if_error: Option<u64>,
    /// When it is of no more use to anybody.
    pub(super) expires_at: u64,
    pub(super) flags: Flags,
    pub(super) status: StatusCode,
    pub(super) key: Box<[u8]>,
    pub(super) names: Names,
    pub(super) selection: Box<[u8]>,
    pub(super) targets: Box<[Target]>,
    /// The stored fields, with room kept for Age and Cache-Status so that a hit need not grow them.
    pub(super) fields: HeaderMap,
    pub(super) trailers: Option<Box<HeaderMap>>,
}

impl Head {
    /// The age at `now` (RFC 9111 §4.2.3); a clock that went back counts as no time.
    pub(super) const fn age(&self, now: u64) -> u64 {
        self.initial_age
            .saturating_add(now.saturating_sub(self.received))
    }

    /// When it stops being fresh; 0 for what is validated before each use.
    pub(super) const fn fresh_until(&self) -> u64 {
        if self.flags.has(Flags::NO_CACHE) {
            return 0;
        }
        self.received
            .saturating_add(self.lifetime.saturating_sub(self.initial_age))
    }

    /// Returns this version's name.
    #[must_use]
    pub const fn id(&self) -> EntryId {
        self.id
    }

    /// Returns the name of the version that brought the body; it stays when a head is freshened.
    #[must_use]
    pub const fn body_id(&self) -> EntryId {
        self.body_id
    }

    /// Returns the highest stamp when its fetch began.
    #[must_use]
    pub const fn begun(&self) -> Stamp {
        self.begun
    }

    /// Returns when its fetch began, in microseconds of the store's clock.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Returns when it is of no more use to anybody, in microseconds of the store's clock.
    #[must_use]
    pub const fn expires_at(&self) -> u64 {
        self.expires_at
    }

    /// Returns the names of the fields that selected it.
    #[must_use]
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// Returns when it is due for a refresh behind an answer, or stale, in microseconds of the store's clock.
    #[must_use]
    pub fn due_at(&self) -> u64 {
        let due = |after: u64| {
            self.received
                .saturating_add(after.saturating_sub(self.initial_age))
        };
        self.refresh_after
            .map_or(u64::MAX, due)
            .min(self.fresh_until())
    }

    /// Writes it as bytes for a shared store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for another format, another coding of the body, or damage.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        decode(bytes)
    }

    /// Returns the fields as they were stored.
    pub(super) fn stored_fields(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.fields
            .iter()
            .filter(|(name, _)| *name != AGE && *name != CACHE_STATUS)
    }

    /// Keeps room for the two fields that every hit gets.
    pub(super) fn keep_room(fields: &mut HeaderMap) {
        fields.insert(AGE, HeaderValue::from_static("0"));
        fields.insert(CACHE_STATUS, HeaderValue::from_static(""));
    }

    fn weight(&self) -> usize {
        let fields = self
            .fields
            .iter()
            .chain(self.trailers.iter().flat_map(|fields| fields.iter()))
            .map(|(name, value)| name.as_str().len() + value.len() + 64);
        size_of::<Self>()
            + fields.sum::<usize>()
            + self.key.len()
            + self.selection.len()
            + self.targets.len() * 8
            + self.names.as_text().len()
    }
}

impl Default for Head {
    fn default() -> Self {
        Self {
            id: EntryId::default(),
            body_id: EntryId::default(),
            begun: Stamp::default(),
            at: 0,
            received: 0,
            initial_age: 0,
            lifetime: 0,
            refresh_after: None,
            stale_while_revalidate: 0,
            stale_if_error: None,
            expires_at: 0,
            flags: Flags::default(),
            status: StatusCode::OK,
            key: Box::default(),
            names: Names::default(),
            selection: Box::default(),
            targets: Box::default(),
            fields: HeaderMap::new(),
            trailers: None,
        }
    }
}

impl fmt::Debug for Head {
    /// Field values, keys and queries are left out: they may be personal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("id", &self.id)
            .field("begun", &self.begun)
            .field("status", &self.status)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// Age and `Cache-Status` of a hit: the same for all hits of one second by caches of one name.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) name: &'static str,
    pub(super) age: u64,
    pub(super) ttl: i64,
    pub(super) age_value: HeaderValue,
    pub(super) status_value: HeaderValue,
}

/// A stored response. Cloning the `Arc` around it and its body copies nothing.
pub struct Entry {
    head: Arc<Head>,
    body: Bytes,
    /// The two values that change with the second, as they were last written.
    written: Mutex<Option<Written>>,
    /// The version of the stamps that it was last judged live at.
    checked: AtomicU64,
}

impl Entry {
    /// Puts a head and its body together.
    #[must_use]
    pub const fn new(head: Arc<Head>, body: Bytes) -> Self {
        let checked = AtomicU64::new(0);
        Self {
            head,
            body,
            written: Mutex::new(None),
            checked,
        }
    }

    /// Returns the same body under a new head.
    #[must_use]
    pub fn with_head(&self, head: Arc<Head>) -> Self {
        Self::new(head, self.body.clone())
    }

    /// Returns the head.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Returns this version's name.
    #[must_use]
    pub fn id(&self) -> EntryId {
        self.head.id
    }

    /// Returns the body.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.head.trailers.as_deref()
    }

    /// Returns Age and `Cache-Status` of a hit, written anew only when a second has passed.
    pub(super) fn written(
        &self,
        name: &'static str,
        age: u64,
        ttl: i64,
        write: impl FnOnce() -> HeaderValue,
    ) -> (HeaderValue, HeaderValue) {
        let mut written = self.written.lock();
        if let Some(last) = &*written
            && (last.age, last.ttl, last.name) == (age, ttl, name)
        {
            return (last.age_value.clone(), last.status_value.clone());
        }
        let (age_value, status_value) = (HeaderValue::from(age), write());
        *written = Some(Written {
            name,
            age,
            ttl,
            age_value: age_value.clone(),
            status_value: status_value.clone(),
        });
        (age_value, status_value)
    }

    pub(super) fn checked_at(&self, version: u64) -> bool {
        self.checked.load(Ordering::Acquire) == version && version != 0
    }

    pub(super) fn set_checked(&self, version: u64) {
        self.checked.store(version, Ordering::Release);
    }

    /// The bytes it accounts for; 256 more are counted for each entry by whoever keeps it.
    pub(super) fn weight(&self) -> usize {
        self.head.weight() + self.body.len()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("head", &self.head)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Makes entries for the published suite.
#[cfg(feature = "conformance")]
pub(crate) fn sample(
    names: &Names,
    ticket: super::store::Ticket,
    lives_micros: u64,
    fresh_micros: u64,
    body: &str,
) -> Entry {
    let id = EntryId::draw();
    let mut head = Head {
        id,
        body_id: id,
        begun: ticket.begun,
        at: ticket.at,
        received: ticket.at,
        lifetime: fresh_micros,
        expires_at: ticket.at.saturating_add(lives_micros),
        key: b"sample".to_vec().into(),
        names: names.clone(),
        ..Head::default()
    };
    Head::keep_room(&mut head.fields);
    Entry::new(Arc::new(head), Bytes::copy_from_slice(body.as_bytes()))
}

/// Makes a new head for the body of `entry`, for the published suite.
#[cfg(feature = "conformance")]
pub(crate) fn sample_head(entry: &Entry, ticket: super::store::Ticket, lives_micros: u64) -> Head {
    Head {
        id: EntryId::draw(),
        at: ticket.at,
        begun: ticket.begun,
        received: ticket.at,
        expires_at: ticket.at.saturating_add(lives_micros),
        ..entry.head().clone()
    }
}

/// The first byte of an encoded head: its format.
const FORMAT: u8 = 1;
/// The second byte: how the body is coded; 0 is plain.
const PLAIN: u8 = 0;

/// Writes a head as bytes, format 1.
fn encode(head: &Head) -> Vec<u8> {
    let mut out = vec![FORMAT, PLAIN];
    let numbers = [
        head.id.0,
        head.body_id.0,
        head.begun.0,
        head.at,
        head.received,
        head.initial_age,
        head.lifetime,
        head.refresh_after.unwrap_or(u64::MAX),
        head.stale_while_revalidate,
        head.stale_if_error.unwrap_or(u64::MAX),
        head.expires_at,
        u64::from(head.flags.0),
        u64::from(head.status.as_u16()),
    ];
    numbers
        .iter()
        .for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    put(&mut out, &head.key);
    put(&mut out, head.names.as_text().as_bytes());
    put(&mut out, &head.selection);
    let targets: Vec<u8> = head
        .targets
        .iter()
        .flat_map(|target| target.bits().to_be_bytes())
        .collect();
    put(&mut out, &targets);
    put_fields(&mut out, head.stored_fields());
    put_fields(
        &mut out,
        head.trailers.iter().flat_map(|fields| fields.iter()),
    );
    out
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn put_fields<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let mut count = 0_u32;
    for (name, value) in fields {
        put(out, name.as_str().as_bytes());
        put(out, value.as_bytes());
        count += 1;
    }
    out[start..start + 4].copy_from_slice(&count.to_be_bytes());
}

/// Reads a head; `None` for another format, another coding, or damage.
fn decode(bytes: &[u8]) -> Option<Head> {
    let mut from = Reader(bytes.strip_prefix(&[FORMAT, PLAIN])?);
    let some = |number: u64| (number != u64::MAX).then_some(number);
    let mut head = Head {
        id: EntryId(from.number()?),
        body_id: EntryId(from.number()?),
        begun: Stamp(from.number()?),
        at: from.number()?,
        received: from.number()?,
        initial_age: from.number()?,
        lifetime: from.number()?,
        refresh_after: some(from.number()?),
        stale_while_revalidate: from.number()?,
        stale_if_error: some(from.number()?),
        expires_at: from.number()?,
        flags: Flags(u16::try_from(from.number()?).ok()?),
        status: StatusCode::from_u16(u16::try_from(from.number()?).ok()?).ok()?,
        key: from.take()?.into(),
        names: Names::from_text(std::str::from_utf8(from.take()?).ok()?),
        selection: from.take()?.into(),
        ..Head::default()
    };
    let targets = from.take()?;
    head.targets = targets
        .as_chunks()
        .0
        .iter()
        .map(|bits| Target::from_bits(u64::from_be_bytes(*bits)))
        .collect();
    head.fields = from.fields()?;
    Head::keep_room(&mut head.fields);
    let trailers = from.fields()?;
    head.trailers = (!trailers.is_empty()).then(|| Box::new(trailers));
    (from.0.is_empty() && targets.len().is_multiple_of(8)).then_some(head)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    fn length(&mut self) -> Option<usize> {
        let (length, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        usize::try_from(u32::from_be_bytes(*length)).ok()
    }

    fn take(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn fields(&mut self) -> Option<HeaderMap> {
        let count = self.length()?;
        let mut fields = HeaderMap::new();
        for _ in 0..count {
            let name = HeaderName::from_bytes(self.take()?).ok()?;
            let value = HeaderValue::from_bytes(self.take()?).ok()?;
            fields.try_append(name, value).ok()?;
        }
        Some(fields)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Head {
        let mut head = Head {
            id: EntryId(7),
            lifetime: 60,
            refresh_after: Some(3),
            flags: Flags(Flags::BY_POLICY),
            key: b"key".to_vec().into(),
            names: Names::from_text("accept,origin"),
            targets: vec![Target::everything(), Target::tag("a")].into(),
            ..Head::default()
        };
        head.fields
            .append("x-a", HeaderValue::from_bytes(b"\xff1").unwrap());
        head.fields.append("x-a", HeaderValue::from_static("2"));
        Head::keep_room(&mut head.fields);
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("9"));
        head.trailers = Some(Box::new(trailers));
        head
    }

    #[test]
    fn a_head_comes_back_as_it_was_written() {
        let head = sample();
        let back = decode(&encode(&head)).unwrap();
        assert_eq!(encode(&back), encode(&head));
        assert_eq!(
            (back.id, back.refresh_after, back.stale_if_error),
            (head.id, Some(3), None)
        );
        assert_eq!(
            (&back.fields, &back.targets, &back.trailers),
            (&head.fields, &head.targets, &head.trailers)
        );
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_no_head_and_no_panic(at in 0_usize..200, byte: u8, cut in 0_usize..200) {
            let head = sample();
            let mut bytes = encode(&head);
            let whole = bytes.len();
            if at < whole {
                bytes[at] = byte;
            }
            let _ = decode(&bytes);
            bytes.truncate(cut);
            if cut < whole {
                prop_assert!(decode(&bytes).is_none());
            }
        }

        #[test]
        fn anything_at_all_can_be_offered(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
