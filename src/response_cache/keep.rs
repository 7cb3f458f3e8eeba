//! Keeps a fetched answer: in place where its body is complete at once, else by a task that pulls it.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Context;

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Response, StatusCode, response};

use crate::core::{Personal, ResponseCacheOutcome, Visitor};

use super::answer;
use super::body::{BoxError, ResponseBody};
use super::collect::{Collected, Collector, Pull};
use super::config::CachePolicy;
use super::draft::Draft;
use super::entry::{Flags, Head};
use super::exchange::Exchange;
use super::fetch::{Fetch, Kind, LeaseHold};
use super::flight::Outcome;
use super::freshness;
use super::policy;
use super::range::{self, Part};
use super::revalidate;
use super::status::{Reason, Said};

/// What became of a fetched answer.
pub(super) enum Fetched<R> {
    Answer(Response<ResponseBody<R>>),
    /// Its body is still on its way: [`Exchange::pulled`] goes on.
    Streams(Box<Unread<R>>),
}

/// An answer that will be stored once the rest of its body has come.
pub(super) struct Unread<R> {
    draft: Draft,
    parts: response::Parts,
    collector: Collector<R>,
}

impl Exchange {
    /// A new answer: stored if it may be, else passed on untouched.
    pub(super) fn fetched<R>(
        &mut self,
        fetch: &mut Fetch,
        response: Response<R>,
        times: (u64, u64),
        cx: &mut Context<'_>,
    ) -> Fetched<R>
    where
        R: http_body::Body<Data = Bytes>,
        R::Error: Into<BoxError>,
    {
        self.ask.inner_visitor = response.extensions().get::<Visitor>().cloned();
        let policy = response.extensions().get::<CachePolicy>();
        let personal = response.extensions().get::<Personal>().is_some() || self.ask.is_personal();
        let status = response.status();
        let plan = match self.plan(status, response.headers(), policy, personal, times) {
            Ok(plan) => plan,
            Err(reason) => {
                self.refuse(fetch, status, reason);
                let response = response.map(ResponseBody::pass);
                return Fetched::Answer(self.uncacheable(fetch, response, Some(reason)));
            }
        };
        if !plan.names.is_empty() {
            let names = self.ask.names.union(&plan.names);
            self.ask.select(&names, &self.fields);
        }
        let said_length = plan.seen.content_length;
        let expected = said_length.then(|| policy::content_length(response.headers()));
        let expected = expected.flatten();
        // Without a ticket the store is down: the answer may still be shared with those who wait.
        let ticket = fetch.ticket.unwrap_or_else(|| self.cache().ticket());
        let mut draft = Draft::new(self, plan, ticket, status, response.headers(), times.1);
        draft.keep = fetch.ticket.is_some();
        let (parts, body) = response.into_parts();
        let mut collector = Collector::new(body, self.setup.config.max_body, expected);
        match collector.poll_first(cx) {
            Some(Collected::Whole(trailers, true)) if self.may_keep(&draft) => {
                let body = collector.chunks();
                Fetched::Answer(self.kept(fetch, draft, parts, body, trailers))
            }
            Some(ended) => {
                let reason = reason_of(&ended);
                self.refuse(fetch, status, reason);
                let response = Response::from_parts(parts, collector.give_up(ended));
                Fetched::Answer(self.uncacheable(fetch, response, Some(reason)))
            }
            None => Fetched::Streams(Box::new(Unread {
                draft,
                parts,
                collector,
            })),
        }
    }

    /// The mark is read again when the body is there: a handler may touch the session while it streams.
    fn may_keep(&self, draft: &Draft) -> bool {
        draft.personal_too || !self.ask.is_personal()
    }

    /// Stores a complete answer, and makes the client's own form of it.
    fn kept<R>(
        &self,
        fetch: &mut Fetch,
        draft: Draft,
        mut parts: response::Parts,
        body: &[Bytes],
        trailers: Option<Box<HeaderMap>>,
    ) -> Response<ResponseBody<R>> {
        let keep = draft.keep;
        let (ticket, entry) = draft.entry(body, trailers.as_deref());
        if keep {
            self.cache().put(&self.ask, ticket, &entry);
        }
        fetch.land(Outcome::Done(Arc::clone(&entry)));
        let head = entry.head();
        answer::put_downstream(&mut parts.headers, head.flags, &self.setup.config);
        if head.flags.has(Flags::OWN_ETAG)
            && let Some(tag) = head.fields.value(&header::ETAG)
        {
            parts.headers.insert(header::ETAG, tag);
        }
        // In one piece it goes out as it came: nobody counts the stored one before it is asked for.
        let sent = || match body {
            [whole] => (whole.clone(), trailers),
            _ => (entry.body(), trailers),
        };
        let (status, body) = answer::shape(&entry, self.asked(), &mut parts.headers, sent);
        parts.status = status;
        self.say_stored(&mut parts, fetch, head, keep);
        Response::from_parts(parts, body)
    }

    /// Lets a task pull the rest, while the client and those who join read at their own pace.
    pub(super) fn pulled<R>(
        self: Box<Self>,
        fetch: Fetch,
        unread: Unread<R>,
    ) -> Response<ResponseBody<R>>
    where
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let Unread {
            draft,
            mut parts,
            collector,
        } = unread;
        answer::put_downstream(&mut parts.headers, draft.head.flags, &self.setup.config);
        self.say_stored(&mut parts, &fetch, &draft.head, draft.keep);
        let now = freshness::seconds_of(draft.head.received);
        let unmodified = parts.status == StatusCode::OK
            && self
                .asked()
                .conditions
                .is_some_and(|fields| revalidate::is_not_modified(fields, &parts.headers, now));
        let conditions = self.asked().conditions;
        let length =
            policy::content_length(&parts.headers).filter(|_| parts.status == StatusCode::OK);
        let part = conditions
            .zip(length)
            .map_or(Part::Whole, |(fields, length)| {
                range::part(fields, &parts.headers, length, now)
            });
        let unfinished = &self.cache().unfinished;
        let (mut body, stream, pull) =
            collector.split(draft.whole_head(), draft.trailers().clone(), unfinished);
        if let Some((leader, _)) = &fetch.leader {
            leader.streams(&stream);
        }
        super::cache::spawn(self.pull(fetch, draft, pull));
        if unmodified {
            // The task goes on without a reader.
            body = ResponseBody::empty();
            parts.status = StatusCode::NOT_MODIFIED;
            revalidate::without_body(&mut parts.headers);
        } else if let (Part::Bytes(0, last), Some(length)) = (part, length)
            && last + 1 == length
        {
            // Only a range of all was fetched without it.
            parts.status = StatusCode::PARTIAL_CONTENT;
            answer::put_range(&mut parts.headers, 0, last, length);
        }
        Response::from_parts(parts, body)
    }

    /// Pulls a body to its end, stores it, and only then lets those who read have its end.
    async fn pull<R>(self: Box<Self>, mut fetch: Fetch, draft: Draft, mut pull: Pull<R>)
    where
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let mut lease = LeaseHold::new(&self, fetch.ticket);
        let Some(ended) = poll_fn(|cx| pull.poll_end(cx)).await else {
            return;
        };
        lease.leave();
        match ended {
            Collected::Whole(trailers, true) if self.may_keep(&draft) => {
                let keep = draft.keep;
                let (ticket, entry) = draft.entry(pull.chunks(), trailers.as_deref());
                if keep {
                    self.cache().put(&self.ask, ticket, &entry);
                }
                fetch.land(Outcome::Done(entry));
                pull.finish(Collected::Whole(trailers, true), false);
            }
            ended => {
                let (status, reason) = (draft.head.status, reason_of(&ended));
                // One visitor's, however it ends: nobody else gets the rest of it.
                let personal_too = draft.personal_too;
                let is_personal = || !personal_too && self.ask.is_personal();
                drop(draft);
                self.refuse(&mut fetch, status, reason);
                match ended {
                    Collected::Over | Collected::NoRoom => pull.pass_on(is_personal).await,
                    ended => pull.finish(ended, is_personal()),
                }
            }
        }
    }

    fn say_stored(&self, parts: &mut response::Parts, fetch: &Fetch, head: &Head, keep: bool) {
        let said = match (fetch.kind, keep) {
            (Kind::Impatient, _) => Said::Alone(fetch.forward),
            (Kind::Collapsed, _) => Said::Collapsed(fetch.forward),
            (_, true) => {
                let stored = Ok(answer::ttl(head, head.received));
                Said::Fetched {
                    forward: fetch.forward,
                    status: None,
                    stored,
                }
            }
            (_, false) => Said::Fetched {
                forward: fetch.forward,
                status: None,
                stored: Err(None),
            },
        };
        let outcome = if keep {
            ResponseCacheOutcome::Stored
        } else {
            ResponseCacheOutcome::Bypass
        };
        self.cache().counters.count(outcome);
        self.setup.config.status.say(&mut parts.headers, said);
        parts.extensions.insert(outcome);
    }

    /// Passes on an answer that is not stored.
    pub(super) fn uncacheable<R>(
        &self,
        fetch: &Fetch,
        mut response: Response<ResponseBody<R>>,
        reason: Option<Reason>,
    ) -> Response<ResponseBody<R>> {
        let said = match fetch.kind {
            Kind::Impatient => Said::Alone(fetch.forward),
            _ => Said::Fetched {
                forward: fetch.forward,
                status: None,
                stored: Err(reason),
            },
        };
        self.setup.config.status.say(response.headers_mut(), said);
        let outcome = ResponseCacheOutcome::Uncacheable;
        self.cache().counters.count(outcome);
        response.extensions_mut().insert(outcome);
        response
    }
}

const fn reason_of(ended: &Collected) -> Reason {
    match ended {
        Collected::Over => Reason::TooLarge,
        Collected::NoRoom => Reason::Bounds,
        Collected::Whole(_, true) => Reason::Personal,
        Collected::Whole(_, false) | Collected::Failed(_) => Reason::Cut,
    }
}
