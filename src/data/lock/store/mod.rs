//! Where locks live: one atomic step per method.

mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{Key, NoticeCallback, StoreFuture, Subscription};

/// How long a freed lock's fence is remembered.
#[cfg(feature = "redis")]
const FENCE_KEPT: Duration = Duration::from_secs(86_400);

/// Names one lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LockKey {
    /// The service's name.
    pub name: Arc<str>,
    /// What is locked.
    pub key: Key,
}

/// Who holds a lock: random bits, drawn for each attempt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Owner(pub [u8; 16]);

impl fmt::Debug for Owner {
    /// Whoever knows it can release the lock.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Owner(..)")
    }
}

/// A number that rises with each holder of a lock, for the resource to refuse late writers by.
///
/// ```sql
/// UPDATE payments SET state = 'paid', fence = $1 WHERE id = $2 AND fence < $1
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fence(pub u64);

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whether the caller waits where the lock is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// It goes away.
    Once,
    /// It listens, and wants to be told of the release.
    Waiting,
}

/// What [`LockStore::acquire`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acquired {
    /// The lock is yours.
    Granted(Fence),
    /// Another has it, for this long unless it extends.
    Busy {
        /// The rest of the holder's lease.
        left: Duration,
    },
}

/// Whether the caller still held the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owned {
    /// Yes, and it is done.
    Yes,
    /// No, and nothing was changed for anybody else.
    Lost,
}

/// A lock that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockState {
    /// Its holder's fence.
    pub fence: Fence,
    /// The rest of its holder's lease.
    pub left: Duration,
}

/// Keeps locks with an owner, an end and a fence.
///
/// # Behaviour
/// - Every method is one atomic step. At most one owner holds a key at a time; at exactly its end a lease is over.
/// - Ends follow the passed clock if any, else the engine's. Fences are the engine's: they grow strictly per key over
///   all holders, also where the key was forgotten or the engine restarted.
/// - A held lock is never evicted; a store without room refuses new ones.
pub trait LockStore: fmt::Debug + Send + Sync + 'static {
    /// Takes the lock for `lease`, or says how long its holder has it.
    ///
    /// # Behaviour
    /// Free, over, or held by this very owner (a repeat after a lost reply: same fence, fresh lease): granted.
    ///
    /// # Errors
    /// `Full`: nothing was taken. `Unavailable`, `TimedOut`: unknown; a release by the same owner gives it back.
    fn acquire(
        &self,
        key: &LockKey,
        owner: Owner,
        lease: Duration,
        asking: Asking,
    ) -> StoreFuture<Acquired>;

    /// Moves the end to `lease` from now, for its owner, before its end.
    ///
    /// # Errors
    /// As the engine has them; a repeat is harmless.
    fn extend(&self, key: &LockKey, owner: Owner, lease: Duration) -> StoreFuture<Owned>;

    /// Frees the lock if `owner` has it, and tells those who wait.
    ///
    /// # Behaviour
    /// Never frees another's. A repeat after a lost reply may say [`Owned::Yes`] again, until somebody else took the lock.
    ///
    /// # Errors
    /// As the engine has them; a repeat is harmless.
    fn release(&self, key: &LockKey, owner: Owner) -> StoreFuture<Owned>;

    /// Reads who has the lock, and changes nothing.
    ///
    /// # Errors
    /// As the engine has them.
    fn inspect(&self, key: &LockKey) -> StoreFuture<Option<LockState>>;

    /// Calls back when the lock may have become free. Any call may be lost.
    ///
    /// # Errors
    /// As the engine has them.
    fn subscribe(&self, key: &LockKey, callback: NoticeCallback) -> StoreFuture<Subscription>;
}

impl<T: LockStore + ?Sized> LockStore for Arc<T> {
    fn acquire(
        &self,
        key: &LockKey,
        owner: Owner,
        lease: Duration,
        asking: Asking,
    ) -> StoreFuture<Acquired> {
        (**self).acquire(key, owner, lease, asking)
    }

    fn extend(&self, key: &LockKey, owner: Owner, lease: Duration) -> StoreFuture<Owned> {
        (**self).extend(key, owner, lease)
    }

    fn release(&self, key: &LockKey, owner: Owner) -> StoreFuture<Owned> {
        (**self).release(key, owner)
    }

    fn inspect(&self, key: &LockKey) -> StoreFuture<Option<LockState>> {
        (**self).inspect(key)
    }

    fn subscribe(&self, key: &LockKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        (**self).subscribe(key, callback)
    }
}
