//! The layers over the proxy, each only where it was asked for.

use bytes::Bytes;
use http::{Request, Response};
use tower::util::BoxCloneService;
use tower::{Layer, Service, ServiceExt};
use tower_keep::core::{Body, ClientIpLayer, Principal, TrustedProxies};
use tower_keep::idempotency::{Directive, IdempotencyLayer};

use crate::options::Options;
use crate::proxy::{BoxError, Failure, Proxy, Stream, boxed};
use crate::{cache, idempotency, limits};

/// The stack, and what has to be waited for at its end.
pub struct Stack {
    pub route: Route,
    pub once: Option<IdempotencyLayer>,
}

/// The stack as the server sees it, whatever layers are in it.
pub type Route = BoxCloneService<Request<Stream>, Response<Stream>, Failure>;

/// Builds the stack: rate limit, then cache, then idempotency, then the proxy.
///
/// # Errors
/// One sentence about an option that does not fit, or a store that cannot be opened.
pub async fn build(options: &Options) -> Result<Stack, String> {
    let mut route = BoxCloneService::new(Proxy::new(&options.upstream, options.upstream_timeout));
    let store = tower_keep::store::builder(&options.store).timeout(options.store_timeout);
    let store = store
        .open()
        .await
        .map_err(|why| format!("--store: {why}"))?;
    let mut once = None;
    if let Some(preset) = options.idempotency {
        let layer = idempotency::layer(store.clone(), preset, &options.idempotency_settings)?;
        route = over(layer.layer(inwards(answering(route))));
        once = Some(layer);
    }
    if options.cache {
        let layer = cache::layer(store.clone(), &options.cache_settings)?;
        route = over(layer.layer(inwards(route)));
    }
    let proxies = match options.trusted_hops {
        0 => TrustedProxies::none(),
        hops => TrustedProxies::hops(hops),
    };
    if let Some(quota) = options.rate_limit {
        let layer = limits::layer(store, quota, proxies.clone());
        route = over(layer.layer(route));
    }
    route = over(ClientIpLayer::new(proxies).layer(route));
    if let Some(name) = options.principal_header.clone() {
        route = over(route.map_request(move |mut request: Request<Stream>| {
            let id = request.headers().get(&name).and_then(|id| id.to_str().ok());
            let principal = id.filter(|id| !id.is_empty()).map(Principal::new);
            request.extensions_mut().extend(
                principal
                    .map(|principal| {
                        let mut named = http::Extensions::new();
                        named.insert(principal);
                        named
                    })
                    .unwrap_or_default(),
            );
            request
        }));
    }
    Ok(Stack { route, once })
}

/// A route that answers where the upstream does not: its 502 or 504 is an answer that idempotency has its own rules for.
/// An error would be none, and the next request with the same key would run, though the upstream may have done it all.
fn answering(route: Route) -> Route {
    BoxCloneService::new(route.map_result(|answered: Result<_, Failure>| {
        Ok(answered.unwrap_or_else(|failure| {
            let mut response = failure.response();
            if !failure.was_sent() {
                response.extensions_mut().insert(Directive::Release);
            }
            response
        }))
    }))
}

/// A route as a layer of tower-keep calls it: with the body that the layer hands on.
fn inwards(
    route: Route,
) -> impl Service<Request<Body<Stream>>, Response = Response<Stream>, Error = Failure, Future: Send>
+ Clone
+ Send
+ 'static {
    route.map_request(|request: Request<Body<Stream>>| request.map(boxed))
}

/// Any service of the stack as a route.
fn over<S, B>(service: S) -> Route
where
    S: Service<Request<Stream>, Response = Response<B>, Error = Failure, Future: Send + 'static>
        + Clone
        + Send
        + 'static,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    BoxCloneService::new(service.map_response(|response: Response<B>| response.map(boxed)))
}
