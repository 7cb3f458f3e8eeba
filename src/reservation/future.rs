//! The answer's way out: the inner response is held until the end of the transaction is known.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::Response;
use pin_project_lite::pin_project;

use super::guard::refusal_of;
use super::policy;
use super::rejection::{Conflict, ReservationError, ReservationRejection};
use super::request::Request;
use super::route::Route;
use super::store::Ended;
use crate::core::telemetry::error;
use crate::core::{Body, Ending, RollbackCause, StoreError, StoreFuture};

pin_project! {
    /// Resolves to the inner response once the transaction has ended.
    ///
    /// Dropped earlier, the transaction is rolled back in a task, unless its commit has begun: that goes on.
    pub struct ResponseFuture<F, ResBody, E> {
        #[pin]
        inner: F,
        open: Open,
        answered: Option<Answered<ResBody, E>>,
    }
}

/// The inner service has answered, and the transaction is ending.
struct Answered<ResBody, E> {
    answer: Result<Response<ResBody>, E>,
    wanted: Wanted,
    ended: StoreFuture<Ended>,
}

/// What the end was meant to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Commit,
    Rollback,
    /// A guard outlived its handler.
    Leaked,
}

/// Rolls back unless it was ended.
struct Open {
    request: Arc<Request>,
    route: Route,
    ended: bool,
    /// The inner service is being polled; still so afterwards, it has panicked.
    inside: bool,
}

impl<F, ResBody, E> ResponseFuture<F, ResBody, E> {
    pub(crate) fn new(inner: F, request: Arc<Request>, route: Route) -> Self {
        Self {
            inner,
            open: Open {
                request,
                route,
                ended: false,
                inside: false,
            },
            answered: None,
        }
    }
}

impl<F, ResBody, E> Future for ResponseFuture<F, ResBody, E>
where
    F: Future<Output = Result<Response<ResBody>, E>>,
{
    type Output = Result<Response<Body<ResBody>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if this.answered.is_none() {
            this.open.inside = true;
            let polled = this.inner.poll(cx);
            this.open.inside = false;
            let answer = ready!(polled);
            *this.answered = Some(this.open.end(answer));
        }
        let Some(answered) = this.answered else {
            return Poll::Pending;
        };
        let ended = ready!(Pin::new(&mut answered.ended).poll(cx));
        let Some(answered) = this.answered.take() else {
            return Poll::Pending;
        };
        Poll::Ready(this.open.answer(answered.answer, answered.wanted, ended))
    }
}

impl Open {
    /// Decides the end by the answer and starts it.
    fn end<ResBody, E>(&mut self, answer: Result<Response<ResBody>, E>) -> Answered<ResBody, E> {
        self.ended = true;
        let request = &self.request;
        let leaked = request.close();
        let ending = match &answer {
            Ok(response) => {
                let said = response.extensions().get::<Ending>().copied();
                policy::ending(response.status().as_u16(), said)
            }
            Err(_) => Ending::Rollback,
        };
        let (wanted, ended) = match ending {
            _ if leaked => {
                let route = &self.route;
                error!(%route, "a reservation guard outlived its handler, nothing is committed");
                let _ = route;
                (Wanted::Leaked, request.roll_back(RollbackCause::Leaked))
            }
            Ending::Commit => (Wanted::Commit, request.commit()),
            Ending::Rollback => {
                let cause = match &answer {
                    Err(_) => RollbackCause::Inner,
                    Ok(response) => match refused_hold(request, response) {
                        Some(conflict) => {
                            request.note_conflict(conflict);
                            RollbackCause::Conflict
                        }
                        None => RollbackCause::Status(response.status().as_u16()),
                    },
                };
                (Wanted::Rollback, request.roll_back(cause))
            }
        };
        Answered {
            answer,
            wanted,
            ended,
        }
    }

    /// The inner answer, or a refusal where the end contradicts it.
    fn answer<ResBody, E>(
        &self,
        answer: Result<Response<ResBody>, E>,
        wanted: Wanted,
        ended: Result<Ended, StoreError>,
    ) -> Result<Response<Body<ResBody>>, E> {
        let response = answer?;
        let contradicts = match (wanted, ended) {
            // As a member the layer only votes; the owner answers for the end.
            (_, Ok(Ended::Member)) => None,
            (Wanted::Commit, Ok(Ended::Committed)) | (Wanted::Rollback, _) => None,
            (Wanted::Leaked, _) => Some(ReservationError::TransactionLeaked),
            (Wanted::Commit, Ok(ended)) => Some(refusal_of(ended, &self.request)),
            (Wanted::Commit, Err(problem)) => Some(problem.into()),
        };
        let config = &self.request.config;
        if let Some(error) = contradicts {
            let refusal = config.refuse(&ReservationRejection::from(error));
            return Ok(refusal.map(Body::bytes));
        }
        // A refusal that the handler returned passes the hook, too.
        let returned = response.extensions().get::<ReservationRejection>();
        if let (Some(rejection), true) = (returned.cloned(), config.on_rejection.is_some()) {
            return Ok(config.pass(&rejection, response).map(Body::bytes));
        }
        Ok(response.map(Body::pass))
    }
}

/// The refused hold behind a response: the one it names, else the last answer to a wish.
fn refused_hold<ResBody>(request: &Request, response: &Response<ResBody>) -> Option<Conflict> {
    match response.extensions().get::<ReservationRejection>() {
        Some(rejection) => match rejection.error() {
            ReservationError::Conflict(conflict) => Some(*conflict),
            _ => None,
        },
        None => request.conflict(),
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // Whoever caught the panic drops us when nobody is panicking any more.
        let cause = if self.inside || std::thread::panicking() {
            RollbackCause::Panic
        } else {
            RollbackCause::Cancelled
        };
        self.request.close();
        drop(self.request.roll_back(cause));
    }
}

impl<F, ResBody, E> fmt::Debug for ResponseFuture<F, ResBody, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
