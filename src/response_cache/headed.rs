//! What an answer to HEAD says of a stored GET: renewed fields, or that it is right no more (RFC 9111 §4.3.5).

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName};
use http::{Response, StatusCode};

use crate::core::Personal;

use super::config::CachePolicy;
use super::draft::Draft;
use super::entry::{Entry, EntryId, Head};
use super::exchange::Exchange;
use super::fetch::policy_of;
use super::revalidate;
use super::store::Ticket;

impl Exchange {
    /// Takes in an answer to HEAD that the stored one could have answered; `times` are those of the exchange.
    pub(super) fn headed<R>(
        &mut self,
        stored: &Arc<Entry>,
        ticket: Ticket,
        answer: &Response<R>,
        times: (u64, u64),
    ) {
        if answer.status() != StatusCode::OK || self.ask.demands.no_store {
            return;
        }
        let head = self
            .renewed(stored, ticket, answer, times)
            .unwrap_or_else(|| expired(stored.head(), ticket));
        let entry = Arc::new(stored.with_head(head));
        self.cache().keep_copy(&self.ask, &entry);
        let (cache, key) = (self.cache(), self.ask.entry_key(self.cache().place));
        let freshened = cache.store.freshen(key, ticket, entry);
        cache.finish("freshen", freshened);
    }

    /// The stored head under the fields that came, if they are those of the same answer and may be kept.
    fn renewed<R>(
        &self,
        stored: &Arc<Entry>,
        ticket: Ticket,
        answer: &Response<R>,
        times: (u64, u64),
    ) -> Option<Head> {
        if !is_same(stored, answer.headers()) {
            return None;
        }
        let fields = revalidate::merged(stored.head(), answer.headers());
        let policy = answer.extensions().get::<CachePolicy>().cloned();
        let policy = policy.or_else(|| policy_of(stored.head()));
        let personal = answer.extensions().get::<Personal>().is_some() || self.ask.is_personal();
        let status = stored.head().status;
        let plan = self.plan(status, &fields, policy.as_ref(), personal, times);
        // Under more names than it was stored for it would never be found.
        let plan = plan
            .ok()
            .filter(|plan| self.ask.names.union(&plan.names) == self.ask.names)?;
        let draft = Draft::new(self, plan, ticket, status, &fields, times.1);
        Some(draft.confirm(stored.head()))
    }
}

/// The validators and the length that came are those of the stored answer.
fn is_same(stored: &Entry, came: &HeaderMap) -> bool {
    let fields = &stored.head().fields;
    let agrees = |name: HeaderName| {
        came.get(&name)
            .is_none_or(|value| fields.get(&name) == Some(value))
    };
    let length = came.get(header::CONTENT_LENGTH);
    stored.head().status == StatusCode::OK
        && agrees(header::ETAG)
        && agrees(header::LAST_MODIFIED)
        && length.is_none_or(|value| *value == *stored.body_bytes().to_string())
}

/// Stale from now on: its windows are counted from when it was made.
fn expired(head: &Head, ticket: Ticket) -> Head {
    let mut head = head.clone();
    head.id = EntryId::draw();
    head.at = ticket.at;
    head.lifetime = 0;
    head.refresh_after = None;
    head
}
