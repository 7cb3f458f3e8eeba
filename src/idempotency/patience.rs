//! How a request waits for the twin that runs.

use std::time::Duration;

use tokio::time::Instant;

use super::claim::Question;
use super::config::Config;
use super::policy::Twins;
use super::record::Content;
use super::running::{jitter, timed};
use super::seats::Found;
use super::service::Shared;
use crate::core::ttl::DAY;
use crate::core::{StoreError, monotonic};

/// How long a request waits for its twin and for its place, in all; not at all where the layer does not attach.
#[derive(Clone, Copy)]
pub(super) struct Patience(Option<Instant>);

impl Patience {
    pub(super) fn of(config: &Config) -> Self {
        let Twins::Attach(most) = config.twins else {
            return Self(None);
        };
        let now = monotonic();
        Self(Some(now.checked_add(most).unwrap_or(now + DAY)))
    }

    /// Says whether it waits at all.
    pub(super) const fn attaches(self) -> bool {
        self.0.is_some()
    }

    /// `None` where it took too long.
    pub(super) async fn wait<T>(self, work: impl Future<Output = T>) -> Option<T> {
        tokio::time::timeout_at(self.0?, work).await.ok()
    }
}

/// Looks after 25, 50, 100, 200, 400, then every 500 ms; `None` once nobody holds the claim, or another payload does:
/// whoever asks anew is told which.
pub(super) async fn look(
    shared: &Shared,
    question: &Question,
) -> Result<Option<Found>, StoreError> {
    let mut pause = Duration::from_millis(25);
    loop {
        tokio::time::sleep(jitter(pause)).await;
        pause = (pause * 2).min(Duration::from_millis(500));
        let Some(record) = timed("peek", shared.config.store.peek(&question.id)).await? else {
            return Ok(None);
        };
        // What cannot be read has no payload to compare.
        let is_readable = !matches!(record.content, Content::Unreadable);
        if is_readable && record.head.fingerprint.contradicts(&question.fingerprint) {
            return Ok(None);
        }
        match record.content {
            Content::Claimed if record.head.is_leased() => {}
            Content::Claimed => return Ok(None),
            content => {
                return Ok(Some(Found {
                    content,
                    expires_at: record.head.expires_at,
                }));
            }
        }
    }
}
