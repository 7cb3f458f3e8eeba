//! Limits behind a fallback: the primary alone is asked, and its errors stay errors.
//!
//! Who decides instead is the layer's failure mode: under `Local` it asks the secondary, and says so.

use std::sync::Arc;
use std::time::Duration;

use super::{Bucket, Charge, RateLimitStore, Receipt, Refunded, Tag, Verdict};
use crate::backend::fallback::Fallback;
use crate::core::StoreFuture;

impl<P, S> RateLimitStore for Fallback<P, S>
where
    P: RateLimitStore,
    S: RateLimitStore + Clone,
{
    fn check_and_record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.primary().check_and_record(charges)
    }

    fn check(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.primary().check(charges)
    }

    fn record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.primary().record(charges)
    }

    fn refund(&self, receipt: &Receipt) -> StoreFuture<Refunded> {
        self.primary().refund(receipt)
    }

    fn reset(&self, buckets: &[Bucket<'_>]) -> StoreFuture<()> {
        self.primary().reset(buckets)
    }

    fn block(&self, bucket: &Bucket<'_>, duration: Duration) -> StoreFuture<()> {
        self.primary().block(bucket, duration)
    }

    fn within(&self, timeout: Duration) -> Option<Arc<dyn RateLimitStore>> {
        self.primary().within(timeout)
    }

    fn splits(&self, group: &str, tag: Tag) -> bool {
        self.primary().splits(group, tag)
    }

    fn local(&self) -> Option<Arc<dyn RateLimitStore>> {
        Some(Arc::new(self.secondary().clone()))
    }
}
