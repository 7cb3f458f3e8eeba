//! By what is counted: addresses through proxies, principals, credentials, and what is done without them.

use std::sync::{Arc, Mutex};

use super::metered::Metered;
use super::*;
use tower_keep::core::{
    AskVisitor, ClientIp, ClientIpLayer, StoreError, StoreErrorKind, StoreFailure, StoreFuture,
    TrustedProxies, Visitor,
};
use tower_keep::rate_limit::PartitionKey;

fn by_address(proxies: TrustedProxies) -> App {
    let layer = RateLimitLayer::new(MemoryStore::new())
        .limit(Quota::per_minute(1), Partition::client_ip())
        .trusted_proxies(proxies);
    App::new(layer)
}

fn forwarded(peer: &str, line: &str) -> Request<()> {
    let mut request = request("", peer);
    request
        .headers_mut()
        .insert("x-forwarded-for", line.parse().unwrap());
    request
}

#[tokio::test]
async fn a_client_that_forges_a_forwarding_header_gains_nothing() {
    let app = by_address(TrustedProxies::none());
    app.get("", "192.0.2.1").await;
    app.send(forwarded("192.0.2.1", "6.6.6.6"))
        .await
        .refused_by("client-ip");

    let app = by_address(TrustedProxies::hops(1));
    app.send(forwarded("10.0.0.1", "192.0.2.1")).await;
    app.send(forwarded("10.0.0.1", "6.6.6.6, 192.0.2.1"))
        .await
        .refused_by("client-ip");
    assert_eq!(
        app.send(forwarded("10.0.0.1", "192.0.2.2")).await.status,
        StatusCode::OK
    );
}

#[tokio::test]
async fn ipv4_clients_of_a_dual_stack_listener_are_kept_apart_and_ipv6_counts_by_its_64() {
    let app = by_address(TrustedProxies::none());
    for first in [
        "::ffff:192.0.2.1",
        "::ffff:192.0.2.2",
        "2001:db8::1",
        "2001:db8:0:1::1",
    ] {
        assert_eq!(app.get("", first).await.status, StatusCode::OK, "{first}");
    }
    for again in ["192.0.2.1", "2001:db8::ffff"] {
        app.get("", again).await.refused_by("client-ip");
    }
}

#[tokio::test]
async fn an_address_that_an_outer_layer_found_is_used_and_handed_on() {
    let layer =
        RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(9), Partition::client_ip());
    let handler = service_fn(async |request: Request<()>| {
        let ClientIp(found) = request.extensions().get().unwrap();
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(found.to_string()))))
    });
    let outer = ClientIpLayer::new(TrustedProxies::hops(1));
    let service = outer.layer(layer.layer(handler));
    let answer = read(
        service
            .oneshot(forwarded("10.0.0.1", "192.0.2.7"))
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(answer.body, "192.0.2.7");
}

#[tokio::test]
async fn without_any_address_a_policy_is_skipped_unless_the_layer_is_closed() {
    let layer = || {
        RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(1), Partition::client_ip())
    };
    let open = App::new(layer());
    for _ in 0..3 {
        let answer = open.send(Request::new(())).await;
        assert_eq!(
            (answer.status, answer.field("ratelimit")),
            (StatusCode::OK, None)
        );
    }
    let closed = App::new(layer().on_store_failure(StoreFailure::Closed));
    let answer = closed.send(Request::new(())).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(closed.calls(), 0);
}

#[tokio::test]
async fn an_anonymous_address_is_not_a_principal_of_equal_text() {
    let layer =
        RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(1), Partition::principal());
    let app = App::new(layer);
    assert_eq!(
        app.get("192.0.2.1", "198.51.100.1").await.status,
        StatusCode::OK
    );
    assert_eq!(app.get("", "192.0.2.1").await.status, StatusCode::OK);
    app.get("", "192.0.2.1").await.refused_by("principal");
    assert_eq!(
        app.get("", "192.0.2.2").await.status,
        StatusCode::OK,
        "anonymous is not one"
    );
    assert_eq!(app.get("a.b@x", "192.0.2.1").await.status, StatusCode::OK);
    assert_eq!(app.get("a_b@x", "192.0.2.1").await.status, StatusCode::OK);
}

#[tokio::test]
async fn credentials_and_headers_are_keys_and_requests_without_them_count_by_address() {
    for (partition, header, values) in [
        (
            Partition::api_key("authorization"),
            "authorization",
            ["Bearer a", "bearer  a", "Bearer b"],
        ),
        (Partition::header("x-device"), "x-device", ["a", "a", "b"]),
    ] {
        let layer = RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(1), partition);
        let app = App::new(layer);
        let send = |value: &'static str| {
            let mut request = request("", "192.0.2.1");
            request.headers_mut().insert(header, value.parse().unwrap());
            app.send(request)
        };
        assert_eq!(send(values[0]).await.status, StatusCode::OK);
        assert_eq!(send(values[1]).await.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(send(values[2]).await.status, StatusCode::OK);
        assert_eq!(app.get("", "192.0.2.1").await.status, StatusCode::OK);
        assert_eq!(
            app.get("", "192.0.2.1").await.status,
            StatusCode::TOO_MANY_REQUESTS
        );
    }
}

#[tokio::test]
async fn compound_partitions_count_each_pair() {
    let partition = Partition::client_ip().and(Partition::path());
    assert_eq!(partition.name(), "client-ip-path");
    let app =
        App::new(RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(1), partition));
    let send = |address, path: &str| {
        let mut request = request("", address);
        *request.uri_mut() = path.parse().unwrap();
        app.send(request)
    };
    for (address, path) in [
        ("192.0.2.1", "/a"),
        ("192.0.2.1", "/b"),
        ("192.0.2.2", "/a"),
    ] {
        assert_eq!(send(address, path).await.status, StatusCode::OK);
        send(address, path).await.refused_by("client-ip-path");
    }
}

#[tokio::test]
async fn each_part_of_a_compound_key_is_cut_by_its_own_prefix_also_for_the_handle() {
    let address: std::net::IpAddr = "2001:db8:1:2:3::4".parse().unwrap();
    let by_48 = || Partition::client_ip().ipv6_prefix(48);
    let of_two = || {
        Partition::custom("two", move |_| {
            Some(PartitionKey::all([address.into(), "x".into()]))
        })
    };
    let whole = || PartitionKey::from(address);
    let two = || PartitionKey::all([whole(), "x".into()]);
    for (partition, parts) in [
        (by_48().and(Partition::principal()), vec![whole(), whole()]),
        (Partition::principal().and(by_48()), vec![whole(), whole()]),
        (by_48().and(of_two()), vec![whole(), two()]),
        (of_two().and(by_48()), vec![two(), whole()]),
        (
            by_48().and(of_two()).and(Partition::header("x-none")),
            vec![whole(), two(), whole()],
        ),
    ] {
        let name = partition.name().to_owned();
        let layer = RateLimitLayer::new(MemoryStore::new()).limit(Quota::per_minute(9), partition);
        let (limiter, app) = (layer.limiter(), App::new(layer));
        let send = async || app.get("", "2001:db8:1:2:3::4").await;
        assert_eq!(send().await.status, StatusCode::OK);
        let key = PartitionKey::all(parts);
        let seen = limiter.peek(&name, key.clone()).await.unwrap();
        assert_eq!(seen.attempts, 1, "{name}");
        limiter.block(&name, key, tower_keep::MINUTE).await.unwrap();
        send().await.refused_by(&name);
    }
}

#[tokio::test]
async fn axum_tells_the_peer_and_the_matched_path() {
    use axum::{Router, extract::ConnectInfo, routing::get};
    let layer = RateLimitLayer::new(MemoryStore::new()).limit(
        Quota::per_minute(1),
        Partition::client_ip().and(Partition::matched_path()),
    );
    let app = Router::new()
        .route(
            "/users/{id}",
            get(async |status: tower_keep::rate_limit::RateLimitStatus| {
                status.iter().count().to_string()
            }),
        )
        .layer(layer);
    let send = async |path: &str| {
        let mut request = Request::new(axum::body::Body::empty());
        *request.uri_mut() = path.parse().unwrap();
        let peer: SocketAddr = "192.0.2.1:1".parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        read(app.clone().oneshot(request).await.unwrap()).await
    };
    assert_eq!(send("/users/1").await.body, "1");
    send("/users/2").await.refused_by("client-ip-matched-path");
}

/// A session that is read when somebody asks, and answers later or never well.
#[derive(Debug)]
struct Session(Mutex<Vec<Result<Option<Principal>, StoreErrorKind>>>);

impl AskVisitor for Session {
    fn principal(self: Arc<Self>) -> StoreFuture<Option<Principal>> {
        let answer = self
            .0
            .lock()
            .unwrap()
            .pop()
            .expect("asked once per request");
        StoreFuture::boxed(async move {
            tokio::task::yield_now().await;
            answer.map_err(StoreError::new)
        })
    }

    fn mark_personal(&self) {}

    fn is_personal(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn whoever_comes_next_is_told_the_address_whatever_was_decided_and_wherever() {
    let redis = crate::support::redis::shared().await;
    let redis = redis
        .store_with(&crate::support::redis::fresh_prefix())
        .await;
    let by_address = |store: Arc<dyn RateLimitStore>| {
        RateLimitLayer::new(store)
            .limit(Quota::per_minute(9), Partition::client_ip())
            .trusted_proxies(TrustedProxies::hops(1))
            .timeout(PATIENCE)
    };
    let open = by_address(Arc::new(super::faults::Broken)).on_store_failure(StoreFailure::Open);
    let everybody = "0.0.0.0/0".parse().unwrap();
    for layer in [
        by_address(Arc::new(MemoryStore::new())),
        by_address(Arc::new(MemoryStore::new())).exempt(|_| false),
        by_address(Arc::new(MemoryStore::new())).allow_ips([everybody]),
        by_address(Arc::new(redis)),
        open,
    ] {
        let handler = service_fn(async |request: Request<()>| {
            let ClientIp(client) = request.extensions().get().copied().unwrap();
            Ok::<_, Infallible>(Response::new(Full::from(client.to_string())))
        });
        let service = layer.layer(handler);
        let answer = service.oneshot(forwarded("10.0.0.9", "192.0.2.1")).await;
        assert_eq!(read(answer.unwrap()).await.body, "192.0.2.1", "{layer:?}");
    }
}

#[tokio::test]
async fn a_visitor_is_asked_once_and_a_session_that_fails_leaves_the_choice_to_the_failure_mode() {
    let visit = |answer| {
        let mut request = request("", "192.0.2.1");
        let session = Session(Mutex::new(vec![answer]));
        request
            .extensions_mut()
            .insert(Visitor::new(Arc::new(session)));
        request
    };
    let fault = || visit(Err(StoreErrorKind::Unavailable));
    let layer = || {
        RateLimitLayer::new(MemoryStore::new())
            .policy(Policy::new(
                "one",
                Quota::per_minute(1),
                Partition::principal(),
            ))
            .policy(Policy::new(
                "two",
                Quota::per_minute(9),
                Partition::principal(),
            ))
    };
    let app = App::new(layer());
    let user = || visit(Ok(Some(Principal::new("u1"))));
    assert_eq!(app.send(user()).await.status, StatusCode::OK);
    app.send(user()).await.refused_by("one");
    assert_eq!(
        app.send(fault()).await.status,
        StatusCode::OK,
        "counted by the address"
    );
    app.send(visit(Ok(None))).await.refused_by("one");
    let metered = Metered::start();
    let open = App::new(layer().on_store_failure(StoreFailure::Open));
    assert_eq!(open.send(fault()).await.field("ratelimit"), None);
    let requests = |outcome: &str| {
        metered.counter(&format!(
            "keep_rate_limit_requests_total{{group=default,outcome={outcome}}}"
        ))
    };
    assert_eq!((requests("unguarded"), requests("passed")), (1, 0));
    let closed = App::new(layer().on_store_failure(StoreFailure::Closed));
    assert_eq!(
        closed.send(fault()).await.status,
        StatusCode::SERVICE_UNAVAILABLE
    );
    // An address that somebody else found counts as it is written in the lists, mapped or not.
    let listed = RateLimitLayer::new(MemoryStore::new())
        .limit(Quota::per_minute(9), Partition::client_ip())
        .deny_ips(["192.0.2.0/24".parse().unwrap()]);
    let mut mapped = request("", "198.51.100.1");
    let client = "::ffff:192.0.2.1".parse().unwrap();
    mapped.extensions_mut().insert(ClientIp(client));
    let answer = App::new(listed).send(mapped).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    // Where only a trial counts by the user, nobody is refused for that.
    let tried = RateLimitLayer::new(MemoryStore::new())
        .policy(Policy::new("tried", Quota::per_minute(1), Partition::principal()).shadow())
        .limit(Quota::per_minute(9), Partition::global())
        .on_store_failure(StoreFailure::Closed);
    let answer = App::new(tried).send(fault()).await;
    assert_eq!(answer.field("ratelimit"), Some("\"global\";r=8;t=60"));
}
