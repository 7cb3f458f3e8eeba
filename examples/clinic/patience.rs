//! How long a body may take: who sends one drop by drop holds nothing here for longer, whatever route waits for it.
//!
//! Try it: `(printf 'POST /api/login HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{'; sleep 15) | nc localhost 8080`
//!
//! Proof: `a_body_that_stops_half_way_is_answered_and_holds_nothing`

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

const LONGEST: Duration = Duration::from_secs(10);

/// The rest of a body that is not there in time is an error of the body, and whoever reads it says 400.
pub async fn bounded(request: Request, next: Next) -> Response {
    let is_whole = request.body().is_end_stream();
    let timely = |body| Body::new(Timely { body, end: None });
    let request = if is_whole {
        request
    } else {
        request.map(timely)
    };
    next.run(request).await
}

struct Timely {
    body: Body,
    /// There once something had to be waited for.
    end: Option<Pin<Box<Sleep>>>,
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
        Poll::Ready(Some(Err(axum::Error::new("the body takes too long"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
