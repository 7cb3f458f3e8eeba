//! Invalidation: in this process at once, in the store as soon as it hears of it.

use crate::core::StoreError;

use super::ask::Ask;
use super::cache::Cache;
use super::handle::InvalidateOutcome;
use super::stamps::{Change, Stamp, Stamps};
use super::store::Place;

/// As many targets as one call carries.
const TARGETS_PER_CALL: usize = 64;

impl Cache {
    /// Invalidates here and in the store; what the store cannot hear now is kept for it.
    pub(super) async fn invalidate(&self, changes: Vec<Change>) -> InvalidateOutcome {
        self.invalidate_since(changes, None).await.0
    }

    /// The same for an answer to what `since` asks for, begun at its stamp. Says under which stamp the last change was
    /// made, if the store has heard all and nobody else has changed meanwhile what may hit that answer.
    pub(super) async fn invalidate_since(
        &self,
        mut changes: Vec<Change>,
        since: Option<(&Ask, Stamp)>,
    ) -> (InvalidateOutcome, Option<Stamp>) {
        changes.sort_unstable();
        changes.dedup();
        let mut outcome = InvalidateOutcome::Done;
        let mut last = None;
        // A client that leaves meanwhile does not undo what its request has changed.
        let mut untold = Untold {
            stamps: &self.stamps,
            changes: &changes,
        };
        // Asked before: a later stamp of its own would hide theirs.
        let is_hit = match since {
            Some((ask, begun)) => self.may_be_hit_since(ask, begun).await,
            None => false,
        };
        while let Some(part) = untold.next() {
            let told = self.store.invalidate(part).await;
            untold.pass(part.len());
            match told {
                Ok(stamp) => {
                    self.stamps.apply_own(part, stamp);
                    last = last.max(Some(stamp));
                }
                Err(_) => {
                    self.failed("invalidate");
                    self.stamps.queue(part);
                    outcome = InvalidateOutcome::Queued;
                }
            }
        }
        drop(untold);
        if self.place == Place::Process {
            self.sync_now();
        }
        let stands = !is_hit && outcome == InvalidateOutcome::Done;
        (outcome, last.filter(|_| stands))
    }

    /// Says whether an answer to what `ask` asks for may have been invalidated since `begun`, here or elsewhere.
    async fn may_be_hit_since(&self, ask: &Ask, begun: Stamp) -> bool {
        if self.place == Place::Process {
            self.sync_now();
        } else if self.sync().await.is_err() {
            return true;
        }
        self.stamps.may_hit(begun, &ask.targets())
    }

    /// Tells the store what was invalidated while it was away, before it is believed again.
    pub(super) async fn tell_queued(&self) -> Result<(), StoreError> {
        let queued = self.stamps.queued();
        for part in queued.chunks(TARGETS_PER_CALL) {
            let changes: Vec<Change> = part.iter().map(|(_, change)| *change).collect();
            let stamp = self.store.invalidate(&changes).await?;
            self.stamps.told(part, stamp);
        }
        Ok(())
    }
}

/// Changes that the store has not answered yet; dropped before, they are kept for it.
struct Untold<'a> {
    stamps: &'a Stamps,
    changes: &'a [Change],
}

impl<'a> Untold<'a> {
    fn next(&self) -> Option<&'a [Change]> {
        self.changes.chunks(TARGETS_PER_CALL).next()
    }

    fn pass(&mut self, count: usize) {
        self.changes = &self.changes[count..];
    }
}

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        if !self.changes.is_empty() {
            self.stamps.queue(self.changes);
        }
    }
}
