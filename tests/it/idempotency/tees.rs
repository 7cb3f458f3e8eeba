//! Answers too large to be waited for: copied on their way out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::BodyExt;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::SECOND;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::idempotency::{Directive, IdempotencyLayer};

use super::{Inner, clock, layer, memory, post};

/// A body that says its size and comes in pieces; a piece that is missing is an error.
struct Pieces {
    size: u64,
    pieces: VecDeque<Option<&'static str>>,
    trailers: Option<HeaderMap>,
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(match self.pieces.pop_front() {
            Some(Some(piece)) => Some(Ok(Frame::data(Bytes::from_static(piece.as_bytes())))),
            Some(None) => Some(Err(std::io::Error::other("cut"))),
            None => self.trailers.take().map(Frame::trailers).map(Ok),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.size)
    }
}

/// A handler whose answers have such a body, behind a layer that waits for 4 bytes and copies 20.
#[derive(Clone)]
struct Large {
    layer: IdempotencyLayer,
    runs: Arc<AtomicUsize>,
    pieces: &'static [Option<&'static str>],
    size: u64,
}

impl Large {
    fn new(store: MemoryStore, size: u64, pieces: &'static [Option<&'static str>]) -> Self {
        Self {
            layer: layer(store).max_response_body(4).tee_up_to(20),
            runs: Arc::default(),
            pieces,
            size,
        }
    }

    async fn send(&self) -> Response<tower_keep::core::Body<Pieces>> {
        self.say(None).await
    }

    async fn say(&self, directive: Option<Directive>) -> Response<tower_keep::core::Body<Pieces>> {
        let own = self.clone();
        let inner = service_fn(move |_: Inner| {
            own.runs.fetch_add(1, Ordering::SeqCst);
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", http::HeaderValue::from_static("7"));
            trailers.insert("server-timing", http::HeaderValue::from_static("db"));
            trailers.insert("set-cookie", http::HeaderValue::from_static("id=1"));
            let body = Pieces {
                size: own.size,
                pieces: own.pieces.iter().copied().collect(),
                trailers: Some(trailers),
            };
            let answer = Response::builder().status(201).header("etag", "\"v1\"");
            let mut response = answer.body(body).unwrap();
            if let Some(directive) = directive {
                response.extensions_mut().insert(directive);
            }
            async move { Ok::<_, Infallible>(response) }
        });
        let service = self.layer.layer(inner);
        service.oneshot(post("/pay", "k", "{}")).await.unwrap()
    }

    /// Waits for what goes on in the background, then sends the request again.
    async fn again(&self) -> (u16, Bytes, Option<HeaderMap>) {
        assert_eq!(self.layer.drain(20 * SECOND).await.abandoned, 0);
        let response = self.send().await;
        assert_eq!(self.runs.load(Ordering::SeqCst), 1, "it ran once");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap();
        let trailers = body.trailers().cloned();
        (status, body.to_bytes(), trailers)
    }
}

const WHOLE: &[Option<&str>] = &[Some("abc"), Some(""), Some("defg"), Some("hij")];

#[tokio::test]
async fn a_large_answer_is_kept_once_it_has_gone_out() {
    let large = Large::new(memory(&clock()), 10, WHOLE);
    let first = large.send().await;
    assert_eq!(first.body().size_hint().exact(), Some(10));
    let (early, _, _) = large.again_while_out().await;
    assert_eq!(early, 409, "it ran, and its answer is on its way");
    let first = first.into_body().collect().await.unwrap();
    let (status, body, trailers) = large.again().await;
    assert_eq!((status, &body[..]), (201, &b"abcdefghij"[..]));
    assert_eq!(trailers, kept());
    assert_eq!(first.trailers().map(HeaderMap::len), Some(3));
    assert_eq!(first.to_bytes(), body);
}

/// What is kept of the trailers: what does not belong to the first client.
fn kept() -> Option<HeaderMap> {
    let sum = (
        http::HeaderName::from_static("x-sum"),
        http::HeaderValue::from_static("7"),
    );
    Some([sum].into_iter().collect())
}

#[tokio::test]
async fn trailers_of_one_exchange_are_not_kept_either() {
    let small = Large::new(memory(&clock()), 3, &[Some("abc")]);
    let first = small.send().await.into_body().collect().await.unwrap();
    assert_eq!(first.trailers().map(HeaderMap::len), Some(3));
    assert_eq!(small.again().await, (201, Bytes::from("abc"), kept()));
    let mut bare = Large::new(memory(&clock()), 3, &[Some("abc")]);
    bare.layer = bare.layer.replay_only(["etag"]);
    drop(bare.send().await.into_body().collect().await.unwrap());
    assert_eq!(bare.again().await, (201, Bytes::from("abc"), None));
}

impl Large {
    async fn again_while_out(&self) -> (u16, Bytes, Option<HeaderMap>) {
        let response = self.send().await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap();
        (status, body.to_bytes(), None)
    }
}

#[tokio::test]
async fn a_client_that_leaves_anywhere_in_the_body_does_not_stop_the_copy() {
    for frames in 0..=WHOLE.len() {
        let large = Large::new(memory(&clock()), 10, WHOLE);
        let mut first = large.send().await.into_body();
        for _ in 0..frames {
            first.frame().await.unwrap().unwrap();
        }
        drop(first);
        let (status, body, _) = large.again().await;
        assert_eq!((status, &body[..]), (201, &b"abcdefghij"[..]), "{frames}");
    }
}

#[tokio::test]
async fn a_copy_of_a_body_that_always_has_one_more_empty_frame_lets_others_work() {
    let mut pieces = vec![Some(""); 100_000];
    pieces.push(Some("abcdefghij"));
    let large = Large::new(memory(&clock()), 10, pieces.leak());
    drop(large.send().await);
    let mut copied = std::pin::pin!(large.layer.drain(20 * SECOND));
    let mut turns = 0;
    let left = loop {
        tokio::select! {
            biased;
            left = copied.as_mut() => break left,
            () = tokio::task::yield_now() => turns += 1,
        }
    };
    assert_eq!(left.abandoned, 0);
    assert!(turns > 100, "{turns} turns");
    assert_eq!(
        large.again().await,
        (201, Bytes::from("abcdefghij"), kept())
    );
}

#[tokio::test]
async fn a_body_that_is_not_what_it_said_leaves_the_tombstone() {
    let wrong: [(u64, &'static [Option<&'static str>]); 3] = [
        (10, &[Some("abcdef"), None]),
        (10, &[Some("abcdef")]),
        (10, &[Some("abcdef"), Some("ghijklm")]),
    ];
    for leaves in [false, true] {
        for (size, pieces) in wrong {
            let large = Large::new(memory(&clock()), size, pieces);
            let first = large.send().await.into_body();
            if leaves {
                drop(first);
            } else {
                let _ = first.collect().await;
            }
            assert_eq!(large.again().await.0, 409, "{pieces:?}");
        }
    }
}

#[tokio::test]
async fn what_is_larger_than_a_tee_or_not_to_be_kept_is_not_copied() {
    let large = Large::new(memory(&clock()), 21, &[Some("abcdefghijklmnopqrstu")]);
    let first = large.send().await.into_body().collect().await.unwrap();
    assert_eq!(first.to_bytes().len(), 21);
    assert_eq!(large.again().await.0, 409);
    let large = Large::new(memory(&clock()), 10, WHOLE);
    let released = large.say(Some(Directive::Release)).await;
    drop(released.into_body().collect().await.unwrap());
    large.runs.store(0, Ordering::SeqCst);
    assert_eq!(large.again().await.0, 201, "it ran again");
}

#[tokio::test]
async fn a_large_answer_is_kept_for_as_long_as_the_handler_says() {
    let clock = clock();
    let large = Large::new(memory(&clock), 10, WHOLE);
    let first = large.say(Some(Directive::StoreFor(10 * SECOND))).await;
    drop(first.into_body().collect().await.unwrap());
    assert_eq!(large.again().await.0, 201);
    clock.advance(10 * SECOND);
    large.runs.store(0, Ordering::SeqCst);
    drop(large.send().await.into_body().collect().await.unwrap());
    assert_eq!(large.runs.load(Ordering::SeqCst), 1, "its time was over");
}
