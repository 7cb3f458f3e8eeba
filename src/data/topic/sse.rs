//! Feeds as server-sent events (WHATWG HTML, section 9.2): an `http_body::Body`, for any server.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep, sleep};

use super::event::EventId;
use super::feed::{RawFeed, Start};
use super::policy::Raw;
use crate::core::monotonic;
use crate::data::record;

/// A comment this often keeps the connection alive, and finds out that it is not.
const COMMENT_EVERY: Duration = Duration::from_secs(15);
/// Sent at once: how long to wait before a reconnect, where the client begins, so that it goes on from there if it comes back
/// before its first event, and a comment that makes proxies let go of the head.
fn prologue(place: Option<EventId>) -> Bytes {
    let id = place.map_or_else(String::new, |place| format!("id: {place}\n"));
    Bytes::from(format!("retry: 2000\n{id}:\n\n"))
}

/// The last event that a client has seen: the header `Last-Event-ID`, else the query's `last_event_id`.
///
/// An axum extractor with the feature `axum`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastEventId(Seen);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Seen {
    #[default]
    Nothing,
    Event(EventId),
    /// Something that we cannot read: whatever it was, something may be missing since.
    Unreadable,
}

impl LastEventId {
    /// A client that begins now.
    #[must_use]
    pub const fn none() -> Self {
        Self(Seen::Nothing)
    }

    /// A client that has seen this event.
    #[must_use]
    pub const fn of(id: EventId) -> Self {
        Self(Seen::Event(id))
    }

    /// Reads a request's header fields and query. What cannot be read makes the feed begin with a gap.
    #[must_use]
    pub fn from_request(headers: &HeaderMap, query: Option<&str>) -> Self {
        let seen = |text: &str| match text.parse() {
            _ if text.is_empty() => Seen::Nothing,
            Ok(id) => Seen::Event(id),
            Err(_) => Seen::Unreadable,
        };
        if let Some(value) = headers.get("last-event-id") {
            return Self(value.to_str().map_or(Seen::Unreadable, seen));
        }
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let mut found = pairs.filter(|(name, _)| name == "last_event_id");
        Self(
            found
                .next()
                .map_or(Seen::Nothing, |(_, value)| seen(&value)),
        )
    }

    pub(super) const fn start(self) -> Start {
        match self.0 {
            Seen::Nothing => Start::Now,
            Seen::Event(id) => Start::After(id),
            Seen::Unreadable => Start::Unknown,
        }
    }
}

/// A feed on its way to a client; an axum response with the feature `axum`.
#[must_use]
pub struct TopicSse {
    body: SseBody,
}

impl TopicSse {
    pub(super) fn new(feed: RawFeed, event: Arc<str>) -> Self {
        let opening = prologue(feed.begins());
        Self {
            body: SseBody {
                next: following(feed),
                comment: Box::pin(sleep(COMMENT_EVERY)),
                until: Box::pin(std::future::pending()),
                event,
                state: State::Opening(opening),
            },
        }
    }

    /// Ends the response when `shutdown` resolves; the client comes back elsewhere with its last event's id.
    pub fn until(mut self, shutdown: impl Future<Output = ()> + Send + 'static) -> Self {
        self.body.until = Box::pin(shutdown);
        self
    }

    /// Makes the response.
    #[must_use]
    pub fn response(self) -> Response<SseBody> {
        let mut response = Response::new(self.body);
        let headers = response.headers_mut();
        let fixed = HeaderValue::from_static;
        headers.insert(header::CONTENT_TYPE, fixed("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, fixed("no-store"));
        headers.insert("x-accel-buffering", fixed("no"));
        response
    }
}

type Following = Pin<Box<dyn Future<Output = (RawFeed, Raw)> + Send>>;

fn following(mut feed: RawFeed) -> Following {
    Box::pin(async move {
        let raw = feed.next().await;
        (feed, raw)
    })
}

/// The body of such a response. Dropping it ends the subscription.
pub struct SseBody {
    next: Following,
    comment: Pin<Box<Sleep>>,
    until: Pin<Box<dyn Future<Output = ()> + Send>>,
    event: Arc<str>,
    state: State,
}

#[derive(PartialEq)]
enum State {
    Opening(Bytes),
    Open,
    Ended,
}

impl Body for SseBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |text: Bytes| Poll::Ready(Some(Ok(Frame::data(text))));
        if self.state == State::Ended || self.until.as_mut().poll(cx).is_ready() {
            self.state = State::Ended;
            return Poll::Ready(None);
        }
        if let State::Opening(opening) = &mut self.state {
            let opening = std::mem::take(opening);
            self.state = State::Open;
            return frame(opening);
        }
        if let Poll::Ready((feed, raw)) = self.next.as_mut().poll(cx) {
            self.next = following(feed);
            let text = written(&raw, &self.event);
            return frame(text);
        }
        if self.comment.as_mut().poll(cx).is_ready() {
            let again: Instant = monotonic() + COMMENT_EVERY;
            self.comment.as_mut().reset(again);
            return frame(Bytes::from_static(b":\n\n"));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.state == State::Ended
    }
}

/// Writes one event. A record that is no line of JSON, from a store that others write to, is a gap.
fn written(raw: &Raw, name: &str) -> Bytes {
    let gap = |before: &EventId| {
        Bytes::from(format!(
            "id: {before}\nevent: gap\ndata: {{\"missed\":true}}\n\n"
        ))
    };
    match raw {
        Raw::Gap { before, .. } => gap(before),
        Raw::Event(event) => {
            let json = record::json(&event.payload);
            let json = json.and_then(|json| std::str::from_utf8(json).ok());
            match json.filter(|json| !json.contains(['\n', '\r'])) {
                Some(json) => Bytes::from(format!(
                    "id: {}\nevent: {name}\ndata: {json}\n\n",
                    event.place()
                )),
                None => gap(&event.place()),
            }
        }
    }
}

impl fmt::Debug for TopicSse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopicSse")
            .field("event", &self.body.event)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for SseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SseBody")
            .field("event", &self.event)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Timestamp;
    use crate::data::topic::store::Kept;

    fn event(payload: &'static [u8]) -> Raw {
        Raw::Event(Kept {
            id: EventId::new(5, 7),
            at: Timestamp::EPOCH,
            payload: Bytes::from_static(payload),
        })
    }

    #[test]
    fn an_event_is_one_line_of_json_and_what_is_none_is_a_gap() {
        let text = written(&event(b"\x01{\"a\":1}"), "status");
        assert_eq!(text, "id: 5-7\nevent: status\ndata: {\"a\":1}\n\n");
        let gap = "id: 5-7\nevent: gap\ndata: {\"missed\":true}\n\n";
        for foreign in [
            &b"\x01{}\n\ndata: forged"[..],
            b"\x01a\rb",
            b"\x02{}",
            b"",
            b"\x01\xff",
        ] {
            assert_eq!(written(&event(foreign), "status"), gap);
        }
    }

    #[test]
    fn the_last_event_is_read_from_the_header_then_from_the_query() {
        let mut headers = HeaderMap::new();
        let query = Some("a=1&last_event_id=5-8");
        let seen = |headers: &HeaderMap, query| LastEventId::from_request(headers, query);
        assert_eq!(seen(&headers, None), LastEventId::none());
        assert_eq!(seen(&headers, Some("last_event_id=")), LastEventId::none());
        assert_eq!(seen(&headers, query), LastEventId::of(EventId::new(5, 8)));
        headers.insert("last-event-id", HeaderValue::from_static("5-7"));
        assert_eq!(seen(&headers, query), LastEventId::of(EventId::new(5, 7)));
        headers.insert("last-event-id", HeaderValue::from_static("abc"));
        assert_eq!(seen(&headers, query), LastEventId(Seen::Unreadable));
    }
}
