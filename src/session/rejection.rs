//! What a client sees when a session is needed and missing, too old, not allowed, or the store is down.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderValue, Response, StatusCode};

use super::error::{SessionError, SessionErrorKind};
use crate::core::{PrincipalRejection, Problem};

/// Why a request was refused; also in the response extensions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SessionRejection {
    /// Nobody is logged in: 401 `SESSION_REQUIRED`.
    LoginRequired,
    /// The last login is too old: 401 `REAUTHENTICATION_REQUIRED` (RFC 9470).
    FreshLoginRequired {
        /// How old it may be.
        max_age: Duration,
    },
    /// The user lacks a role: 403 `ROLE_REQUIRED`.
    RoleRequired,
    /// The user has as many sessions as allowed: 409 `SESSION_LIMIT`.
    Limit,
    /// The user's sessions were revoked or roles changed while this login was under way: 401 `SESSION_REQUIRED`.
    /// A handler that changes credentials itself ends the others by `Login::revoke_others`.
    Overtaken,
    /// The call failed.
    Fault(SessionError),
}

/// How a client is asked to authenticate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Challenge {
    #[default]
    Session,
    Bearer,
    /// A token was sent and is no good.
    InvalidBearer,
}

impl SessionRejection {
    /// Returns the status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::LoginRequired | Self::FreshLoginRequired { .. } | Self::Overtaken => {
                StatusCode::UNAUTHORIZED
            }
            Self::RoleRequired => StatusCode::FORBIDDEN,
            Self::Limit => StatusCode::CONFLICT,
            Self::Fault(error) => match error.kind() {
                SessionErrorKind::Unavailable | SessionErrorKind::Busy => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
                SessionErrorKind::Ended => StatusCode::UNAUTHORIZED,
                SessionErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }

    /// Makes the problem document, with a `Session` challenge where it asks for a login.
    #[must_use]
    pub fn response(&self) -> Response<Bytes> {
        self.respond(Challenge::default())
    }

    pub(super) fn respond(&self, challenge: Challenge) -> Response<Bytes> {
        let mut response = self.problem().response();
        if response.status() == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, self.challenge(challenge));
        }
        response.extensions_mut().insert(self.clone());
        response
    }

    fn problem(&self) -> Problem {
        let detail = match self {
            Self::LoginRequired => "log in first",
            Self::FreshLoginRequired { .. } => "the last login is too long ago, log in again",
            Self::RoleRequired => "the user lacks the role for this",
            Self::Limit => "the user has as many sessions as allowed, end one of them first",
            Self::Overtaken => "the user's sessions or rights changed meanwhile, log in again",
            Self::Fault(error) => return fault(error),
        };
        Problem::new(self.status(), self.code()).detail(detail)
    }

    const fn code(&self) -> &'static str {
        match self {
            Self::FreshLoginRequired { .. } => "REAUTHENTICATION_REQUIRED",
            Self::RoleRequired => "ROLE_REQUIRED",
            Self::Limit => "SESSION_LIMIT",
            _ => "SESSION_REQUIRED",
        }
    }

    fn challenge(&self, challenge: Challenge) -> HeaderValue {
        let scheme = if challenge == Challenge::Session {
            "Session"
        } else {
            "Bearer"
        };
        if let Self::FreshLoginRequired { max_age } = self {
            let value = format!(
                "{scheme} error=\"insufficient_user_authentication\", max_age={}",
                max_age.as_secs()
            );
            return HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("Session"));
        }
        HeaderValue::from_static(match challenge {
            Challenge::Session => "Session",
            Challenge::Bearer => "Bearer",
            Challenge::InvalidBearer => "Bearer error=\"invalid_token\"",
        })
    }
}

fn fault(error: &SessionError) -> Problem {
    let status = SessionRejection::Fault(error.clone()).status();
    match error.kind() {
        SessionErrorKind::Unavailable => Problem::store_unavailable(error.retry_after_secs()),
        SessionErrorKind::Busy => Problem::new(status, "SESSION_BUSY")
            .detail("too many requests change the same value, send it again")
            .retry_after(1),
        SessionErrorKind::Ended => {
            Problem::new(status, "SESSION_REQUIRED").detail("the session is over, log in again")
        }
        SessionErrorKind::TooLarge => Problem::new(status, "SESSION_DATA_TOO_LARGE")
            .detail("the session has no room for this"),
        _ => Problem::new(status, "SESSION_MISUSE").detail("the service made a mistake"),
    }
}

impl From<SessionError> for SessionRejection {
    fn from(error: SessionError) -> Self {
        Self::Fault(error)
    }
}

impl From<&PrincipalRejection> for SessionRejection {
    fn from(rejection: &PrincipalRejection) -> Self {
        match rejection {
            PrincipalRejection::Required => Self::LoginRequired,
            PrincipalRejection::Unavailable { retry_after } => {
                let after = Duration::from_secs(*retry_after);
                let error = crate::core::StoreError::new(crate::core::StoreErrorKind::Unavailable);
                Self::Fault(error.retry_after(after).into())
            }
        }
    }
}

impl fmt::Display for SessionRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LoginRequired => "nobody is logged in",
            Self::FreshLoginRequired { .. } => "the last login is too long ago",
            Self::RoleRequired => "the user lacks the role",
            Self::Limit => "the user has as many sessions as allowed",
            Self::Overtaken => {
                "the user's sessions or roles changed while the login was under way; to change \
                 credentials and end the others in one handler use Login::revoke_others"
            }
            Self::Fault(error) => return error.fmt(f),
        })
    }
}

impl Error for SessionRejection {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Fault(error) => error.source(),
            _ => None,
        }
    }
}
