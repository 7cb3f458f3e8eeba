//! What a store keeps of a session, apart from its data and its verifiers.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::device::{Device, Seen};
use super::token::SessionId;
use crate::core::{Principal, Timestamp};

const LONGEST_USER: usize = 128;
const MOST_ROLES: usize = 32;
const LONGEST_ROLE: usize = 64;
const MOST_ROLE_BYTES: usize = 1_024;

/// A user's id: 1 to 128 bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Takes an id of 1 to 128 bytes.
    #[must_use]
    pub fn try_new(id: impl AsRef<str>) -> Option<Self> {
        let id = id.as_ref();
        (1..=LONGEST_USER)
            .contains(&id.len())
            .then(|| Self(Arc::from(id)))
    }

    /// Returns the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserId {
    /// The id is left out: it may be personal, and Debug text ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserId(redacted)")
    }
}

/// Roles of a user: at most 32 of 1 to 64 bytes, together at most 1 KiB.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roles(Vec<Box<str>>);

impl Roles {
    /// Takes roles within the bounds.
    #[must_use]
    pub fn try_new<S: AsRef<str>>(roles: impl IntoIterator<Item = S>) -> Option<Self> {
        let mut own: Vec<Box<str>> = Vec::new();
        for role in roles {
            let role = role.as_ref();
            if !(1..=LONGEST_ROLE).contains(&role.len()) || own.len() == MOST_ROLES {
                return None;
            }
            own.push(Box::from(role));
        }
        let bytes: usize = own.iter().map(|role| role.len()).sum();
        (bytes <= MOST_ROLE_BYTES).then_some(Self(own))
    }

    /// Returns the roles in the order they were given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|role| &**role)
    }
}

/// What a login's principal rests on, say a password hash: 16 bytes of SHA-256 of it.
#[derive(Clone, Copy)]
pub struct AuthStamp([u8; 16]);

impl AuthStamp {
    /// Hashes what the login rests on.
    #[must_use]
    pub fn of(bytes: impl AsRef<[u8]>) -> Self {
        let mut stamp = [0; 16];
        stamp.copy_from_slice(&Sha256::digest(bytes)[..16]);
        Self(stamp)
    }

    /// Makes a stamp of its bytes; for stores.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Returns the 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl PartialEq for AuthStamp {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for AuthStamp {}

impl fmt::Debug for AuthStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthStamp(redacted)")
    }
}

/// The core of a session: small and fixed; no verifier, no data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// The public id.
    pub id: SessionId,
    /// Who logged in, with roles.
    pub principal: Option<Principal>,
    /// What the login rests on.
    pub stamp: Option<AuthStamp>,
    /// Device and address.
    pub seen: Seen,
    /// Counts secrets: 0 for the first.
    pub generation: u64,
    /// When it was set up.
    pub created: Timestamp,
    /// When the user last logged in.
    pub authenticated: Option<Timestamp>,
    /// The recorded activity; the real one may be up to 60 s later.
    pub last_activity: Timestamp,
    /// It is over at exactly this moment.
    pub absolute_at: Timestamp,
    /// It is over at exactly `last_activity + idle`.
    pub idle: Duration,
    /// Its cookie outlives the browser.
    pub remembered: bool,
}

impl SessionRecord {
    /// Returns the nearer of both ends.
    #[must_use]
    pub fn expires_at(&self) -> Timestamp {
        self.last_activity.plus(self.idle).min(self.absolute_at)
    }

    pub(super) fn user(&self) -> Option<&str> {
        self.principal.as_ref().map(Principal::id)
    }
}

/// One of a user's sessions, as shown to the user: nothing in it opens anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Names the session, for [`Session::revoke`](super::Session::revoke).
    pub id: SessionId,
    /// The device, shown as `Firefox on Linux`.
    pub device: Option<Device>,
    /// The address.
    pub ip: Option<IpAddr>,
    /// When it was set up.
    pub created: Timestamp,
    /// When the user last logged in.
    pub authenticated: Option<Timestamp>,
    /// The recorded activity.
    pub last_activity: Timestamp,
    /// When it is over if nothing more happens.
    pub expires: Timestamp,
    /// It is the session that asks.
    pub current: bool,
}

impl SessionInfo {
    pub(super) fn of(record: &SessionRecord, current: Option<SessionId>) -> Self {
        Self {
            id: record.id,
            device: record.seen.device,
            ip: record.seen.ip,
            created: record.created,
            authenticated: record.authenticated,
            last_activity: record.last_activity,
            expires: record.expires_at(),
            current: current == Some(record.id),
        }
    }
}
