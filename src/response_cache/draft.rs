//! An entry to be: its terms and fields, until its body is there.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, StatusCode};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use crate::core::fields::named_by_connection;
use crate::core::{Digits, base64url};

use super::answer;
use super::config::Config;
use super::date;
use super::directives::Directives;
use super::entry::{Entry, EntryId, Flags, Head};
use super::exchange::Exchange;
use super::fields::Gathered;
use super::freshness::{self, MICROS};
use super::key::Text;
use super::policy::Plan;
use super::revalidate;
use super::store::Ticket;

/// An entry to be, while its body is still on its way.
pub(super) struct Draft {
    /// Still without its fields.
    pub(super) head: Head,
    fields: Gathered,
    ticket: Ticket,
    /// The store is there to take it.
    pub(super) keep: bool,
    pub(super) personal_too: bool,
    trailers: TrailerRules,
}

/// Which trailers are for others, too: what holds for the fields of the head holds for them.
#[derive(Clone, Debug, Default)]
pub(super) struct TrailerRules {
    /// Named by a directive, or by Connection in the head.
    hidden: SmallVec<[HeaderName; 1]>,
    cookies: bool,
}

impl TrailerRules {
    /// The trailers without those of one exchange; `None` if there are no others.
    pub(super) fn kept(&self, trailers: Option<&HeaderMap>) -> Option<Box<HeaderMap>> {
        let trailers = trailers?;
        let is_kept = |name: &HeaderName| {
            (self.cookies || *name != header::SET_COOKIE)
                && revalidate::is_storable(name, trailers)
                && !self.hidden.contains(name)
        };
        let lines = trailers.iter().filter(|(name, _)| is_kept(name));
        let mut kept = HeaderMap::new();
        for (name, value) in lines {
            kept.append(name, value.clone());
        }
        (!kept.is_empty()).then(|| Box::new(kept))
    }
}

impl Draft {
    pub(super) fn new(
        exchange: &Exchange,
        plan: Plan,
        ticket: Ticket,
        status: StatusCode,
        fields: &HeaderMap,
        received: u64,
    ) -> Self {
        let id = EntryId::draw();
        let config = &exchange.setup.config;
        let mut stored = stored_fields(fields, &plan, config.replay_set_cookie, received);
        put_downstream(&mut stored, fields, plan.flags, config);
        let mut trailers = TrailerRules {
            hidden: plan.hidden,
            cookies: config.replay_set_cookie,
        };
        if plan.seen.connection {
            let names = named_by_connection(fields);
            trailers.hidden.extend(names);
        }
        let head = Head {
            id,
            body_id: id,
            begun: ticket.begun,
            at: ticket.at,
            received,
            initial_age: plan.initial_age,
            lifetime: plan.lifetime,
            refresh_after: plan.refresh_after,
            stale_while_revalidate: plan.stale_while_revalidate,
            stale_if_error: plan.stale_if_error,
            expires_at: received.saturating_add(plan.kept),
            flags: plan.flags,
            status,
            key: Text::from_slice(exchange.ask.key.text()),
            names: exchange.ask.names.clone(),
            selection: exchange.ask.selection.as_slice().into(),
            said: plan.targets.into(),
            ..Head::default()
        };
        Self {
            head,
            fields: stored,
            ticket,
            keep: true,
            personal_too: plan.personal_too,
            trailers,
        }
    }

    /// Makes the head for the body that a 304 has confirmed.
    pub(super) fn confirm(mut self, stale: &Head) -> Head {
        self.head.body_id = stale.body_id;
        self.head.trailers = self.trailers.kept(stale.trailers.as_deref());
        if stale.flags.has(Flags::OWN_ETAG)
            && let Some(tag) = stale.fields.get(header::ETAG)
        {
            self.head.flags.set(Flags::OWN_ETAG, true);
            self.fields.remove(&header::ETAG);
            self.fields.push(&header::ETAG, tag.as_bytes());
        }
        self.head.fields = self.fields.finish();
        // The tags that the handler set then are not said again by a 304.
        let mut said = self.head.said.into_vec();
        said.extend_from_slice(&stale.said);
        said.sort_unstable();
        said.dedup();
        self.head.said = said.into();
        self.head
    }

    pub(super) const fn trailers(&self) -> &TrailerRules {
        &self.trailers
    }

    /// The head with its fields, for those who read along while the body comes.
    pub(super) fn whole_head(&self) -> Head {
        let mut head = self.head.clone();
        head.fields = self.fields.clone().finish();
        head
    }

    /// Ends the draft with a copy of its body.
    pub(super) fn entry(
        mut self,
        body: &[Bytes],
        trailers: Option<&HeaderMap>,
    ) -> (Ticket, Arc<Entry>) {
        let trailers = self.trailers.kept(trailers);
        let fields = &mut self.fields;
        if trailers.is_some() {
            fields.remove(&header::CONTENT_LENGTH);
        } else if answer::has_length(self.head.status) && !fields.has(&header::CONTENT_LENGTH) {
            // Whoever sends it would add it to every single answer.
            let length = body.iter().map(Bytes::len).sum::<usize>();
            fields.push(&header::CONTENT_LENGTH, Digits::of(length as u64).text());
        }
        self.head.trailers = trailers;
        let by_policy_alone = self.head.flags.has(Flags::OWN_CACHE_CONTROL);
        let has_validator = fields.has(&header::ETAG) || fields.has(&header::LAST_MODIFIED);
        if by_policy_alone && !has_validator && self.head.status == StatusCode::OK {
            let tag = own_etag(fields, body);
            fields.push(&header::ETAG, tag.as_bytes());
            self.head.flags.set(Flags::OWN_ETAG, true);
        }
        self.head.fields = self.fields.finish_with(body);
        (self.ticket, Arc::new(Entry::whole(self.head)))
    }
}

/// Copies what may be stored.
fn stored_fields(
    fields: &HeaderMap,
    Plan { hidden, seen, .. }: &Plan,
    cookies: bool,
    received: u64,
) -> Gathered {
    let now = freshness::seconds_of(received);
    // Without a readable one: when it came.
    let dated = seen.date
        && !hidden.contains(&header::DATE)
        && freshness::date_seconds(fields, now).is_some();
    let is_kept = |name: &HeaderName| {
        (cookies || *name != header::SET_COOKIE)
            && (dated || *name != header::DATE)
            && ((!seen.connection && is_plain(name)) || revalidate::is_storable(name, fields))
            && !hidden.contains(name)
    };
    let bytes = fields.values().map(HeaderValue::len).sum::<usize>();
    // Enough for the usual answer: Date and Content-Length are added where they are not there.
    let (date, length) = (!dated, !seen.content_length);
    let lines = fields.len() + usize::from(date) + usize::from(length);
    let bytes = bytes + DATE_BYTES * usize::from(date) + LENGTH_BYTES * usize::from(length);
    let mut stored = Gathered::with_room(lines, bytes);
    for (name, value) in fields {
        if is_kept(name) {
            stored.push_value(name, value);
        }
    }
    if !dated && let Some(date) = date_of(received / MICROS) {
        stored.push(&header::DATE, date.as_bytes());
    }
    stored
}

const DATE_BYTES: usize = 29;
/// Most bodies.
const LENGTH_BYTES: usize = 7;

/// Adds what clients get by the terms of the answer: `downstream`, and `private` on private routes.
fn put_downstream(stored: &mut Gathered, fields: &HeaderMap, flags: Flags, config: &Config) {
    let own = flags.has(Flags::OWN_CACHE_CONTROL);
    if own {
        stored.remove(&header::CACHE_CONTROL);
        stored.push(&header::CACHE_CONTROL, config.downstream.as_bytes());
    }
    if config.private() {
        let said = if own {
            Directives::of([&config.downstream])
        } else {
            Directives::of(fields.get_all(header::CACHE_CONTROL))
        };
        if !said.private {
            stored.push(&header::CACHE_CONTROL, b"private");
        }
    }
}

/// The commonest fields that are stored as they are.
fn is_plain(name: &HeaderName) -> bool {
    matches!(
        *name,
        header::CONTENT_TYPE
            | header::CONTENT_LENGTH
            | header::CACHE_CONTROL
            | header::ETAG
            | header::LAST_MODIFIED
            | header::DATE
            | header::VARY
            | header::EXPIRES
            | header::CONTENT_ENCODING
    )
}

/// Writes a date, once per second.
fn date_of(second: u64) -> Option<HeaderValue> {
    static LAST: Mutex<Option<(u64, HeaderValue)>> = Mutex::new(None);
    let mut last = LAST.lock();
    match &*last {
        Some((at, value)) if *at == second => Some(value.clone()),
        _ => {
            let value = date::write(second)?;
            *last = Some((second, value.clone()));
            Some(value)
        }
    }
}

/// A strong tag of ours: 128 bits of SHA-256 over everything that a client would notice.
fn own_etag(fields: &Gathered, body: &[Bytes]) -> HeaderValue {
    let mut sha = Sha256::new();
    for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
        let value = fields.get(&name).unwrap_or_default();
        sha.update((value.len() as u64).to_be_bytes());
        sha.update(value);
    }
    body.iter().for_each(|chunk| sha.update(chunk));
    let tag = format!("\"{}\"", base64url(&sha.finalize()[..16]));
    HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}
