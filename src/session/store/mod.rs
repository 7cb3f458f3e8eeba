//! Where sessions live: one trait, six methods, each one atomic step.

mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod memory;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

pub use super::data::{Data, DataEntry, Value};
pub use super::device::{Seen, Sighting};
pub use super::limits::{Lifetimes, LimitRule, SessionLimit};
pub use super::record::{AuthStamp, Roles, SessionRecord, UserId};
pub use super::token::{SessionId, SessionRef, Verifier, home_of_user};
use crate::core::{StoreFuture, Timestamp};

/// Keeps sessions: a core (who, until when) and keyed values under one id.
///
/// # Behaviour
/// - Every method checks in its one step, in this order: existence, both ends, cut-off, tombstone, verifier.
///   Nothing creates or prolongs a session that it does not find live.
/// - At exactly an end a session, its data, a tombstone or a mark is over, in whole milliseconds of the store's clock.
/// - Writes of different keys never undo each other. A patch is applied whole or not at all.
/// - What was ended stays ended, whatever was in flight.
/// - No answer holds a verifier.
pub trait SessionStore: fmt::Debug + Send + Sync + 'static {
    /// Reads a session, records activity if due, and drops data that ran out.
    ///
    /// # Errors
    /// The store cannot answer; at most activity was recorded.
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded>;

    /// Changes data of a live session: all operations or none.
    ///
    /// # Errors
    /// The store cannot answer; if [`is_unknown`](crate::core::StoreError::is_unknown), it may have been applied.
    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched>;

    /// Sets up, logs in, switches or rotates a session, with its limit, other sessions and data, in one step.
    ///
    /// # Errors
    /// The store cannot answer, or is full; if unknown, the old secret may be dead.
    fn establish(&self, order: Establish) -> StoreFuture<Established>;

    /// Lists a user's live sessions, latest activity first.
    ///
    /// # Errors
    /// The store cannot answer.
    fn list(&self, of: Whose) -> StoreFuture<Listed>;

    /// Replaces the roles in all live sessions of a user and refuses logins that began before. Returns how many.
    ///
    /// # Errors
    /// The store cannot answer; if unknown, it may have been done.
    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64>;

    /// Ends sessions, and refuses logins of the same users that began before (but for a single session).
    ///
    /// # Errors
    /// The store cannot answer; if unknown, it may have been done. Safe to repeat.
    fn revoke(&self, target: Target) -> StoreFuture<Revoked>;

    /// Hears that a layer is going to use it, before any request: a store with tables names them then, so that they are
    /// made before somebody's transaction is open. Does nothing by itself.
    fn register(&self) {}
}

impl<T: SessionStore + ?Sized> SessionStore for Arc<T> {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        (**self).load(at, read)
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        (**self).patch(at, patch)
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        (**self).establish(order)
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        (**self).list(of)
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        (**self).assign_roles(user, roles)
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        (**self).revoke(target)
    }

    fn register(&self) {
        (**self).register();
    }
}

/// What a read asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// How much.
    pub part: Part,
    /// Activity to record if it is due; `None` records nothing.
    pub renew: Option<Sighting>,
}

/// How much of a session is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The core.
    Core,
    /// The core and all data.
    Whole,
}

/// Why a session does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotLive {
    /// The secret before the last rotation, or the id that a login moved, at most 60 s ago.
    Superseded,
    /// It was ended, at most 60 s ago (for a cut-off: while its record is there).
    Ended(EndCause),
    /// The secret before the last rotation, more than 60 s ago.
    Replayed,
    /// A known id with a secret that was never the last two.
    WrongSecret,
    /// Unknown or expired.
    Missing,
}

impl NotLive {
    /// Returns the word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Superseded => "superseded",
            Self::Ended(_) => "ended",
            Self::Replayed => "replayed",
            Self::WrongSecret => "wrong_secret",
            Self::Missing => "missing",
        }
    }
}

/// What ended a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EndCause {
    /// Its visitor logged out.
    Logout,
    /// It was revoked.
    Revoked,
    /// A newer login needed its place.
    Evicted,
    /// A login of its user ended all others.
    CredentialChange,
    /// Its login rests on something that changed.
    AuthStamp,
    /// All sessions were ended.
    Everyone,
}

impl EndCause {
    /// Returns the word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Logout => "logout",
            Self::Revoked => "revoked",
            Self::Evicted => "evicted",
            Self::CredentialChange => "credential_change",
            Self::AuthStamp => "auth_stamp",
            Self::Everyone => "everyone",
        }
    }
}

/// The answer of [`SessionStore::load`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loaded {
    /// The session is live.
    Live(Box<Live>),
    /// It is not.
    NotLive(NotLive),
}

impl Loaded {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Live(_) => "live",
            Self::NotLive(why) => why.as_str(),
        }
    }
}

/// A live session as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// The store's clock.
    pub now: Timestamp,
    /// The core, renewal included.
    pub record: SessionRecord,
    /// All data, if asked for.
    pub data: Option<Data>,
    /// Activity was recorded; what was seen of the visitor before.
    pub renewed: Option<Seen>,
}

/// Names of keys and what happens to them; a name that is known to the compiler is not copied.
pub type Operations = SmallVec<[(Cow<'static, str>, Operation); 1]>;

/// Changes of a session's data, one operation per key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// Removes all values first.
    pub clear: bool,
    /// One operation per key.
    pub operations: Operations,
    /// The most bytes of names and values afterwards.
    pub limit: usize,
    /// What the request shows of its visitor, recorded if due.
    pub sighting: Sighting,
}

impl Patch {
    /// Says whether nothing would change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.clear && self.operations.is_empty()
    }

    /// Says whether it would leave anything in a new session.
    pub(super) fn creates(&self) -> bool {
        self.operations.iter().any(|(_, operation)| {
            matches!(
                operation,
                Operation::Set(_) | Operation::SetIf(..) | Operation::Increment(_)
            )
        })
    }
}

/// What happens to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes the value.
    Set(Value),
    /// Removes it.
    Remove,
    /// Adds to an integer within ±(2^53 − 1), saturating; absent counts as 0.
    Increment(i64),
    /// Writes the value if the key has this version, 0 meaning absent.
    SetIf(u64, Value),
    /// Removes it if the key has this version.
    RemoveIf(u64),
}

/// The answer of [`SessionStore::patch`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Patched {
    /// All operations are done; the written keys have this version.
    Applied {
        /// The version of the entries that were written.
        version: u64,
        /// Activity was recorded; what was seen of the visitor before.
        renewed: Option<Seen>,
    },
    /// A version was another; nothing was done. The entries of the conditional keys as they are.
    Conflict(Vec<DataEntry>),
    /// Too many keys or bytes; nothing was done.
    TooLarge,
    /// Something incremented is no integer; nothing was done.
    NotANumber,
    /// The session is not live; nothing was done.
    NotLive(NotLive),
}

impl Patched {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Applied { .. } => "applied",
            Self::Conflict(_) => "conflict",
            Self::TooLarge => "too_large",
            Self::NotANumber => "not_a_number",
            Self::NotLive(why) => why.as_str(),
        }
    }
}

/// The one step behind first write, login, re-login, switch, rotation and credential change.
#[derive(Clone, Debug)]
pub struct Establish {
    /// The session that the request brought.
    pub current: Option<SessionRef>,
    /// The id of a new session, in the home of the user, at random without one.
    pub fresh: SessionId,
    /// The hash of the new secret; fits whichever id it becomes.
    pub verifier: Verifier,
    /// Who.
    pub identity: Identity,
    /// What happens if `current` is not live.
    pub otherwise: Otherwise,
    /// Idle and absolute time of a new session or login.
    pub lifetimes: Lifetimes,
    /// How long data lasts after its last use.
    pub extended: Duration,
    /// How many live sessions a user may have.
    pub limit: SessionLimit,
    /// Changes of data; conditions count against the data as it will be carried.
    pub patch: Patch,
    /// How long ago the request began, for [`Established::Overtaken`].
    pub age: Duration,
}

/// Whose session it becomes.
#[derive(Clone, Debug)]
pub enum Identity {
    /// Whose it was.
    Keep,
    /// This user's.
    Set(Box<LoginIdentity>),
}

/// Who logs in.
#[derive(Clone, Debug)]
pub struct LoginIdentity {
    /// The user.
    pub user: UserId,
    /// The roles.
    pub roles: Roles,
    /// What the login rests on.
    pub stamp: Option<AuthStamp>,
    /// The cookie outlives the browser.
    pub remembered: bool,
    /// Ends all other sessions of the user.
    pub revoke_others: bool,
}

/// What happens if the session that was sent is not live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// A new one is set up.
    Create,
    /// Nothing.
    Refuse,
}

/// The answer of [`SessionStore::establish`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Established {
    /// Done.
    Done(Box<Done>),
    /// The user has as many sessions as allowed; nothing was done.
    Limit,
    /// The user's sessions were revoked or roles changed since the request began; nothing was done.
    Overtaken,
    /// The new id exists; nothing was done.
    Taken,
    /// Too many keys or bytes; nothing was done.
    TooLarge,
    /// Something incremented is no integer; nothing was done.
    NotANumber,
    /// The session is not live and none was wanted instead; nothing was done.
    NotLive(NotLive),
}

impl Established {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Limit => "limit",
            Self::Overtaken => "overtaken",
            Self::Taken => "taken",
            Self::TooLarge => "too_large",
            Self::NotANumber => "not_a_number",
            Self::NotLive(why) => why.as_str(),
        }
    }
}

/// A session that was set up, logged in or rotated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The store's clock.
    pub now: Timestamp,
    /// The session as it is now.
    pub record: SessionRecord,
    /// What happened.
    pub cause: EstablishCause,
    /// Sessions of the user that were ended.
    pub ended: Vec<EndedSession>,
}

/// What happened to a session that was established.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EstablishCause {
    /// An anonymous session was set up.
    Created,
    /// A user logged in where nobody was.
    First,
    /// The same user logged in again.
    Again,
    /// Another user logged in; the data of the one before is gone.
    Switched,
    /// Only the secret changed.
    Rotated,
}

/// Whose sessions are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This user's.
    User(UserId),
    /// Those of the user of this live session.
    Session(SessionRef),
}

/// The answer of [`SessionStore::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// The live sessions, latest activity first.
    Sessions(Vec<SessionRecord>),
    /// The asking session has no user.
    NoUser,
    /// The asking session is not live.
    NotLive(NotLive),
}

impl Listed {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Sessions(_) => "done",
            Self::NoUser => "no_user",
            Self::NotLive(why) => why.as_str(),
        }
    }
}

/// What is to be ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This session, by its own secret, for this cause.
    Own(SessionRef, EndCause),
    /// One session, if it is the user's.
    One(Whose, SessionId),
    /// All sessions of the user of this live session, but for itself.
    Others(SessionRef),
    /// All sessions of a user.
    All(Whose),
    /// All sessions that were set up until now.
    Everyone,
}

/// The answer of [`SessionStore::revoke`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Revoked {
    /// These were ended. For everyone: not listed.
    Done(Vec<EndedSession>),
    /// The asking session has no user; nothing was done.
    NoUser,
    /// The asking session is not live; nothing was done.
    NotLive(NotLive),
}

impl Revoked {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::NoUser => "no_user",
            Self::NotLive(why) => why.as_str(),
        }
    }
}

/// A session that was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedSession {
    /// Its id.
    pub id: SessionId,
    /// Its user.
    pub user: Option<UserId>,
    /// Why.
    pub cause: EndCause,
}

/// How long a tombstone, a superseded secret and a user's mark are remembered, inclusive, in milliseconds.
pub(super) const REMEMBERED_MILLIS: u64 = 60_000;

/// Object safety, pinned.
fn _is_object_safe(_: &dyn SessionStore) {}
