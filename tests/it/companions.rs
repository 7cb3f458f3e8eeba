//! The layers among the companions that services stack around them: tower's, tower-http's, axum's routers, hyper's connections.

mod bodies;
mod connections;
mod permits;
mod routes;
mod shutdown;
mod timeouts;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

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
