//! What a session costs a request that does not touch it: counted, never timed.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::hint::black_box;

use futures_util::FutureExt as _;
use http::header::COOKIE;
use http::{HeaderValue, Request, Response};
use tower::{Layer, Service, service_fn};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::PeerAddr;
use tower_keep::session::SessionLayer;

fn request(cookie: Option<HeaderValue>) -> Request<()> {
    let mut request = Request::new(());
    let peer = PeerAddr("192.0.2.7:40000".parse().unwrap());
    request.extensions_mut().insert(peer);
    request
        .headers_mut()
        .extend(cookie.map(|cookie| (COOKIE, cookie)));
    request
}

fn answer(_: Request<()>) -> Ready<Result<Response<String>, Infallible>> {
    ready(Ok(Response::new(String::new())))
}

#[test]
fn a_request_that_does_not_touch_its_session_costs_the_handle_and_its_place() {
    const COOKIES: HeaderValue = HeaderValue::from_static(
        "theme=dark; __Host-id=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    );
    let mut behind = SessionLayer::new(MemoryStore::new()).layer(service_fn(answer));
    let mut bare = service_fn(answer);
    for cookie in [None, Some(COOKIES)] {
        let (one, other) = (request(cookie.clone()), request(cookie));
        let with = allocation_counter::measure(|| {
            black_box(behind.call(one).now_or_never());
        });
        let without = allocation_counter::measure(|| {
            black_box(bare.call(other).now_or_never());
        });
        assert_eq!(with.count_total - without.count_total, 2);
    }
}
