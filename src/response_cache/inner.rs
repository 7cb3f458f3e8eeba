//! The inner service of one request: readied for the first call, and for any further one.

use std::future::poll_fn;

use tower_service::Service;

/// The inner service: the readied one for the first call, clones of it for any further one.
pub(super) struct Inner<S> {
    ready: Option<S>,
    spare: Option<S>,
}

impl<S: Clone> Inner<S> {
    pub(super) const fn new(ready: S) -> Self {
        Self {
            ready: Some(ready),
            spare: None,
        }
    }

    /// Gives readiness back while this request waits for others: it may be a place that they need.
    pub(super) fn rest(&mut self) {
        if let Some(ready) = self.ready.take() {
            self.spare = Some(ready.clone());
        }
    }

    /// Calls it, waiting for readiness where that was used up by an earlier call.
    pub(super) async fn call<Q>(&mut self, request: Q) -> Result<S::Response, S::Error>
    where
        S: Service<Q>,
    {
        let mut service = match self.ready.take() {
            Some(ready) => ready,
            None => {
                // There is a spare from the first call or rest on.
                let Some(mut service) = self.spare.take() else {
                    return std::future::pending().await;
                };
                poll_fn(|cx| service.poll_ready(cx)).await?;
                service
            }
        };
        let call = service.call(request);
        self.spare = Some(service);
        call.await
    }
}
