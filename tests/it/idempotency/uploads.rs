//! Large uploads, known by their digest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use sha2::{Digest, Sha256, Sha512};
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::core::Body;
use tower_keep::idempotency::{DerivedKey, FingerprintRule, IdempotencyLayer, IdempotentRun};

use super::{clock, layer, memory};

type Piece = Result<&'static str, std::io::Error>;

/// A handler that reads uploads to their end and counts them, behind a layer that buffers 8 bytes.
struct Uploads {
    layer: IdempotencyLayer,
    begun: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
}

impl Uploads {
    fn new() -> Self {
        Self {
            layer: layer(memory(&clock()))
                .max_request_body(8)
                .fingerprint(FingerprintRule::bytes().digest_uploads()),
            begun: Arc::default(),
            done: Arc::default(),
        }
    }

    async fn send(&self, key: &str, digest: &str, pieces: Vec<Piece>) -> (u16, bool, Bytes) {
        let frames = pieces
            .into_iter()
            .map(|piece| piece.map(|text| Frame::data(Bytes::from_static(text.as_bytes()))));
        let frames: Vec<_> = frames.collect();
        let body = StreamBody::new(futures_util::stream::iter(frames));
        let (begun, done) = (Arc::clone(&self.begun), Arc::clone(&self.done));
        let inner = service_fn(move |request: Request<Body<_>>| {
            let (begun, done) = (Arc::clone(&begun), Arc::clone(&done));
            async move {
                begun.fetch_add(1, Ordering::SeqCst);
                assert!(request.extensions().get::<IdempotentRun>().is_some());
                let read = BodyExt::collect(request.into_body()).await;
                let answer = Response::builder();
                let answer = match read {
                    Ok(body) => {
                        done.fetch_add(1, Ordering::SeqCst);
                        answer.status(201).body(Full::new(body.to_bytes()))
                    }
                    Err(_) => answer.status(400).body(Full::default()),
                };
                Ok::<_, std::convert::Infallible>(answer.unwrap())
            }
        });
        let request = Request::post("/files")
            .header("idempotency-key", key)
            .header("content-digest", digest)
            .body(body)
            .unwrap();
        let response = self.layer.layer(inner).oneshot(request).await.unwrap();
        let status = response.status();
        let again = response.headers().contains_key("idempotency-replayed");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status.as_u16(), again, body)
    }

    fn counted(&self) -> (usize, usize) {
        (
            self.begun.load(Ordering::SeqCst),
            self.done.load(Ordering::SeqCst),
        )
    }
}

fn sha256(of: &str) -> String {
    let sum = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(of));
    format!("sha-256=:{sum}:")
}

fn sha512(of: &str) -> String {
    let sum = base64::engine::general_purpose::STANDARD.encode(Sha512::digest(of));
    format!("sha-512=:{sum}:")
}

const LARGE: &str = "a large upload in pieces";

fn large() -> Vec<Piece> {
    vec![Ok("a large "), Ok("upload "), Ok(""), Ok("in pieces")]
}

#[tokio::test]
async fn a_large_upload_streams_to_the_handler_and_is_known_by_its_digest() {
    for digest in [sha256(LARGE), sha512(LARGE)] {
        let uploads = Uploads::new();
        let first = uploads.send("k", &digest, large()).await;
        assert_eq!(first, (201, false, Bytes::from(LARGE)));
        let again = uploads.send("k", &digest, large()).await;
        assert_eq!(again, (201, true, first.2));
        let other = uploads.send("k", &sha256("other"), large()).await;
        assert_eq!(other.0, 422);
        assert_eq!(uploads.counted(), (1, 1));
    }
}

#[tokio::test]
async fn a_wrong_digest_is_400_and_nothing_is_kept() {
    let uploads = Uploads::new();
    let small = || vec![Ok("small")];
    let (status, _, body) = uploads.send("s", &sha256("smell"), small()).await;
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (status, &problem["code"]),
        (400, &"IDEMPOTENCY_DIGEST_MISMATCH".into())
    );
    assert_eq!(uploads.counted(), (0, 0), "the handler was not asked");
    let (status, _, body) = uploads.send("l", &sha256("a large lie"), large()).await;
    let problem: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (status, &problem["code"]),
        (400, &"IDEMPOTENCY_DIGEST_MISMATCH".into())
    );
    assert_eq!(uploads.counted(), (1, 0), "it never saw the end");
    assert_eq!(uploads.send("s", &sha256("small"), small()).await.0, 201);
    assert_eq!(uploads.send("l", &sha256(LARGE), large()).await.0, 201);
    assert_eq!(uploads.counted(), (3, 2));
}

#[tokio::test]
async fn a_key_that_is_made_of_the_body_wants_it_whole() {
    let mut uploads = Uploads::new();
    let key = DerivedKey::by("files", |_, body| Some(vec![body.len() as u8 + 1]));
    uploads.layer = uploads.layer.derive(key);
    assert_eq!(uploads.send("-", &sha256(LARGE), large()).await.0, 413);
    let small = vec![Ok("small")];
    assert_eq!(uploads.send("-", &sha256("small"), small).await.0, 201);
    assert_eq!(uploads.counted(), (1, 1));
}

#[tokio::test]
async fn an_upload_that_breaks_off_is_not_remembered_and_without_a_digest_the_limit_stands() {
    let uploads = Uploads::new();
    let cut = vec![
        Ok("a large "),
        Ok("upload "),
        Err(std::io::Error::other("cut")),
    ];
    assert_eq!(uploads.send("k", &sha256(LARGE), cut).await.0, 400);
    let retry = uploads.send("k", &sha256(LARGE), large()).await;
    assert_eq!((retry.0, retry.1), (201, false));
    let early = vec![Ok("a"), Err(std::io::Error::other("cut"))];
    assert_eq!(uploads.send("e", &sha256(LARGE), early).await.0, 400);
    assert_eq!(uploads.counted(), (2, 1), "nothing was claimed");
    for none in ["md5=:AAAA:", "x", "sha-256=:AAAA:"] {
        let status = uploads.send("n", none, large()).await.0;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE.as_u16(), "{none}");
    }
}
