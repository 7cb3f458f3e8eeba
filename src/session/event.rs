//! What an application may watch: life cycle and signals, after the store confirmed them.

use super::record::UserId;
use super::store::{EndCause, NotLive};
use super::token::SessionId;

/// Something that happened to a session; never with a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionEvent {
    /// What.
    pub kind: SessionEventKind,
    /// The session, where there is one.
    pub session: Option<SessionId>,
    /// Its user, where one is known.
    pub user: Option<UserId>,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SessionEventKind {
    /// An anonymous session was set up.
    Created,
    /// A user logged in.
    LoggedIn(LoggedIn),
    /// The secret was replaced.
    Rotated,
    /// The roles of a user were replaced.
    RolesAssigned,
    /// A session was ended.
    Ended(EndCause),
    /// All sessions were ended.
    EveryoneEnded,
    /// A buffered write was dropped: its session was over.
    WriteDropped,
    /// A value could not be decoded.
    Undecodable,
    /// The store could not answer.
    StoreFailed,
    /// Something that may be an attack, or a browser's bad day. Signals only observe.
    Signal(Signal),
}

/// Onto what a user logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoggedIn {
    /// Nobody was logged in.
    First,
    /// The same user was.
    Again,
    /// Another user was; the data is gone.
    Switched,
}

/// What a request showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Signal {
    /// A secret that was replaced more than 60 s ago.
    Replayed,
    /// A known id with a secret that never belonged to it.
    WrongSecret,
    /// A well-formed token of no session.
    UnknownSession,
    /// A cookie of our name that is no token.
    MalformedToken,
    /// Two different cookies of our name.
    DuplicateCookie,
    /// At a renewal: another operating system or browser family than before.
    DeviceChanged,
    /// At a renewal: an address of another IPv4 /24 or IPv6 /48 than before.
    NetworkChanged,
}

impl Signal {
    pub(super) const KINDS: usize = Self::NetworkChanged as usize + 1;

    pub(super) const fn of(why: NotLive) -> Option<Self> {
        match why {
            NotLive::Replayed => Some(Self::Replayed),
            NotLive::WrongSecret => Some(Self::WrongSecret),
            NotLive::Missing => Some(Self::UnknownSession),
            NotLive::Superseded | NotLive::Ended(_) => None,
        }
    }

    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::WrongSecret => "wrong_secret",
            Self::UnknownSession => "unknown_session",
            Self::MalformedToken => "malformed_token",
            Self::DuplicateCookie => "duplicate_cookie",
            Self::DeviceChanged => "device_changed",
            Self::NetworkChanged => "network_changed",
        }
    }
}
