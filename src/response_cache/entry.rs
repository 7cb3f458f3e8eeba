//! A stored response: its head, its body, and the bytes it is kept as in a shared store.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::header::{AGE, HeaderMap};
use http::{HeaderName, HeaderValue, StatusCode};

use super::fields::Fields;
use super::key::Text;
use super::stamps::Stamp;
use super::target::{self, Target};
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
///
/// In this order in memory: first what a hit reads, so that one of many entries is few cache lines.
#[derive(Clone)]
#[repr(C)]
pub struct Head {
    pub(super) flags: Flags,
    pub(super) status: StatusCode,
    /// The highest stamp when its fetch began.
    pub(super) begun: Stamp,
    /// When it is of no more use to anybody.
    pub(super) expires_at: u64,
    /// When its head came.
    pub(super) received: u64,
    pub(super) initial_age: u64,
    pub(super) lifetime: u64,
    /// The age from which it is refreshed while fresh.
    pub(super) refresh_after: Option<u64>,
    pub(super) names: Names,
    pub(super) selection: Box<[u8]>,
    /// The stored fields.
    pub(super) fields: Fields,
    pub(super) trailers: Option<Box<HeaderMap>>,
    pub(super) key: Text,
    /// This version.
    pub(super) id: EntryId,
    /// The version that brought the body; stays when a head is freshened.
    pub(super) body_id: EntryId,
    /// When its fetch began.
    pub(super) at: u64,
    pub(super) stale_while_revalidate: u64,
    /// `None` where nobody said a window.
    pub(super) stale_if_error: Option<u64>,
    /// What the answer and the policies say may hit it: tags and groups.
    pub(super) said: Box<[Target]>,
    /// What the request names besides, worked out from the key when first asked for.
    pub(super) known: OnceLock<Box<[Target]>>,
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
        super::record::encode(self)
    }

    /// Reads what [`encode`](Self::encode) wrote; `None` for another format, another coding of the body, or damage.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        super::record::decode(bytes)
    }

    /// Returns the fields as they were stored.
    pub(super) fn stored_fields(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.fields
            .iter()
            .filter(|(name, _)| *name != AGE && *name != CACHE_STATUS)
    }

    /// Returns everything an invalidation may name to hit it.
    pub(super) fn targets(&self) -> impl Iterator<Item = &Target> + Clone {
        let known = self.known.get_or_init(|| target::known_from_key(&self.key));
        self.said.iter().chain(known)
    }

    fn weight(&self) -> usize {
        let trailers = self.trailers.iter().flat_map(|fields| fields.iter());
        let trailers = trailers.map(|(name, value)| name.as_str().len() + value.len() + PER_LINE);
        let (bytes, lines) = self.fields.size();
        trailers.sum::<usize>()
            + bytes
            + lines * PER_LINE
            + self.key.len()
            + self.selection.len()
            + (self.said.len() + KNOWN_TARGETS) * size_of::<Target>()
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
            key: Text::new(),
            names: Names::default(),
            selection: Box::default(),
            said: Box::default(),
            known: OnceLock::new(),
            fields: Fields::default(),
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

/// What one line takes beside its value, in the text and in the map with its empty places.
const PER_LINE: usize = 200;
/// As many targets as most requests name.
const KNOWN_TARGETS: usize = 8;

/// A stored response. Cloning the `Arc` around it and its body copies nothing.
#[repr(C)]
pub struct Entry {
    /// The version of the stamps that it was last judged live at.
    checked: AtomicU64,
    /// A body that does not lie behind the head's own text.
    apart: Option<Box<Apart>>,
    head: Head,
    /// The bytes it accounts for.
    weight: usize,
}

/// A body that came otherwise than with this head.
struct Apart {
    body: Bytes,
    /// Bytes that lie in its allocation, of the head that it came with.
    beside: usize,
}

impl Entry {
    /// Puts a head and its body together.
    #[must_use]
    pub fn new(head: Head, body: Bytes) -> Self {
        let weight = body.len() + size_of::<Apart>();
        Self::of(head, weight, Some(Box::new(Apart { body, beside: 0 })))
    }

    /// Takes a head whose body lies behind its fields.
    pub(super) fn whole(head: Head) -> Self {
        let weight = head.fields.bytes_behind();
        Self::of(head, weight, None)
    }

    fn of(head: Head, body: usize, apart: Option<Box<Apart>>) -> Self {
        let weight = size_of::<Self>() + head.weight() + body;
        Self {
            checked: AtomicU64::new(0),
            apart,
            head,
            weight,
        }
    }

    /// Returns the same body under a new head.
    #[must_use]
    pub fn with_head(&self, head: Head) -> Self {
        let beside = match &self.apart {
            Some(apart) => apart.beside,
            None => self.head.fields.text_bytes(),
        };
        let body = self.body();
        let weight = body.len() + size_of::<Apart>() + beside;
        Self::of(head, weight, Some(Box::new(Apart { body, beside })))
    }

    /// Returns the head.
    #[must_use]
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// Returns this version's name.
    #[must_use]
    pub const fn id(&self) -> EntryId {
        self.head.id
    }

    /// Returns the body, which is shared and not copied.
    #[must_use]
    pub fn body(&self) -> Bytes {
        match &self.apart {
            Some(apart) => apart.body.clone(),
            None => self.head.fields.behind(),
        }
    }

    /// Returns how many bytes the body has.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        match &self.apart {
            Some(apart) => apart.body.len(),
            None => self.head.fields.bytes_behind(),
        }
    }

    pub(super) fn trailers(&self) -> Option<&HeaderMap> {
        self.head.trailers.as_deref()
    }

    pub(super) fn checked_at(&self, version: u64) -> bool {
        self.checked.load(Ordering::Acquire) == version && version != 0
    }

    pub(super) fn set_checked(&self, version: u64) {
        self.checked.store(version, Ordering::Release);
    }

    /// The bytes it accounts for; 256 more are counted for each entry by whoever keeps it.
    pub(super) const fn weight(&self) -> usize {
        self.weight
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("head", &self.head)
            .field("body_bytes", &self.body_bytes())
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
    let head = Head {
        id,
        body_id: id,
        begun: ticket.begun,
        at: ticket.at,
        received: ticket.at,
        lifetime: fresh_micros,
        expires_at: ticket.at.saturating_add(lives_micros),
        key: b"sample".to_vec().into(),
        names: names.clone(),
        fields: super::fields::room(0).into(),
        ..Head::default()
    };
    Entry::new(head, Bytes::copy_from_slice(body.as_bytes()))
}

/// Makes an entry of the same body under a new head, for the published suite.
#[cfg(feature = "conformance")]
pub(crate) fn freshened(entry: &Entry, ticket: super::store::Ticket, lives_micros: u64) -> Entry {
    entry.with_head(Head {
        id: EntryId::draw(),
        at: ticket.at,
        begun: ticket.begun,
        received: ticket.at,
        expires_at: ticket.at.saturating_add(lives_micros),
        ..entry.head().clone()
    })
}
