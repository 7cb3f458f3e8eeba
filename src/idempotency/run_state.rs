//! How far a request is, and what its handler is told of its run.

use std::fmt;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

use super::record::{Fence, RecordId};
use crate::core::telemetry::{count, warn};

/// How far a request is, shared by its future, its handler and the task that takes over.
#[derive(Debug, Default)]
pub(super) struct RunState {
    /// How often a drain had given up before it came.
    came: u64,
    stage: AtomicU8,
    client_left: AtomicBool,
    is_given_up: AtomicBool,
    is_lost: AtomicBool,
    lost: Notify,
    owner: OnceLock<(RecordId, Fence)>,
}

const IDLE: u8 = 0;
const CLAIMED: u8 = 1;

impl RunState {
    pub(super) fn of(came: u64) -> Self {
        Self {
            came,
            ..Self::default()
        }
    }

    pub(super) const fn came(&self) -> u64 {
        self.came
    }

    /// The store may hold a claim of ours from now on.
    pub(super) fn claiming(&self) {
        self.stage.store(CLAIMED, Ordering::Release);
    }

    pub(super) fn begun(&self, id: RecordId, fence: Fence) {
        // Claimed once per request: nothing else ever sets it.
        let _ = self.owner.set((id, fence));
    }

    /// The store holds no claim of ours, or nothing more can be done about it.
    pub(super) fn idle(&self) {
        self.stage.store(IDLE, Ordering::Release);
    }

    pub(super) fn has_claimed(&self) -> bool {
        self.stage.load(Ordering::Acquire) == CLAIMED
    }

    pub(super) fn client_left(&self) {
        self.client_left.store(true, Ordering::Release);
    }

    pub(super) fn has_client_left(&self) -> bool {
        self.client_left.load(Ordering::Acquire)
    }

    /// The process ends before the run does: its lease is not renewed any more.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
        self.lose();
    }

    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Acquire)
    }

    pub(super) fn lose(&self) {
        if !self.is_lost.swap(true, Ordering::AcqRel) {
            count!("keep_idempotency_leases_lost_total", 1);
            warn!("idempotency: a run lost its lease, another may take over");
            self.lost.notify_waiters();
        }
    }
}

/// The run of this request, for its handler: a request extension and an axum extractor.
#[derive(Clone)]
pub struct IdempotentRun(pub(super) Arc<RunState>);

impl IdempotentRun {
    /// A run whose claim lives and ends with its transaction: its lease is never lost.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(super) fn new(id: RecordId, fence: Fence) -> Self {
        let state = RunState::default();
        state.begun(id, fence);
        Self(Arc::new(state))
    }

    /// Returns a number that rises with every owner of this key: write it beside the effect, and write only
    /// `… where last_fence < $1`, so that an owner who lost its lease changes nothing.
    #[must_use]
    pub fn fence(&self) -> u64 {
        self.0.owner.get().map_or(0, |(_, fence)| fence.0)
    }

    /// Returns the id of the record, for logs and for operators.
    #[must_use]
    pub fn id(&self) -> RecordId {
        self.0
            .owner
            .get()
            .map_or(RecordId::from_bytes([0; 32]), |(id, _)| *id)
    }

    /// Says whether the lease was lost: another may run, or have run, with this key.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.0.is_lost.load(Ordering::Acquire)
    }

    /// Waits until the lease is lost; for ever where it never is.
    pub async fn lost(&self) {
        let mut waiting = pin!(self.0.lost.notified());
        waiting.as_mut().enable();
        if !self.is_lost() {
            waiting.await;
        }
    }
}

impl fmt::Debug for IdempotentRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdempotentRun")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}
