//! The future of one response; dropping it never cuts a run.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use super::run_state::RunState;
use crate::core::Body;
use crate::core::telemetry::count;

type Guarded<R, E> = Pin<Box<dyn Future<Output = Result<Response<Body<R>>, E>> + Send>>;

pin_project! {
    /// Becomes the response.
    ///
    /// Dropped while nothing is claimed, nothing happens. Dropped later, the rest moves into a task of its
    /// own: a claim that was under way is released again, a handler that runs goes on to its end, and its
    /// answer is stored for the retry.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, R, E> where R: Send, R: 'static, E: Send, E: 'static {
        #[pin]
        state: State<F, R, E>,
    }

    impl<F, R, E> PinnedDrop for ResponseFuture<F, R, E> where R: Send, R: 'static, E: Send, E: 'static {
        fn drop(this: Pin<&mut Self>) {
            if let StateProj::Guarded { rest, run } = this.project().state.project()
                && let Some(rest) = rest.take()
            {
                detach(rest, run);
            }
        }
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R, E> {
        Pass { #[pin] inner: F },
        Refused { response: Option<Response<Body<R>>> },
        Guarded { rest: Option<Guarded<R, E>>, run: Arc<RunState> },
    }
}

impl<F, R: Send + 'static, E: Send + 'static> ResponseFuture<F, R, E> {
    pub(super) const fn pass(inner: F) -> Self {
        Self {
            state: State::Pass { inner },
        }
    }

    pub(super) const fn refused(response: Response<Body<R>>) -> Self {
        Self {
            state: State::Refused {
                response: Some(response),
            },
        }
    }

    pub(super) const fn guarded(rest: Guarded<R, E>, run: Arc<RunState>) -> Self {
        Self {
            state: State::Guarded {
                rest: Some(rest),
                run,
            },
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Send + 'static,
    E: Send + 'static,
{
    type Output = Result<Response<Body<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Pass { inner } => {
                let response = ready!(inner.poll(cx))?;
                Poll::Ready(Ok(response.map(Body::pass)))
            }
            StateProj::Refused { response } => response
                .take()
                .map_or(Poll::Pending, |response| Poll::Ready(Ok(response))),
            StateProj::Guarded { rest, .. } => {
                // Taken out while it runs: what panicked must not be polled again by a task.
                let Some(mut future) = rest.take() else {
                    return Poll::Pending;
                };
                let answer = future.as_mut().poll(cx);
                if answer.is_pending() {
                    *rest = Some(future);
                }
                answer
            }
        }
    }
}

fn detach<R: Send + 'static, E: Send + 'static>(rest: Guarded<R, E>, run: &RunState) {
    if !run.has_claimed() {
        return;
    }
    run.client_left();
    // Without a runtime nothing can go on: the lease runs out.
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    count!("keep_idempotency_detached_total", 1);
    let rest = async move { drop(rest.await) };
    #[cfg(feature = "tracing")]
    let rest = tracing::Instrument::instrument(rest, tracing::Span::current());
    runtime.spawn(rest);
}

impl<F, R: Send, E: Send> fmt::Debug for ResponseFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Pass { .. } => "pass",
            State::Refused { .. } => "refused",
            State::Guarded { .. } => "guarded",
        };
        f.debug_tuple("ResponseFuture").field(&state).finish()
    }
}
