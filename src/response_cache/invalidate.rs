//! Invalidation: in this process at once, in the store as soon as it hears of it.

use crate::core::StoreError;

use super::cache::Cache;
use super::handle::InvalidateOutcome;
use super::stamps::Change;
use super::store::Place;

/// As many targets as one call carries.
const TARGETS_PER_CALL: usize = 64;

impl Cache {
    /// Invalidates here and in the store; what the store cannot hear now is kept for it.
    pub(super) async fn invalidate(&self, mut changes: Vec<Change>) -> InvalidateOutcome {
        changes.sort_unstable();
        changes.dedup();
        let mut outcome = InvalidateOutcome::Done;
        for part in changes.chunks(TARGETS_PER_CALL) {
            match self.store.invalidate(part).await {
                Ok(stamp) => self.stamps.apply_own(part, stamp),
                Err(_) => {
                    self.failed("invalidate");
                    self.stamps.queue(part);
                    outcome = InvalidateOutcome::Queued;
                }
            }
        }
        if self.place == Place::Process {
            self.sync_now();
        }
        outcome
    }

    /// Tells the store what was invalidated while it was away, before it is believed again.
    pub(super) async fn tell_queued(&self) -> Result<(), StoreError> {
        let queued = self.stamps.queued();
        for part in queued.chunks(TARGETS_PER_CALL) {
            let stamp = self.store.invalidate(part).await?;
            self.stamps.told(part, stamp);
        }
        Ok(())
    }
}
