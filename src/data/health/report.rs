//! What a health service answers.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::backend::health::StoreMode;

/// How something is, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HealthStatus {
    /// All is well.
    Healthy,
    /// It works, but not as it should.
    Degraded,
    /// It does not work.
    Down,
}

impl HealthStatus {
    /// Returns the word in documents and fields: `healthy`, `degraded`, `down`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }

    const fn code(self) -> StatusCode {
        match self {
            Self::Down => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        }
    }
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is wrong with a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HealthReason {
    /// It did not answer in time, or said that it is down.
    Down,
    /// Its breaker is open.
    BreakerOpen,
    /// State is kept elsewhere than was expected.
    Mode,
    /// Redis may evict what must not vanish: set `maxmemory-policy noeviction`.
    MayEvict,
    /// Too few reads of a cache are hits.
    HitRate,
    /// Too many calls are not sent, since the breaker was open.
    Fallbacks,
    /// Too many calls fail.
    Errors,
    /// Calls take too long.
    Slow,
    /// Too much memory is in use.
    Memory,
}

impl HealthReason {
    pub(super) const ALL: [Self; 9] = [
        Self::Down,
        Self::BreakerOpen,
        Self::Mode,
        Self::MayEvict,
        Self::HitRate,
        Self::Fallbacks,
        Self::Errors,
        Self::Slow,
        Self::Memory,
    ];
}

/// A reason that has come or gone, for [`Health::on_change`](super::Health::on_change).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthChange<'a> {
    /// The part's name.
    pub part: &'a str,
    /// What is, or was, wrong with it.
    pub reason: HealthReason,
    /// Whether it is wrong now.
    pub is_wrong: bool,
}

/// How one part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// Its name.
    pub name: String,
    /// How it is.
    pub status: HealthStatus,
    /// How long it took to answer.
    pub response_time: Duration,
    /// What is wrong with it; not part of the document.
    pub reasons: Vec<HealthReason>,
}

impl CheckReport {
    /// Returns the document of this part: 200, or 503 when it is down.
    #[must_use]
    pub fn response(&self) -> Response<Bytes> {
        response(self.status, self)
    }
}

/// How everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthReport {
    /// How the whole is.
    pub status: HealthStatus,
    /// Where state is kept now, if a store was asked.
    pub mode: Option<StoreMode>,
    /// How long it took to ask everybody.
    pub response_time: Duration,
    /// The parts, in the order they were added.
    pub checks: Vec<CheckReport>,
}

impl HealthReport {
    /// Returns a part by its name.
    #[must_use]
    pub fn part(&self, name: &str) -> Option<&CheckReport> {
        self.checks.iter().find(|check| check.name == name)
    }

    /// Returns the document `{status, mode, response_ms, checks: {name: {status, response_ms}}}`: 200, or 503 when
    /// something required is down.
    #[must_use]
    pub fn response(&self) -> Response<Bytes> {
        response(self.status, self)
    }
}

fn response(status: HealthStatus, document: &impl Serialize) -> Response<Bytes> {
    let document = serde_json::to_vec(document).unwrap_or_default();
    let mut response = Response::new(Bytes::from(document));
    *response.status_mut() = status.code();
    let fields = response.headers_mut();
    let json = HeaderValue::from_static("application/json");
    fields.insert(header::CONTENT_TYPE, json);
    let no_store = HeaderValue::from_static("no-store");
    fields.insert(header::CACHE_CONTROL, no_store);
    let status = HeaderValue::from_static(status.as_str());
    fields.insert("x-service-status", status);
    response
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Serialize for CheckReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("status", self.status.as_str())?;
        map.serialize_entry("response_ms", &millis(self.response_time))?;
        map.end()
    }
}

/// The parts, by name.
struct Parts<'a>(&'a [CheckReport]);

impl Serialize for Parts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|check| (&check.name, check)))
    }
}

impl Serialize for HealthReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("status", self.status.as_str())?;
        if let Some(mode) = self.mode {
            map.serialize_entry("mode", &mode.to_string())?;
        }
        map.serialize_entry("response_ms", &millis(self.response_time))?;
        map.serialize_entry("checks", &Parts(&self.checks))?;
        map.end()
    }
}
