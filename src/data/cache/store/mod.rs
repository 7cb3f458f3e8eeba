//! Where cached records, leases and stamps live: one atomic step per method.

mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod memory;
#[cfg(feature = "redis")]
mod redis;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::target::{CacheKey, Target};
use crate::core::{Clock, Key, NoticeCallback, StoreFuture, Subscription};

/// Drawn for each attempt to load: only who owns a part of the lease fills under it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LeaseToken(pub [u8; 16]);

impl fmt::Debug for LeaseToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseToken(..)")
    }
}

/// What a reader asks for beside the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Nothing.
    Read,
    /// A lease, if the record is missing, stale or due for a refresh.
    Lease(LeaseWish),
}

/// A wish for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseWish {
    /// The asker.
    pub token: LeaseToken,
    /// How long a load may take.
    pub lasts: Duration,
    /// Takes part in another's lease: whichever of its owners is done first fills.
    pub take_over: bool,
    /// Also where the record is fresh.
    pub force: bool,
}

/// Whether a lease was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leased {
    /// Not asked for, or not needed.
    No,
    /// Yours.
    Given,
    /// Another loads.
    Busy,
}

/// A record that no stamp has overtaken, and that is not past its stale time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The bytes.
    pub payload: Bytes,
    /// The tags and aliases it was stored with.
    pub tags: Vec<String>,
    /// When it was stored, by the store's clock, in UTC milliseconds; so are the others.
    pub stored: u64,
    /// From then on it is due for a refresh.
    pub refresh: u64,
    /// From then on it is stale.
    pub fresh: u64,
    /// From then on it is gone.
    pub expires: u64,
}

/// The answer to a fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The record.
    pub record: Option<Record>,
    /// The lease.
    pub leased: Leased,
    /// The store's clock in UTC milliseconds.
    pub now: u64,
}

/// Under what right a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// A lease, and only if nothing of the record was invalidated since it was given.
    Lease(LeaseToken),
    /// The writer knows the truth: a put.
    Always,
}

/// A record to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fill {
    /// The bytes.
    pub payload: Bytes,
    /// Tags, at most 16.
    pub tags: Vec<String>,
    /// What else the record is found under, at most 4: see [`CacheStore::resolve`].
    pub aliases: Vec<String>,
    /// Milliseconds until a refresh is due.
    pub refresh: u64,
    /// Milliseconds until it is stale.
    pub fresh: u64,
    /// Milliseconds until it is gone; with 0 nothing is written, and only the lease is given back.
    pub life: u64,
    /// Under what right.
    pub right: Right,
}

/// A fill of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The key.
    pub key: CacheKey,
    /// The record.
    pub fill: Fill,
    /// The key whose lease it was loaded under, if that is another: the loader told its own key. Then it is refused
    /// also if any key of the group was invalidated or put since.
    pub lease_of: Option<CacheKey>,
}

impl Item {
    /// Makes a fill of a key under its own lease, or a put.
    #[must_use]
    pub const fn new(key: CacheKey, fill: Fill) -> Self {
        Self {
            key,
            fill,
            lease_of: None,
        }
    }

    /// Returns the key that the lease lies on.
    #[must_use]
    pub fn lease_key(&self) -> &CacheKey {
        self.lease_of.as_ref().unwrap_or(&self.key)
    }
}

/// A key to be read, and what is asked for beside the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The key.
    pub key: CacheKey,
    /// The wish.
    pub ask: Ask,
}

/// Whether a record was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is kept.
    Stored,
    /// Something invalidated it while it was loaded, another owner has filled, or its part in the lease is gone.
    Refused,
}

/// Keeps records under stamps.
///
/// # Behaviour
/// - Every method is one atomic step. A record is there while every stamp of its group, prefixes and tags is older than its own.
/// - Stamps are the engine's and only grow; each is given once. If they are lost, all records of the group are misses.
/// - Ages follow the passed clock if any, else the engine's; leases always the engine's.
pub trait CacheStore: fmt::Debug + Send + Sync + 'static {
    /// Reads up to 512 records, and gives or takes over leases where asked; answers in the order of the look-ups.
    ///
    /// # Errors
    /// As the engine has them.
    fn fetch(&self, group: &Arc<str>, lookups: Vec<Lookup>) -> StoreFuture<Vec<Fetched>>;

    /// Writes up to 512 records with their aliases, and ends the leases they were loaded under. Tells others of puts, and
    /// those who wait of fills.
    ///
    /// # Errors
    /// `Full`, `TooLarge`: what was there before is gone, and some may have been written. `Unavailable`, `TimedOut`:
    /// unknown.
    fn write(&self, group: &Arc<str>, items: Vec<Item>, sender: &str) -> StoreFuture<Vec<Written>>;

    /// Reads which keys up to 512 aliases were last written with. It counts only while the record of that key lists it.
    ///
    /// # Errors
    /// As the engine has them.
    fn resolve(&self, group: &Arc<str>, aliases: Vec<String>) -> StoreFuture<Vec<Option<Key>>>;

    /// Drops the records and leases of keys, raises the stamps of tags, prefixes and the group, and tells others.
    ///
    /// # Errors
    /// As the engine has them; a repeat is harmless.
    fn invalidate(&self, group: &Arc<str>, targets: Vec<Target>, sender: &str) -> StoreFuture<()>;

    /// Calls back with what was invalidated or filled. Any call may be lost.
    ///
    /// # Errors
    /// As the engine has them.
    fn subscribe(&self, group: &Arc<str>, callback: NoticeCallback) -> StoreFuture<Subscription>;

    /// Returns the clock that was passed, else the system's: local copies age by it.
    fn clock(&self) -> Arc<dyn Clock>;

    /// Lets the handle remember that the cache `name` keeps `what`; returns `true` the first time that it was told
    /// something else, since one of the two then reads what it cannot understand.
    fn contradicts(&self, name: &str, what: &str) -> bool;
}

impl<T: CacheStore + ?Sized> CacheStore for Arc<T> {
    fn fetch(&self, group: &Arc<str>, lookups: Vec<Lookup>) -> StoreFuture<Vec<Fetched>> {
        (**self).fetch(group, lookups)
    }

    fn write(&self, group: &Arc<str>, items: Vec<Item>, sender: &str) -> StoreFuture<Vec<Written>> {
        (**self).write(group, items, sender)
    }

    fn resolve(&self, group: &Arc<str>, aliases: Vec<String>) -> StoreFuture<Vec<Option<Key>>> {
        (**self).resolve(group, aliases)
    }

    fn invalidate(&self, group: &Arc<str>, targets: Vec<Target>, sender: &str) -> StoreFuture<()> {
        (**self).invalidate(group, targets, sender)
    }

    fn subscribe(&self, group: &Arc<str>, callback: NoticeCallback) -> StoreFuture<Subscription> {
        (**self).subscribe(group, callback)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        (**self).clock()
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        (**self).contradicts(name, what)
    }
}

/// What a notice says: who sent it, then what, a line each.
pub(super) fn notice(sender: &str, targets: &[String]) -> Bytes {
    Bytes::from(format!("{sender}\n{}", targets.join("\n")))
}
