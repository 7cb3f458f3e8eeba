//! Large bodies pass through with flat memory: every frame that is alive is counted.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use bytes::Bytes;
use futures_util::stream;
use http::Response;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tower_keep::response_cache::{ResponseBody, ResponseCacheLayer};

use super::origin::{App, Origin, TestBody, clock, layer, request};

const FRAME: usize = 64 * 1_024;
/// 100 MB.
const FRAMES: usize = 1_600;
const MOST: usize = 1_024 * 1_024;

/// The bytes that are alive, and the most that ever were.
#[derive(Default)]
struct Alive {
    now: AtomicUsize,
    most: AtomicUsize,
}

/// A buffer that says when it is gone.
struct Buffer {
    bytes: Vec<u8>,
    alive: Arc<Alive>,
}

impl Buffer {
    fn frame(number: usize, alive: &Arc<Alive>) -> Bytes {
        let now = alive.now.fetch_add(FRAME, Ordering::SeqCst) + FRAME;
        alive.most.fetch_max(now, Ordering::SeqCst);
        let alive = Arc::clone(alive);
        let bytes = vec![number as u8; FRAME];
        Bytes::from_owner(Self { bytes, alive })
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.alive.now.fetch_sub(FRAME, Ordering::SeqCst);
    }
}

/// Answers with 100 MB that may be stored, but for their length; every third frame takes a turn of the scheduler.
fn endless(fields: &'static [(&'static str, &'static str)]) -> (Origin, Arc<Alive>) {
    let alive = Arc::<Alive>::default();
    let own = Arc::clone(&alive);
    let origin = Origin::new(move |_, _| {
        let alive = Arc::clone(&own);
        let frames = stream::unfold(0, move |number| {
            let alive = Arc::clone(&alive);
            async move {
                if number % 3 == 0 {
                    tokio::task::yield_now().await;
                }
                let frame = (number < FRAMES).then(|| Buffer::frame(number, &alive))?;
                Some((Ok::<_, Infallible>(Frame::data(frame)), number + 1))
            }
        });
        let body = StreamBody::new(frames).map_err(|never| match never {});
        let mut response = Response::builder();
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        let response = response.body(body.boxed_unsync()).unwrap();
        Box::pin(async { Ok(response) })
    });
    (origin, alive)
}

/// Reads a body to its end; says how many bytes came, each as it was sent.
async fn drain(response: Response<ResponseBody<TestBody>>) -> Option<usize> {
    let (mut body, mut frames) = (response.into_body(), 0);
    while let Some(frame) = body.frame().await {
        let data = frame.ok()?.into_data().ok()?;
        assert_eq!(data.len(), FRAME);
        assert!(data == vec![frames as u8; FRAME], "frame {frames}");
        frames += 1;
    }
    Some(frames * FRAME)
}

fn cache() -> ResponseCacheLayer {
    layer(&clock()).max_body(MOST)
}

#[tokio::test]
async fn a_hundred_megabytes_pass_through_with_flat_memory() {
    for fields in [
        &[("cache-control", "max-age=60")][..],
        &[
            ("cache-control", "max-age=60"),
            ("content-length", "104857600"),
        ],
        &[("cache-control", "no-store")],
    ] {
        let (origin, alive) = endless(fields);
        let cache = cache();
        let app = App::new(&cache, &origin);
        let response = app.try_call(request("GET", "/a", &[])).await.unwrap();
        assert_eq!(drain(response).await, Some(FRAME * FRAMES), "{fields:?}");
        let most = alive.most.load(Ordering::SeqCst);
        assert!(most <= MOST + 4 * FRAME, "{most} {fields:?}");
        assert_eq!(alive.now.load(Ordering::SeqCst), 0);
        assert_eq!(cache.handle().stats().unfinished_bytes, 0);
    }
}

#[tokio::test]
async fn a_body_that_always_has_one_more_empty_frame_lets_others_work_and_takes_no_room() {
    const NOTHING: usize = 1_000_000;
    let taken = Arc::<AtomicUsize>::default();
    let own = Arc::clone(&taken);
    let origin = Origin::new(move |_, _| {
        let taken = Arc::clone(&own);
        let frames = stream::poll_fn(move |_| {
            let frame = match taken.fetch_add(1, Ordering::SeqCst) {
                NOTHING => "end",
                before if before < NOTHING => "",
                _ => return Poll::Ready(None),
            };
            let frame = Frame::data(Bytes::from_static(frame.as_bytes()));
            Poll::Ready(Some(Ok::<_, Infallible>(frame)))
        });
        let body = StreamBody::new(frames).map_err(|never| match never {});
        let response = Response::builder().header("cache-control", "max-age=60");
        let response = response.body(body.boxed_unsync()).unwrap();
        Box::pin(async { Ok(response) })
    });
    let cache = cache();
    let app = App::new(&cache, &origin);
    let response = app.try_call(request("GET", "/a", &[])).await.unwrap();
    tokio::task::yield_now().await;
    assert!(taken.load(Ordering::SeqCst) < NOTHING, "others work");
    let (mut body, mut frames) = (response.into_body(), Vec::new());
    while let Some(frame) = body.frame().await {
        frames.push(frame.unwrap().into_data().unwrap());
    }
    assert_eq!(frames, ["end"]);
    let again = app.try_call(request("GET", "/a", &[])).await.unwrap();
    assert_eq!(again.into_body().collect().await.unwrap().to_bytes(), "end");
    assert_eq!(origin.calls(), 1);
}

#[tokio::test]
async fn a_hundred_megabytes_with_readers_beside_each_other_keep_to_one_window() {
    let (origin, alive) = endless(&[("cache-control", "max-age=60")]);
    let cache = cache();
    let app = App::new(&cache, &origin);
    let leader = app.try_call(request("GET", "/a", &[])).await.unwrap();
    let joiner = app.try_call(request("GET", "/a", &[])).await.unwrap();
    assert_eq!(origin.calls(), 1);
    // Beside the leader or cut off: never more than the window is kept for the slower one.
    let (whole, other) = tokio::join!(drain(leader), drain(joiner));
    assert_eq!(whole, Some(FRAME * FRAMES));
    assert!(other.is_none_or(|other| other == FRAME * FRAMES));
    let most = alive.most.load(Ordering::SeqCst);
    assert!(most <= 2 * MOST + 4 * FRAME, "{most}");
    assert_eq!(alive.now.load(Ordering::SeqCst), 0);
}
