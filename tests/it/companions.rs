//! The layers among the companions that services stack around them: tower's, tower-http's, axum's routers, hyper's connections.

mod bodies;
mod connections;
mod permits;
mod routes;
mod shutdown;
mod timeouts;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::Semaphore;
use tower::service_fn;
use tower::util::BoxCloneService;
use tower_keep::core::Body;

/// A handler's door: it tells who is inside, and lets them out when it is opened.
#[derive(Clone)]
pub struct Gate {
    runs: Arc<AtomicUsize>,
    inside: Arc<Semaphore>,
    out: Arc<Semaphore>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            runs: Arc::default(),
            inside: Arc::new(Semaphore::new(0)),
            out: Arc::new(Semaphore::new(0)),
        }
    }
}

impl Gate {
    /// Goes in, and waits to be let out; returns the number of the run.
    pub async fn pass(&self) -> usize {
        let run = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
        self.inside.add_permits(1);
        self.out.acquire().await.unwrap().forget();
        run
    }

    /// Waits until one more has gone in.
    pub async fn entered(&self) {
        self.inside.acquire().await.unwrap().forget();
    }

    /// Lets so many out, now or later.
    pub fn open(&self, count: usize) {
        self.out.add_permits(count);
    }

    pub fn runs(&self) -> usize {
        self.runs.load(Ordering::SeqCst)
    }
}

/// A request as the layers hand it on.
type Asked = Request<Body<Full<Bytes>>>;

/// A service behind a gate that answers with the number of the run, the first time with a status of one's choice.
pub fn runs<E: Send + 'static>(
    gate: &Gate,
    first: StatusCode,
) -> BoxCloneService<Asked, Response<Full<Bytes>>, E> {
    let gate = gate.clone();
    BoxCloneService::new(service_fn(move |_| {
        let gate = gate.clone();
        async move {
            let run = gate.pass().await;
            let mut answer = Response::new(Full::from(format!("run {run}")));
            if run == 1 {
                *answer.status_mut() = first;
            }
            Ok(answer)
        }
    }))
}
