//! Server-sent events, as a browser's EventSource reads them.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::Request;
use http_body_util::BodyExt;
use tower::ServiceExt;
use tower_keep::SECOND;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::data::topic::{EventId, LastEventId, Topic, TopicError, TopicSse};

use crate::support::redis::{RedisServer, fresh_prefix, shared};

type Body = axum::body::Body;

fn app(topic: Topic<u64>) -> Router {
    async fn events(
        last: LastEventId,
        State(topic): State<Topic<u64>>,
    ) -> Result<TopicSse, TopicError> {
        topic.sse("k", last).await
    }
    Router::new().route("/", get(events)).with_state(topic)
}

async fn open(app: &Router, last: Option<&str>) -> (http::response::Parts, Body) {
    let mut request = Request::builder().uri("/");
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let request = request.body(Body::empty()).unwrap();
    app.clone().oneshot(request).await.unwrap().into_parts()
}

async fn frame(body: &mut Body) -> String {
    let frame = tokio::time::timeout(20 * SECOND, body.frame()).await;
    let frame = frame.expect("a frame within 20 s").expect("it goes on");
    String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn the_bytes_are_those_of_the_standard() {
    let topic = Topic::new(MemoryStore::new(), "expert").event("status");
    let (head, mut body) = open(&app(topic.clone()), None).await;
    assert_eq!(head.status, 200);
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("x-accel-buffering", "no"),
    ] {
        assert_eq!(head.headers[name], value);
    }
    assert_eq!(frame(&mut body).await, "retry: 2000\nid: 0-0\n:\n\n");
    let id = topic.publish("k", &7).await.unwrap();
    assert_eq!(
        frame(&mut body).await,
        format!("id: {id}\nevent: status\ndata: 7\n\n")
    );
    assert_eq!(id.seq(), 1);
}

#[tokio::test]
async fn who_has_seen_no_event_yet_misses_none_by_a_reconnect() {
    let redis = shared().await.store_with(&fresh_prefix()).await;
    for topic in [Topic::new(MemoryStore::new(), "t"), Topic::new(redis, "t")] {
        // Nothing was published yet; then two were.
        for round in 0..2_u64 {
            let (_, mut body) = open(&app(topic.clone()), None).await;
            let opening = frame(&mut body).await;
            drop(body);
            let id = opening.lines().find_map(|line| line.strip_prefix("id: "));
            for value in [7, 8] {
                topic.publish("k", &value).await.unwrap();
            }
            let (_, mut body) = open(&app(topic.clone()), id).await;
            assert!(frame(&mut body).await.starts_with("retry: 2000\n"));
            for number in [1, 2] {
                let text = frame(&mut body).await;
                let (seq, value) = (2 * round + number, number + 6);
                let (id, rest) = text.strip_prefix("id: ").unwrap().split_once('\n').unwrap();
                assert_eq!(id.parse::<EventId>().unwrap().seq(), seq);
                assert_eq!(rest, format!("event: t\ndata: {value}\n\n"));
            }
        }
    }
}

#[tokio::test]
async fn an_event_source_resumes_in_another_process_with_its_last_id() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let mut topics = Vec::new();
    for _ in 0..2 {
        topics.push(Topic::new(server.store_with(&prefix).await, "t"));
    }
    let (_, mut body) = open(&app(topics[0].clone()), None).await;
    frame(&mut body).await;
    let first = topics[1].publish("k", &1).await.unwrap();
    assert!(
        frame(&mut body)
            .await
            .starts_with(&format!("id: {first}\n"))
    );
    drop(body);
    let second = topics[0].publish("k", &2).await.unwrap();
    let (_, mut body) = open(&app(topics[1].clone()), Some(&first.to_string())).await;
    frame(&mut body).await;
    assert_eq!(
        frame(&mut body).await,
        format!("id: {second}\nevent: t\ndata: 2\n\n")
    );
}

#[tokio::test]
async fn a_gap_has_the_id_before_the_next_kept_event() {
    let topic = Topic::new(MemoryStore::new(), "t").retain(2, SECOND * 60);
    let mut ids = Vec::new();
    for value in 0..5 {
        ids.push(topic.publish("k", &value).await.unwrap());
    }
    let place = format!("{}-{}", ids[2].epoch(), ids[2].seq());
    let gap = |before: &str| format!("id: {before}\nevent: gap\ndata: {{\"missed\":true}}\n\n");
    for last in [ids[0].to_string(), "5-5".to_owned(), "not an id".to_owned()] {
        let (_, mut body) = open(&app(topic.clone()), Some(&last)).await;
        frame(&mut body).await;
        assert_eq!(frame(&mut body).await, gap(&place), "{last}");
        assert_eq!(
            frame(&mut body).await,
            format!("id: {}\nevent: t\ndata: 3\n\n", ids[3])
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_comment_every_fifteen_seconds_keeps_it_open() {
    let topic = Topic::new(MemoryStore::new(), "t");
    let (_, mut body) = open(&app(topic), None).await;
    frame(&mut body).await;
    for _ in 0..3 {
        let started = tokio::time::Instant::now();
        assert_eq!(frame(&mut body).await, ":\n\n");
        assert_eq!(started.elapsed().as_secs(), 15);
    }
}

#[tokio::test]
async fn it_ends_when_told_to() {
    let topic: Topic<u64> = Topic::new(MemoryStore::new(), "t");
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let sse = topic.sse("k", LastEventId::none()).await.unwrap();
    let mut body = sse
        .until(async { drop(stopped.await) })
        .response()
        .into_body();
    assert!(body.frame().await.is_some());
    let pending = tokio::time::timeout(Duration::from_millis(10), body.frame()).await;
    assert!(pending.is_err());
    stop.send(()).unwrap();
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_store_that_is_away_is_a_503_with_retry_after() {
    let mut server = RedisServer::start().await;
    let topic = Topic::new(server.store_with("t").await, "t");
    server.kill();
    let (head, _) = open(&app(topic), None).await;
    assert_eq!(head.status, 503);
    assert!(head.headers.contains_key("retry-after"));
}
