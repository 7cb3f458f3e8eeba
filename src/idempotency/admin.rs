//! What operators need: to look at a record, and to say how a run ended that did not report it.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};

use super::claim::record_id;
use super::config::Config;
use super::key::ClientKey;
use super::policy;
use super::record::{
    Answer, AnswerContent, Content, Fence, Fingerprint, RecordId, State, StoredAnswer,
};
use super::scope::ScopeId;
use super::store::{Resolution, Resolved};
use crate::core::telemetry::info;
use crate::core::{StoreError, Timestamp};

/// Looks at records and resolves them; made by [`IdempotencyLayer::admin`](super::IdempotencyLayer::admin).
///
/// Not a route: guard whatever calls it.
#[derive(Clone, Debug)]
pub struct Admin {
    config: Arc<Config>,
}

/// What a record is at the moment it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordState {
    /// Its owner's lease runs.
    Running,
    /// Its owner did not report the end: nobody knows, or the next request takes over.
    Unknown,
    /// The answer is kept.
    Answered,
    /// It ran; the answer is not kept.
    Tombstone,
}

/// A record as an operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct RecordInfo {
    id: RecordId,
    fingerprint: Fingerprint,
    /// What it is.
    pub state: RecordState,
    /// Its owner's fence; a resolution carries it along.
    pub fence: u64,
    /// When the key was first claimed.
    pub created: Timestamp,
    /// When the lease ends or ended.
    pub lease_until: Timestamp,
    /// When the record is gone.
    pub expires: Timestamp,
    /// The status of the answer.
    pub status: Option<StatusCode>,
    /// The bytes of the answer's body.
    pub bytes: usize,
}

/// Why a resolution was refused; nothing was changed.
#[derive(Debug)]
pub enum ResolveError {
    /// The record is not the one that was looked at.
    Changed,
    /// Its owner's lease runs.
    Live,
    /// The store could not do it.
    Store(StoreError),
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Changed => "the record changed since it was looked at, look again",
            Self::Live => "the run still holds its lease, wait for its end",
            Self::Store(_) => "the store could not resolve the record",
        })
    }
}

impl std::error::Error for ResolveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

impl Admin {
    pub(super) const fn new(config: Arc<Config>) -> Self {
        Self { config }
    }

    /// Returns the id of the record of a caller's key, as it was sent in the field, unquoted.
    ///
    /// With [`per_endpoint`](super::IdempotencyLayer::per_endpoint) ask [`Admin::id_at`] instead.
    #[must_use]
    pub fn id(&self, scope: &ScopeId, key: &str) -> RecordId {
        self.id_at(scope, key, &Method::POST, "")
    }

    /// Returns the id of the record of a caller's key on one endpoint. Where axum's `nest` has cut a prefix away, `path`
    /// is the whole one, a space, and the rest: `/experts/1/pay /pay`.
    #[must_use]
    pub fn id_at(&self, scope: &ScopeId, key: &str, method: &Method, path: &str) -> RecordId {
        let key = self.config.key_format.fold(ClientKey::from(key));
        let id = record_id::<Infallible>(&self.config, scope, (method.as_str(), path), |hasher| {
            hasher.number(1).part(key.as_bytes());
            Ok(())
        });
        match id {
            Ok(id) => id,
            Err(never) => match never {},
        }
    }

    /// Looks at a record.
    ///
    /// # Errors
    /// The store's.
    pub async fn get(&self, id: &RecordId) -> Result<Option<RecordInfo>, StoreError> {
        let record = self.config.store.peek(id).await?;
        info!(record = %id, "idempotency: an operator looked at a record");
        Ok(record.map(|record| {
            let head = record.head;
            let (status, bytes) = match &record.content {
                Content::Full(answer) => (Some(answer.status), answer.body.len()),
                Content::Tombstone(left) => (Some(left.status), 0),
                _ => (None, 0),
            };
            RecordInfo {
                id: *id,
                fingerprint: head.fingerprint,
                state: match head.state {
                    State::Claimed if head.is_leased() => RecordState::Running,
                    State::Claimed => RecordState::Unknown,
                    State::Answered => RecordState::Answered,
                    State::Tombstone | State::Unreadable => RecordState::Tombstone,
                },
                fence: head.fence.0,
                created: head.created,
                lease_until: head.lease_until,
                expires: head.expires_at,
                status,
                bytes,
            }
        }))
    }

    /// Forgets the record: the next request with the key runs.
    ///
    /// # Errors
    /// [`ResolveError`]; nothing was changed.
    pub async fn release(&self, info: &RecordInfo) -> Result<(), ResolveError> {
        self.resolve(info, Resolution::Release).await
    }

    /// Puts an answer there, for the layer's `ttl`: every request with the key gets it as a replay.
    ///
    /// # Errors
    /// [`ResolveError`]; nothing was changed.
    pub async fn complete(
        &self,
        info: &RecordInfo,
        response: Response<Bytes>,
    ) -> Result<(), ResolveError> {
        let (parts, body) = response.into_parts();
        let fields = policy::kept_fields(&parts.headers, self.config.replay_only.as_deref());
        let stored = StoredAnswer {
            status: parts.status,
            fields,
            body,
            trailers: None,
        };
        let content = AnswerContent::Full(Arc::new(stored));
        let answer = Answer {
            fingerprint: info.fingerprint,
            content,
        };
        let ttl: Duration = self.config.ttl;
        self.resolve(info, Resolution::Answer(answer, ttl)).await
    }

    /// Removes the answers and tombstones of a caller, page by page, and returns how many there were: a retry after it
    /// runs again. To be called when rights are withdrawn. A claim stays, and what its owner answers later is kept.
    ///
    /// In SQL it looks at the caller's records only, in memory at all records, on Redis at all keys of the server (or of each
    /// node in turn), a page at a time. A failover or slots that move meanwhile may hide some there: then repeat it.
    ///
    /// # Errors
    /// The store's; what was removed before stays removed, and a repeat is harmless.
    pub async fn purge(&self, scope: &ScopeId) -> Result<u64, StoreError> {
        let tag = super::claim::scope_tag(&self.config, scope);
        info!(scope = %tag, "idempotency: an operator removes the answers of a caller");
        let (mut removed, mut page) = (0, None);
        loop {
            let purged = self.config.store.purge(tag, page).await?;
            removed += purged.removed;
            page = purged.next;
            if page.is_none() {
                info!(scope = %tag, removed, "idempotency: the answers of a caller were removed");
                return Ok(removed);
            }
        }
    }

    async fn resolve(&self, info: &RecordInfo, to: Resolution) -> Result<(), ResolveError> {
        info!(record = %info.id, "idempotency: an operator resolves a record");
        match self
            .config
            .store
            .resolve(&info.id, Fence(info.fence), to)
            .await
        {
            Ok(Resolved::Done) => Ok(()),
            Ok(Resolved::Changed) => Err(ResolveError::Changed),
            Ok(Resolved::Live) => Err(ResolveError::Live),
            Err(error) => Err(ResolveError::Store(error)),
        }
    }
}
