//! How long a body may take: who sends one drop by drop holds nothing here for longer, whatever route waits for it.
//!
//! Try it: `(printf 'POST /api/login HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{'; sleep 15) | nc localhost 8080`
//!
//! Proof: `a_body_that_stops_half_way_is_answered_and_holds_nothing`

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use crate::fault::Fault;

const LONGEST: Duration = Duration::from_secs(10);

/// The rest of a body that is not there in time is an error of the body. Whoever reads it says that it is incomplete; why is
/// known here.
pub async fn bounded(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let version = request.version();
    let is_late = Arc::new(AtomicBool::new(false));
    let request = request.map(|body| {
        Body::new(Timely {
            body,
            end: None,
            is_late: Arc::clone(&is_late),
        })
    });
    let response = next.run(request).await;
    if response.status() != StatusCode::BAD_REQUEST || !is_late.load(Ordering::Relaxed) {
        return response;
    }
    // What the layers within have said stays said: limits, cookies.
    let (head, body) = Fault::TOO_SLOW.into_response().into_parts();
    let mut response = response.map(|_| body);
    *response.status_mut() = head.status;
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response.headers_mut().extend(head.headers);
    response.extensions_mut().extend(head.extensions);
    if version < Version::HTTP_2 {
        // The rest may still come, and is no request.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

struct Timely {
    body: Body,
    /// There once something had to be waited for.
    end: Option<Pin<Box<Sleep>>>,
    is_late: Arc<AtomicBool>,
}

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let end = this.end.get_or_insert_with(|| Box::pin(sleep(LONGEST)));
        ready!(end.as_mut().poll(context));
        this.is_late.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(axum::Error::new("the body takes too long"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
