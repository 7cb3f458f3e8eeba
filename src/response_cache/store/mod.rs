//! Where stored responses live: the store trait, its values, and what every store promises.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{Clock, StoreFuture, Subscription};

use super::entry::{Entry, EntryId};
use super::stamps::{Change, Changes, Stamp};
use super::vary::Names;

mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod leases;
mod local;
mod memory;
mod observed;
#[cfg(feature = "redis")]
mod redis;

pub(super) use local::Local;
pub(super) use observed::Observed;

/// 128 bits of a hash: of a key, or of the values that selected a variant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash128(pub [u8; 16]);

/// Names one stored response: the key of the request, and the values of its `Vary` fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EntryKey {
    /// What the request asks for.
    pub primary: Hash128,
    /// Which variant of it.
    pub selector: Hash128,
}

/// What a look-up is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The entry, if there is one.
    Entry,
    /// The entry, and the lease for this long if it is absent, stale or due for a refresh.
    EntryOrLease(Duration),
    /// The lease for this long whatever is there, and the entry.
    Lease(Duration),
}

/// One question to the store.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// Whose entry.
    pub key: EntryKey,
    /// The `Vary` names that the selector was made of.
    pub names: Names,
    /// Entries begun before this are as good as none: the highest stamp of the targets known from the request.
    pub not_before: Stamp,
    /// The entry that the asking process already holds.
    pub have: Option<EntryId>,
    /// What it is for.
    pub want: Want,
}

/// The entry that a look-up found.
#[derive(Clone, Debug)]
pub enum FoundEntry {
    /// None that may be used.
    None,
    /// The very one that the asking process holds.
    Same,
    /// This one.
    Entry(Arc<Entry>),
}

/// What became of the wish for a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// The asker leads.
    Granted(Ticket),
    /// Somebody else does, for at most this long.
    Held(Duration),
}

/// The answer to a [`Lookup`].
#[derive(Clone, Debug)]
pub struct Found {
    /// The store's time, in UTC microseconds.
    pub now: u64,
    /// The highest stamp of any target.
    pub highest: Stamp,
    /// Entries begun below this are as good as none.
    pub floor: Stamp,
    /// The `Vary` names that count for this key; where they differ from those asked with, nothing was looked up.
    pub names: Names,
    /// The entry.
    pub entry: FoundEntry,
    /// The lease, where it was wanted and the entry was absent, stale or due.
    pub lease: Option<Lease>,
    /// How long this variant is still known as uncacheable.
    pub mark: Option<Duration>,
}

/// The right to store what one fetch brings: order decides among several, not ownership.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ticket {
    /// Names the lease; zero for a fetch that holds none.
    pub token: u128,
    /// The variant that the lease was taken for; the answer may turn out to be another one's.
    pub selector: Hash128,
    /// The highest stamp when the fetch began.
    pub begun: Stamp,
    /// The store's time when the fetch began, in UTC microseconds.
    pub at: u64,
}

/// What became of an entry that was to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// It is there.
    Yes,
    /// A later-begun one is there, or the one to be freshened is not, or it has fewer names than those known.
    Superseded,
    /// It does not fit into the store.
    TooLarge,
}

/// Whether the store is this process's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process: every look-up is immediate, and no local level pays.
    Process,
    /// Shared among processes, behind a connection.
    Shared,
}

/// What a store tells at once to whoever listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreNotice {
    /// Something was invalidated, or may have been unheard.
    Changed,
    /// A lease of this primary was dropped: its entry is there, or the lease is free.
    Filled(Hash128),
}

/// Called for each notice; must neither block nor call the store.
pub type StoreNoticeCallback = Arc<dyn Fn(StoreNotice) + Send + Sync>;

/// Keeps responses, leases and the stamps of invalidations.
///
/// # Behaviour
/// - Each method is one atomic step, and may be repeated after its reply was lost.
/// - An entry is absent once it has expired, when its names are not those asked with, or when it was begun
///   before `not_before` or the floor.
/// - Of many concurrent look-ups that want a lease exactly one is granted it; at exactly its end it is free.
/// - Of two entries for one key the later-begun stays, whatever the order in which they are written.
/// - An entry under fewer names than are known for its key is not kept, and costs none of those that are.
/// - While a variant is known as uncacheable no lease of it is granted; other variants are not touched by that.
/// - A ticket without a live lease may still store.
/// - At most [`MOST_VARIANTS`] variants are kept for one key; the oldest goes.
/// - Stamps only grow. A store that has lost them starts anew with `highest` = `floor` = now, so that all
///   older entries are absent.
/// - Leases, marks and expiries follow the store's clock.
pub trait ResponseStore: fmt::Debug + Send + Sync + 'static {
    /// Looks an entry up, and takes the lease if that is wanted and due.
    ///
    /// # Errors
    /// Any [`StoreErrorKind`](crate::core::StoreErrorKind); a lease that was granted unheard ends by itself.
    fn lookup(&self, lookup: Lookup) -> StoreFuture<Found>;

    /// Writes an entry, and drops the ticket's lease and the mark.
    ///
    /// # Errors
    /// Any [`StoreErrorKind`](crate::core::StoreErrorKind).
    fn store(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored>;

    /// Gives the entry the head of this one and leaves its body, which is the same; drops the ticket's lease.
    ///
    /// # Errors
    /// Any [`StoreErrorKind`](crate::core::StoreErrorKind).
    fn freshen(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored>;

    /// Drops the ticket's lease; with `mark` the variant is known as uncacheable for that long, and its entry is gone.
    /// At most [`MOST_VARIANTS`] are known so; the first to end goes.
    ///
    /// # Errors
    /// Any [`StoreErrorKind`](crate::core::StoreErrorKind).
    fn release(&self, key: EntryKey, ticket: Ticket, mark: Option<Duration>) -> StoreFuture<()>;

    /// Raises the stamps of up to any number of targets in one step; returns the stamp they have now.
    ///
    /// # Errors
    /// Any [`StoreErrorKind`](crate::core::StoreErrorKind).
    fn invalidate(&self, changes: &[Change]) -> StoreFuture<Stamp>;

    /// Returns the stamps above `since`; all of them when `since` lies below the floor.
    ///
    /// # Errors
    /// Any [`StoreErrorKind`](crate::core::StoreErrorKind).
    fn changes(&self, since: Stamp) -> StoreFuture<Changes>;

    /// Calls `on` soon after another process has invalidated something, and when a lease was dropped that somebody has
    /// found held. Notices only save time: any may be lost.
    ///
    /// # Errors
    /// Any [`StoreErrorKind`](crate::core::StoreErrorKind): nobody will be called.
    fn subscribe(&self, on: StoreNoticeCallback) -> StoreFuture<Subscription>;

    /// Says whether a local level pays.
    fn place(&self) -> Place;

    /// Returns the clock that this store follows; for a shared store without a passed clock, this machine's.
    fn clock(&self) -> Arc<dyn Clock>;
}

/// The most variants of one key.
pub const MOST_VARIANTS: usize = 32;
/// The most targets whose stamps a store keeps.
pub const MOST_STAMPS: usize = 65_536;
/// How many of the oldest stamps leave at once.
pub(super) const STAMPS_LEAVING: usize = 4_096;

impl<T: ?Sized + ResponseStore> ResponseStore for Arc<T> {
    fn lookup(&self, lookup: Lookup) -> StoreFuture<Found> {
        (**self).lookup(lookup)
    }

    fn store(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        (**self).store(key, ticket, entry)
    }

    fn freshen(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        (**self).freshen(key, ticket, entry)
    }

    fn release(&self, key: EntryKey, ticket: Ticket, mark: Option<Duration>) -> StoreFuture<()> {
        (**self).release(key, ticket, mark)
    }

    fn invalidate(&self, changes: &[Change]) -> StoreFuture<Stamp> {
        (**self).invalidate(changes)
    }

    fn changes(&self, since: Stamp) -> StoreFuture<Changes> {
        (**self).changes(since)
    }

    fn subscribe(&self, on: StoreNoticeCallback) -> StoreFuture<Subscription> {
        (**self).subscribe(on)
    }

    fn place(&self) -> Place {
        (**self).place()
    }

    fn clock(&self) -> Arc<dyn Clock> {
        (**self).clock()
    }
}

const _: fn(&dyn ResponseStore) = |_| {};
