//! Limits behind a line that can be cut by order, for tests of an outage.

use std::sync::Arc;
use std::time::Duration;

use super::{Bucket, Charge, RateLimitStore, Receipt, Refunded, Tag, Verdict};
use crate::backend::fault::FaultStore;
use crate::core::StoreFuture;

impl<S: RateLimitStore + Clone> RateLimitStore for FaultStore<S> {
    fn check_and_record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.call(|| self.inner().check_and_record(charges))
    }

    fn check(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.call(|| self.inner().check(charges))
    }

    fn record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.call(|| self.inner().record(charges))
    }

    fn refund(&self, receipt: &Receipt) -> StoreFuture<Refunded> {
        self.call(|| self.inner().refund(receipt))
    }

    fn reset(&self, buckets: &[Bucket<'_>]) -> StoreFuture<()> {
        self.call(|| self.inner().reset(buckets))
    }

    fn block(&self, bucket: &Bucket<'_>, duration: Duration) -> StoreFuture<()> {
        self.call(|| self.inner().block(bucket, duration))
    }

    fn within(&self, timeout: Duration) -> Option<Arc<dyn RateLimitStore>> {
        Some(match self.inner().within(timeout) {
            Some(inner) => Arc::new(self.over(inner, timeout)),
            None => Arc::new(self.over(self.inner().clone(), timeout)),
        })
    }

    fn splits(&self, group: &str, tag: Tag) -> bool {
        self.inner().splits(group, tag)
    }

    fn local(&self) -> Option<Arc<dyn RateLimitStore>> {
        self.inner().local()
    }
}
