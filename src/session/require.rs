//! A guard for a whole router: a login, a role, or a fresh login.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::handle::Session;
use super::rejection::SessionRejection;
use crate::core::{Body, Principal, StoreFuture, Visitor, principal_of, take_ready};

/// Refuses requests without a login, a role or a fresh login; stands inside a
/// [`SessionLayer`](super::SessionLayer). A role check costs one core read, shared with the handler.
#[must_use]
#[derive(Clone, Debug)]
pub struct RequireLayer {
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    Login,
    Role(Cow<'static, str>),
    Fresh(Duration),
}

impl RequireLayer {
    /// Requires a login: 401.
    pub const fn login() -> Self {
        Self { rule: Rule::Login }
    }

    /// Requires a role: 401 without a login, 403 without the role.
    pub fn role(role: impl Into<Cow<'static, str>>) -> Self {
        Self {
            rule: Rule::Role(role.into()),
        }
    }

    /// Requires a login less than `max_age` ago: 401 (RFC 9470).
    pub const fn fresh(max_age: Duration) -> Self {
        Self {
            rule: Rule::Fresh(max_age),
        }
    }
}

impl<S> Layer<S> for RequireLayer {
    type Service = Require<S>;

    fn layer(&self, inner: S) -> Require<S> {
        Require {
            inner,
            rule: self.rule.clone(),
        }
    }
}

/// The service that [`RequireLayer`] makes.
#[derive(Clone, Debug)]
pub struct Require<S> {
    inner: S,
    rule: Rule,
}

impl<S, B, R> Service<Request<B>> for Require<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
{
    type Response = Response<Body<R>>;
    type Error = S::Error;
    type Future = RequireFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut inner = take_ready(&mut self.inner);
        let asked = match ask(&self.rule, &request).try_now() {
            Ok(Ok(Ok(()))) => {
                let future = inner.call(request);
                return RequireFuture {
                    state: State::Inner { future },
                };
            }
            Ok(Ok(Err(rejection))) => StoreFuture::ok(Err(rejection)),
            Ok(Err(error)) => StoreFuture::ready(Err(error)),
            Err(later) => later,
        };
        let waiting = Some((inner, request));
        RequireFuture {
            state: State::Asking { asked, waiting },
        }
    }
}

/// Asks the session, and marks the answer as made for one visitor.
fn ask<B>(rule: &Rule, request: &Request<B>) -> StoreFuture<Result<(), SessionRejection>> {
    let extensions = request.extensions();
    if let Some(visitor) = extensions.get::<Visitor>() {
        visitor.mark_personal();
    }
    match rule {
        Rule::Fresh(max_age) => {
            let (session, max_age) = (Session::of(extensions), *max_age);
            StoreFuture::boxed(async move {
                Ok(match session {
                    Some(session) => session.require_fresh(max_age).await,
                    None => Err(SessionRejection::LoginRequired),
                })
            })
        }
        Rule::Login => principal_of(extensions).map(|principal| check(principal, None)),
        Rule::Role(role) => {
            let role = role.clone();
            principal_of(extensions).map(move |principal| check(principal, Some(&role)))
        }
    }
}

fn check(principal: Option<Principal>, role: Option<&str>) -> Result<(), SessionRejection> {
    match (principal, role) {
        (None, _) => Err(SessionRejection::LoginRequired),
        (Some(principal), Some(role)) if !principal.has_role(role) => {
            Err(SessionRejection::RoleRequired)
        }
        _ => Ok(()),
    }
}

pin_project! {
    /// The future of [`Require`]. Dropping it while the session is asked leaves nothing behind.
    #[must_use = "futures do nothing unless polled"]
    pub struct RequireFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, B, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F> {
        Asking {
            asked: StoreFuture<Result<(), SessionRejection>>,
            waiting: Option<(S, Request<B>)>,
        },
        Inner { #[pin] future: F },
    }
}

impl<S, B> fmt::Debug for RequireFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequireFuture").finish_non_exhaustive()
    }
}

impl<S, B, R> Future for RequireFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Output = Result<Response<Body<R>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let future = match state.as_mut().project() {
                StateProj::Inner { future } => {
                    return future.poll(cx).map_ok(|response| response.map(Body::pass));
                }
                StateProj::Asking { asked, waiting } => {
                    let answer = ready!(Pin::new(asked).poll(cx));
                    let allowed = answer.unwrap_or_else(|error| Err(unavailable(error)));
                    let Some((mut inner, request)) = waiting.take() else {
                        // Polled after its answer.
                        return Poll::Pending;
                    };
                    if let Err(rejection) = allowed {
                        let refused: Response<Bytes> = rejection.response();
                        return Poll::Ready(Ok(refused.map(Body::bytes)));
                    }
                    inner.call(request)
                }
            };
            state.set(State::Inner { future });
        }
    }
}

fn unavailable(error: crate::core::StoreError) -> SessionRejection {
    SessionRejection::Fault(error.into())
}
