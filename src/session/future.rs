//! The response future, written by hand: inner service, and a commit where something is buffered.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{self, CACHE_CONTROL, Entry, SET_COOKIE, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use pin_project_lite::pin_project;

use super::error::SessionError;
use super::handle::{Committing, Leaving, Session};
use super::rejection::SessionRejection;
use crate::core::{Body, Personal, PrincipalRejection, Visitor};

pin_project! {
    /// The future of [`SessionService`](super::SessionService).
    ///
    /// Dropped while the inner service runs: what is buffered is lost, committed calls stay. During the commit:
    /// the patch is applied whole or not at all. Nothing is spawned.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, R> {
        // Gone as soon as it has answered: with it goes what it still holds of a handler that it gave up.
        #[pin]
        inner: Option<F>,
        session: Option<Session>,
        // In a box: only a commit that has to wait pays for its room.
        committing: Option<Box<(Committing, Response<R>)>>,
    }

    impl<F, R> PinnedDrop for ResponseFuture<F, R> {
        fn drop(this: Pin<&mut Self>) {
            // Whoever keeps the handle learns that nothing more is sent.
            if let Some(session) = this.project().session.as_ref() {
                session.seal();
            }
        }
    }
}

impl<F, R> ResponseFuture<F, R> {
    pub(super) const fn pass(inner: F) -> Self {
        Self {
            inner: Some(inner),
            session: None,
            committing: None,
        }
    }

    pub(super) const fn new(inner: F, session: Session) -> Self {
        Self {
            inner: Some(inner),
            session: Some(session),
            committing: None,
        }
    }
}

impl<F, R> fmt::Debug for ResponseFuture<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<Body<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if this.committing.is_none() {
            let Some(inner) = this.inner.as_mut().as_pin_mut() else {
                // Polled after its answer.
                return Poll::Pending;
            };
            let answer = ready!(inner.poll(cx));
            this.inner.set(None);
            let Some(session) = this.session.as_ref() else {
                return Poll::Ready(answer.map(|response| response.map(Body::pass)));
            };
            // First of all: what comes from now on is refused, not lost.
            let is_touched = session.seal();
            let response = match answer {
                Ok(response) if is_touched || session.restates() && is_refusal(&response) => {
                    response
                }
                // Untouched: the response leaves as it came. An error is the inner service's.
                answer => {
                    let watched = session.watched();
                    *this.session = None;
                    return Poll::Ready(answer.map(|response| pass(response, watched)));
                }
            };
            let leaving = match session.finish(response.status()) {
                Some(leaving) => leaving,
                None => {
                    let mut committing = session.committing(response.status());
                    match Pin::new(&mut committing).poll(cx) {
                        Poll::Ready(committed) => {
                            return left(this.session, response, committed.err());
                        }
                        Poll::Pending => {
                            *this.committing = Some(Box::new((committing, response)));
                            return Poll::Pending;
                        }
                    }
                }
            };
            let response = dress(session, response, leaving, None);
            *this.session = None;
            return Poll::Ready(Ok(response));
        }
        let failed = match this.committing.as_deref_mut() {
            Some((committing, _)) => ready!(Pin::new(committing).poll(cx)).err(),
            None => None,
        };
        match this.committing.take() {
            Some(committed) => left(this.session, committed.1, failed),
            // Polled after its answer.
            None => Poll::Pending,
        }
    }
}

/// Lets the response leave after the commit.
fn left<R, E>(
    session: &mut Option<Session>,
    response: Response<R>,
    failed: Option<SessionError>,
) -> Poll<Result<Response<Body<R>>, E>> {
    let Some(session) = session.take() else {
        return Poll::Pending;
    };
    let leaving = session.leave();
    let failed = failed.map(SessionRejection::from);
    Poll::Ready(Ok(dress(&session, response, leaving, failed)))
}

/// Lets an untouched response pass; a cache outside sees whether it is touched later on.
fn pass<R>(mut response: Response<R>, watched: Option<Visitor>) -> Response<Body<R>> {
    if let Some(visitor) = watched {
        response.extensions_mut().insert(visitor);
    }
    response.map(Body::pass)
}

/// Dresses the response: refusal, cookie, caching.
fn dress<R>(
    session: &Session,
    response: Response<R>,
    leaving: Leaving,
    failed: Option<SessionRejection>,
) -> Response<Body<R>> {
    let mut response = match failed {
        Some(rejection) => refuse(session, &rejection, None, response),
        None => restate(session, response),
    };
    let marked = leaving.marked;
    leaving_fields(leaving, response.headers_mut());
    if marked {
        response.extensions_mut().insert(Personal);
    }
    if let Some(visitor) = session.watched() {
        response.extensions_mut().insert(visitor);
    }
    response
}

fn is_refusal<R>(response: &Response<R>) -> bool {
    response.extensions().get::<SessionRejection>().is_some()
}

/// Makes the document of a refusal that a handler or extractor returned again, as this layer is set.
fn restate<R>(session: &Session, response: Response<R>) -> Response<Body<R>> {
    let extensions = response.extensions();
    let rejection = extensions.get::<SessionRejection>().cloned().or_else(|| {
        extensions
            .get::<PrincipalRejection>()
            .map(SessionRejection::from)
    });
    match rejection {
        Some(rejection) if session.restates() => {
            let fields = response.headers().clone();
            refuse(session, &rejection, Some(fields), response)
        }
        _ => response.map(Body::pass),
    }
}

/// What was said of the body that a refusal's own takes the place of, which a layer in between may have compressed.
static DESCRIBES_BODY: [HeaderName; 14] = [
    header::CONTENT_TYPE,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_LANGUAGE,
    header::CONTENT_LOCATION,
    header::CONTENT_RANGE,
    header::CONTENT_DISPOSITION,
    header::ACCEPT_RANGES,
    header::ETAG,
    header::LAST_MODIFIED,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

fn refuse<R>(
    session: &Session,
    rejection: &SessionRejection,
    carried: Option<HeaderMap>,
    response: Response<R>,
) -> Response<Body<R>> {
    let mut refused: Response<Bytes> = session.refusal(rejection);
    for (name, value) in carried.iter().flatten() {
        if !DESCRIBES_BODY.contains(name) && !refused.headers().contains_key(name) {
            refused.headers_mut().append(name, value.clone());
        }
    }
    let (parts, _) = response.into_parts();
    let mut extensions = parts.extensions;
    extensions.extend(std::mem::take(refused.extensions_mut()));
    *refused.extensions_mut() = extensions;
    refused.map(Body::bytes)
}

fn leaving_fields(leaving: Leaving, fields: &mut HeaderMap) {
    if leaving.personal {
        vary(fields, "cookie");
        if leaving.accepts_bearer {
            vary(fields, "authorization");
        }
        if let Entry::Vacant(vacant) = fields.entry(CACHE_CONTROL) {
            vacant.insert(HeaderValue::from_static("private"));
        }
    }
    if leaving.no_store {
        fields.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    }
    if let Some(cookie) = leaving.set_cookie {
        fields.append(SET_COOKIE, cookie);
    }
    if leaving.clear_site_data {
        let name = HeaderName::from_static("clear-site-data");
        let value = HeaderValue::from_static("\"cache\", \"cookies\", \"storage\"");
        fields.insert(name, value);
    }
}

/// Adds `name` to `Vary` unless it or `*` is there (RFC 9110 §12.5.5).
fn vary(fields: &mut HeaderMap, name: &'static str) {
    let is_there = |line: &HeaderValue| {
        line.as_bytes().split(|byte| *byte == b',').any(|item| {
            let item = item.trim_ascii();
            item == b"*" || item.eq_ignore_ascii_case(name.as_bytes())
        })
    };
    match fields.entry(VARY) {
        Entry::Vacant(vacant) => {
            vacant.insert(HeaderValue::from_static(name));
        }
        Entry::Occupied(mut lines) => {
            if !lines.iter().any(is_there) {
                lines.append(HeaderValue::from_static(name));
            }
        }
    }
}
