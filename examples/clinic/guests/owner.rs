//! The subject: the one name that holds, keys and quotas are kept under, and everything else a request owns.
//!
//! Try it: `curl -b jar-1 localhost:8080/api/reservations/RESERVATION_ID`, and the same with `jar-2`
//!
//! Proof: `keys_are_checked_and_belong_to_one_guest_and_one_payload`

use axum::http::request::Parts;
use tower_keep::idempotency::ScopeId;
use tower_keep::rate_limit::PartitionKey;

use crate::records::PaymentRecord;

/// Who this request speaks for: it owns whatever the user or the guest owns.
#[derive(Clone, Debug)]
pub struct Owner {
    pub(super) user: Option<String>,
    pub(super) guest: Option<String>,
    /// The expert whose calendar this request may see.
    pub(super) expert: Option<&'static str>,
}

impl Owner {
    /// The one name that holds, keys and quotas are kept under: the user's, else the guest's.
    pub fn subject(&self) -> &str {
        self.user
            .as_deref()
            .or(self.guest.as_deref())
            .unwrap_or_default()
    }

    /// The guest's name, which is one browser's own.
    pub fn guest(&self) -> Option<&str> {
        self.guest.as_deref()
    }

    /// Every name that this request speaks for.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [&self.user, &self.guest]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    /// The signed-in user's id.
    pub fn user(&self) -> Option<&str> {
        self.user
            .as_deref()
            .and_then(|name| name.strip_prefix("u:"))
    }

    /// Says whether what is kept under `subject` belongs to this request.
    pub fn owns(&self, subject: &str) -> bool {
        self.names().any(|own| own == subject)
    }

    /// Says whether a reservation is this request's, or in its expert's calendar.
    pub fn may_see(&self, record: &PaymentRecord) -> bool {
        self.owns(&record.subject) || self.expert == Some(record.expert_id.as_str())
    }

    pub fn is_known(&self) -> bool {
        self.user.is_some() || self.guest.is_some()
    }
}

/// The partition of quotas per subject.
pub fn partition(parts: &Parts) -> Option<PartitionKey> {
    parts
        .extensions
        .get::<Owner>()
        .map(|owner| PartitionKey::from(owner.subject()))
}

/// The scope of idempotency keys: one subject's key is nobody else's.
pub fn scope(parts: &Parts) -> Option<ScopeId> {
    parts
        .extensions
        .get::<Owner>()
        .map(|owner| ScopeId::new(owner.subject()))
}
