//! Reading along with somebody else's fetch while its body is still on its way.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tower_keep::core::{AskVisitor, Visitor};
use tower_keep::response_cache::{ResponseBody, ResponseCacheLayer};

use super::leaks::FakeSession;
use super::origin::{App, Broken, Origin, TestBody, clock, layer, request, until};

type Sent = Result<Frame<Bytes>, Broken>;

/// An origin whose bodies are written by hand, frame by frame.
#[derive(Clone, Default)]
struct Pens(Arc<Mutex<Vec<UnboundedSender<Sent>>>>);

impl Pens {
    fn write(&self, run: usize, text: &'static str) {
        self.send(run, Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
    }

    fn send(&self, run: usize, frame: Sent) {
        // Nobody reads what was dropped.
        let _ = self.0.lock()[run].send(frame);
    }

    fn close(&self) {
        self.0.lock().clear();
    }
}

fn slow(fields: &'static [(&'static str, &'static str)]) -> (Origin, Pens) {
    let pens = Pens::default();
    let own = pens.clone();
    let origin = Origin::new(move |_, _| {
        let (pen, mut frames) = unbounded_channel();
        own.0.lock().push(pen);
        let body = StreamBody::new(futures_util::stream::poll_fn(move |cx| {
            frames.poll_recv(cx)
        }));
        let mut response = Response::builder();
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let response = response.body(body.boxed_unsync()).unwrap();
        Box::pin(async { Ok(response) })
    });
    (origin, pens)
}

const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=60")];

struct Reading(Response<ResponseBody<TestBody>>);

impl Reading {
    async fn of(app: &App, fields: &'static [(&'static str, &'static str)]) -> Self {
        Self(app.try_call(request("GET", "/a", fields)).await.unwrap())
    }

    async fn frame(&mut self) -> String {
        let frame = self
            .0
            .body_mut()
            .frame()
            .await
            .expect("a frame")
            .expect("no error");
        String::from_utf8(frame.into_data().expect("data").to_vec()).unwrap()
    }

    async fn rest(self) -> Result<String, ()> {
        let body = self.0.into_body().collect().await.map_err(drop)?;
        Ok(String::from_utf8(body.to_bytes().to_vec()).unwrap())
    }
}

fn cache(most: usize) -> ResponseCacheLayer {
    layer(&clock()).max_body(most)
}

#[tokio::test]
async fn those_who_come_while_a_body_streams_read_it_from_its_first_byte() {
    let (origin, pens) = slow(FRESH);
    let app = App::new(&cache(1_000), &origin);
    let mut leader = Reading::of(&app, &[]).await;
    pens.write(0, "one ");
    assert_eq!(leader.frame().await, "one ");
    let mut joiner = Reading::of(&app, &[]).await;
    assert_eq!(
        joiner.0.headers()["cache-status"],
        "tower-keep;fwd=uri-miss;collapsed"
    );
    assert_eq!(joiner.frame().await, "one ");
    pens.write(0, "two");
    assert_eq!(joiner.frame().await, "two");
    pens.close();
    assert_eq!(joiner.rest().await.unwrap(), "");
    assert_eq!(leader.rest().await.unwrap(), "two");
    assert_eq!(app.get("/a").await.body, "one two");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn those_who_joined_read_on_though_the_leader_reads_nothing_and_leaves() {
    let (origin, pens) = slow(FRESH);
    let cache = cache(1_000);
    let app = App::new(&cache, &origin);
    let unread = Reading::of(&app, &[]).await;
    let mut others = Vec::new();
    for _ in 0..50 {
        others.push(Reading::of(&app, &[]).await);
    }
    pens.write(0, "all");
    for other in &mut others {
        assert_eq!(other.frame().await, "all");
    }
    // Whoever leaves, the others read on.
    drop(unread);
    others.truncate(7);
    pens.write(0, " the rest");
    pens.close();
    for other in others {
        assert_eq!(other.rest().await.unwrap(), " the rest");
    }
    until("landed", || cache.handle().stats().flights == 0).await;
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn a_condition_and_a_part_wait_for_the_whole() {
    let (origin, pens) = slow(&[("cache-control", "max-age=60"), ("etag", "\"1\"")]);
    let cache = cache(1_000);
    let app = App::new(&cache, &origin);
    let leader = Reading::of(&app, &[]).await;
    pens.write(0, "whole");
    let asks: [&'static [(&'static str, &'static str)]; 2] =
        [&[("if-none-match", "\"1\"")], &[("range", "bytes=0-")]];
    let waiting = asks.map(|fields| {
        let app = app.clone();
        tokio::spawn(async move { app.send(request("GET", "/a", fields)).await })
    });
    until("both wait", || cache.handle().stats().waiters == 2).await;
    pens.close();
    let [condition, part] = waiting;
    assert_eq!(condition.await.unwrap().status, 304);
    let part = part.await.unwrap();
    assert_eq!((part.status, &*part.body), (206, "whole"));
    assert_eq!(leader.rest().await.unwrap(), "whole");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn a_body_that_is_cut_is_cut_for_all_and_stored_for_nobody() {
    let (origin, pens) = slow(FRESH);
    let app = App::new(&cache(1_000), &origin);
    let leader = Reading::of(&app, &[]).await;
    let joiner = Reading::of(&app, &[]).await;
    pens.write(0, "half");
    pens.send(0, Err(Broken));
    pens.close();
    assert!(leader.rest().await.is_err());
    assert!(joiner.rest().await.is_err());
    let next = Reading::of(&app, &[]).await;
    pens.write(0, "again");
    pens.close();
    assert_eq!(next.rest().await.unwrap(), "again");
    assert_eq!(origin.calls(), 2);
}

#[tokio::test]
async fn a_session_touched_while_others_read_along_cuts_them_off() {
    let (origin, pens) = slow(FRESH);
    let app = App::new(&cache(1_000), &origin);
    let session = Arc::<FakeSession>::default();
    let mut asked = request("GET", "/a", &[]);
    let ask: Arc<dyn AskVisitor> = Arc::clone(&session) as _;
    asked.extensions_mut().insert(Visitor::new(ask));
    let leader = Reading(app.try_call(asked).await.unwrap());
    pens.write(0, "hello ");
    let mut joiner = Reading::of(&app, &[]).await;
    assert_eq!(joiner.frame().await, "hello ");
    session.mark_personal();
    pens.close();
    assert_eq!(leader.rest().await.unwrap(), "hello ");
    assert!(joiner.rest().await.is_err());
    drop(Reading::of(&app, &[]).await);
    assert_eq!(origin.calls(), 2, "nothing was stored");
}

#[tokio::test]
async fn beyond_the_limit_nobody_joins_and_who_falls_behind_the_leader_is_cut() {
    let (origin, pens) = slow(FRESH);
    let cache = cache(10);
    let app = App::new(&cache, &origin);
    let mut leader = Reading::of(&app, &[]).await;
    let mut quick = Reading::of(&app, &[]).await;
    let slow = Reading::of(&app, &[]).await;
    for text in ["12345", "67890", "abcde"] {
        pens.write(0, text);
        assert_eq!(
            (leader.frame().await, quick.frame().await),
            (text.into(), text.into())
        );
    }
    // Known as uncacheable now: the next one has a run of its own.
    until("given up", || cache.handle().stats().flights == 0).await;
    drop(Reading::of(&app, &[]).await);
    assert_eq!(origin.calls(), 2);
    for text in ["fghij", "klmno", "pqrst"] {
        pens.write(0, text);
        assert_eq!(
            (leader.frame().await, quick.frame().await),
            (text.into(), text.into())
        );
    }
    assert!(slow.rest().await.is_err());
    pens.close();
    assert_eq!(leader.rest().await.unwrap(), "");
    assert_eq!(quick.rest().await.unwrap(), "");
}

#[tokio::test]
async fn beyond_the_limit_the_leaders_reading_holds_the_body_back() {
    let (origin, pens) = slow(FRESH);
    let cache = cache(10);
    let app = App::new(&cache, &origin);
    let mut leader = Reading::of(&app, &[]).await;
    let mut joiner = Reading::of(&app, &[]).await;
    for _ in 0..100 {
        pens.write(0, "12345");
    }
    until("given up", || cache.handle().stats().flights == 0).await;
    for _ in 0..3 {
        assert_eq!(joiner.frame().await, "12345");
    }
    // Twenty bytes at most have been pulled ahead of a leader that has read none.
    let next = tokio::time::timeout(std::time::Duration::from_millis(50), async {
        for _ in 0..3 {
            joiner.frame().await;
        }
    });
    assert!(next.await.is_err());
    for _ in 0..100 {
        assert_eq!(leader.frame().await, "12345");
    }
    pens.close();
    assert_eq!(leader.rest().await.unwrap(), "");
}

#[tokio::test(start_paused = true)]
async fn beyond_the_limit_a_leader_that_does_not_read_on_holds_nobody_up_for_ever() {
    let (origin, pens) = slow(FRESH);
    let cache = cache(10);
    let app = App::new(&cache, &origin);
    let mut leader = Reading::of(&app, &[]).await;
    let mut joiner = Reading::of(&app, &[]).await;
    for _ in 0..100 {
        pens.write(0, "12345");
    }
    pens.close();
    assert_eq!(joiner.frame().await, "12345");
    // A little is not enough: it reads less than a window.
    assert_eq!(leader.frame().await, "12345");
    let read = async {
        for _ in 1..100 {
            assert_eq!(joiner.frame().await, "12345");
        }
        assert_eq!(joiner.rest().await.unwrap(), "");
    };
    let patience = std::time::Duration::from_secs(600);
    tokio::time::timeout(patience, read).await.unwrap();
    // It fell behind whoever reads.
    assert!(leader.rest().await.is_err());
}

#[tokio::test]
async fn a_body_without_end_is_shared_by_nobody_and_kept_by_nobody() {
    let (origin, pens) = slow(FRESH);
    let cache = cache(100);
    let app = App::new(&cache, &origin);
    let mut leader = Reading::of(&app, &[]).await;
    for _ in 0..10_000 {
        pens.write(0, "0123456789");
        assert_eq!(leader.frame().await, "0123456789");
        assert!(cache.handle().stats().unfinished_bytes <= 110);
    }
    drop(leader);
    assert_eq!(cache.handle().stats().unfinished_bytes, 0);
}

#[tokio::test]
async fn a_length_above_the_limit_is_passed_on_from_its_head_on() {
    let (origin, pens) = slow(&[("cache-control", "max-age=60"), ("content-length", "11")]);
    let cache = cache(10);
    let app = App::new(&cache, &origin);
    let mut response = Reading::of(&app, &[]).await;
    assert_eq!(
        response.0.headers()[header::CACHE_STATUS],
        "tower-keep;fwd=uri-miss;detail=too-large"
    );
    pens.write(0, "0123456789a");
    assert_eq!(response.frame().await, "0123456789a");
    pens.close();
    assert_eq!(cache.handle().stats().unfinished_bytes, 0);
}
