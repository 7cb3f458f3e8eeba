//! Requests that nothing guards here: one that the same layer outside guards, and one without a store.

use http::{Request, Response};
use tower_service::Service;

use super::answer;
use super::claim::Question;
use super::config::Config;
use super::intake::{Gist, Stream};
use super::run_state::IdempotentRun;
use crate::core::{Body, IdempotencyOutcome, Inner};

/// Says whether the same layer outside holds this very key for this very request: nobody waits for himself.
pub(super) fn is_within(gist: &Gist, question: &Question) -> bool {
    let outer = gist.parts.extensions.get::<IdempotentRun>();
    outer.is_some_and(|run| run.id() == question.id)
}

/// Hands a request on that a layer outside guards already.
pub(super) async fn within<S, B, R>(
    mut inner: S,
    gist: Box<Gist>,
    stream: Option<Box<Stream<B>>>,
) -> Result<Response<Body<R>>, S::Error>
where
    S: Service<Request<Body<B>>, Response = Response<R>>,
{
    let request = match stream {
        None => gist.request(),
        Some(stream) => Request::from_parts(gist.parts, stream.body),
    };
    Ok(inner.call(request).await?.map(Body::pass))
}

/// Lets the handler run although nothing guards it.
pub(super) async fn unprotected<S, B, R>(
    config: &Config,
    mut inner: Inner<S>,
    request: Request<Body<B>>,
) -> Result<Response<Body<R>>, S::Error>
where
    S: Service<Request<Body<B>>, Response = Response<R>>,
{
    let mut response = inner.call(request).await?.map(Body::pass);
    answer::mark(config, &mut response, IdempotencyOutcome::Unprotected, None);
    Ok(response)
}
