//! What `ResponseCache::call` returns.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Response;
use pin_project_lite::pin_project;
use tokio::time::timeout;

use crate::core::ResponseCacheOutcome;

use super::body::ResponseBody;
use super::config::Setup;
use super::flight::Leading;
use super::meters::Span;
use super::run::Answer;
use super::status::Bypass;

/// How long a fetch goes on for those who wait when its own client has left: nobody waits longer than two leases.
const WITHOUT_CLIENT: Duration = Duration::from_secs(120);

/// A request that goes inwards, and may lead a fetch for others.
pub(super) trait Leads: Future {
    /// Says whether others wait for what it leads.
    fn is_waited_for(&self) -> bool;
}

type Running<R, E> = Pin<Box<dyn Leads<Output = Answer<R, E>> + Send>>;

pin_project! {
    /// A future that says by a mark what it leads.
    pub(super) struct Marked<F> {
        #[pin]
        run: F,
        leading: Arc<Leading>,
    }
}

impl<F> Marked<F> {
    pub(super) const fn new(run: F, leading: Arc<Leading>) -> Self {
        Self { run, leading }
    }
}

impl<F: Future> Future for Marked<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.project().run.poll(cx)
    }
}

impl<F: Future> Leads for Marked<F> {
    fn is_waited_for(&self) -> bool {
        self.leading.is_waited_for()
    }
}

pin_project! {
    /// Answers from the cache, or by the inner service.
    ///
    /// Dropping it is safe at any point: a request that waits owns nothing, a lease is given back, and a
    /// fetch that others wait for goes on in a task.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, R, E>
    where
        R: Send,
        R: 'static,
        E: 'static,
    {
        #[pin]
        kind: Kind<F, R, E>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<F, R, E>
    where
        R: Send,
        R: 'static,
        E: 'static,
    {
        Hit { response: Option<Response<ResponseBody<R>>> },
        Pass { #[pin] call: F, setup: Arc<Setup>, why: Bypass },
        Run { run: Shared<R, E>, span: Span },
    }
}

impl<F, R: Send + 'static, E: 'static> ResponseFuture<F, R, E> {
    pub(super) const fn hit(response: Response<ResponseBody<R>>) -> Self {
        Self {
            kind: Kind::Hit {
                response: Some(response),
            },
        }
    }

    pub(super) const fn pass(call: F, setup: Arc<Setup>, why: Bypass) -> Self {
        Self {
            kind: Kind::Pass { call, setup, why },
        }
    }

    pub(super) fn run(run: impl Leads<Output = Answer<R, E>> + Send + 'static, span: Span) -> Self {
        let run = Shared(Some(Box::pin(run) as Running<R, E>));
        Self {
            kind: Kind::Run { run, span },
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Send + 'static,
{
    type Output = Answer<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            // Polled again after its answer: pending for ever, as a fused future would be.
            KindProj::Hit { response } => response
                .take()
                .map_or(Poll::Pending, |found| Poll::Ready(Ok(found))),
            KindProj::Pass { call, setup, why } => {
                let mut response = ready!(call.poll(cx))?;
                setup.config.status.pass(response.headers_mut(), *why);
                response
                    .extensions_mut()
                    .insert(ResponseCacheOutcome::Bypass);
                Poll::Ready(Ok(response.map(ResponseBody::pass)))
            }
            KindProj::Run { run, span } => {
                let Some(running) = &mut run.0 else {
                    return Poll::Pending;
                };
                let answer = ready!(span.within(|| running.as_mut().poll(cx)));
                run.0 = None;
                let answered = answer.as_ref().ok();
                span.end(answered.and_then(|response| response.extensions().get()));
                Poll::Ready(answer)
            }
        }
    }
}

impl<F, R: Send + 'static, E: 'static> fmt::Debug for ResponseFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Hit { .. } => "hit",
            Kind::Pass { .. } => "pass",
            Kind::Run { .. } => "run",
        };
        f.debug_tuple("ResponseFuture").field(&kind).finish()
    }
}

/// A request on its way; gone when it has its answer.
struct Shared<R: Send + 'static, E: 'static>(Option<Running<R, E>>);

impl<R: Send + 'static, E: 'static> Drop for Shared<R, E> {
    fn drop(&mut self) {
        // The leader's client has left: with others waiting the fetch goes on, without it ends here.
        if let Some(run) = self.0.take().filter(|run| run.is_waited_for()) {
            super::cache::spawn(async move { drop(timeout(WITHOUT_CLIENT, run).await) });
        }
    }
}
