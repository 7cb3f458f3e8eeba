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
        let renewed = match evidence(stored, answer.headers()) {
            Evidence::None => return,
            Evidence::Same => self.renewed(stored, ticket, answer, times),
            Evidence::Other => None,
        };
        // Credentials may be forged: what is said to them ends nothing that others have.
        let of_one = self.ask.signals.authorization && !self.ask.private;
        if renewed.is_none() && of_one {
            return;
        }
        let head = renewed.unwrap_or_else(|| expired(stored.head(), ticket));
        let entry = Arc::new(stored.with_head(head));
        self.cache().freshen(&self.ask, ticket, &entry);
    }

    /// The stored head under the fields that came with the same answer, if they may be kept.
    fn renewed<R>(
        &self,
        stored: &Arc<Entry>,
        ticket: Ticket,
        answer: &Response<R>,
        times: (u64, u64),
    ) -> Option<Head> {
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

/// What an answer to HEAD proves of the stored one.
enum Evidence {
    /// Nothing: many answers have the same length, and one without a validator could be any.
    None,
    /// Its validators and its length are those of the stored answer.
    Same,
    Other,
}

fn evidence(stored: &Entry, came: &HeaderMap) -> Evidence {
    let fields = &stored.head().fields;
    let agrees = |name: HeaderName| {
        let value = came.get(&name)?;
        Some(fields.get(&name) == Some(value))
    };
    let validators = [agrees(header::ETAG), agrees(header::LAST_MODIFIED)];
    let length = came.get(header::CONTENT_LENGTH);
    let length = length.map(|value| *value == *stored.body_bytes().to_string());
    let differs = validators.contains(&Some(false)) || length == Some(false);
    if differs || stored.head().status != StatusCode::OK {
        Evidence::Other
    } else if validators.contains(&Some(true)) {
        Evidence::Same
    } else {
        Evidence::None
    }
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
