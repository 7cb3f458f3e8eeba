//! The layer: a store and its settings.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use tower_layer::Layer;

use super::config::Config;
use super::event::EventSet;
use super::rejection::ReservationRejection;
use super::reservations::Reservations;
use super::service::Reservation;
use super::slot::Slot;
use super::store::{LateConfirm, ReservationStore};
use crate::core::Timestamp;
use crate::core::ttl::MILLIS;

/// Gives handlers a [`ReservationGuard`](super::ReservationGuard): commits before a success is seen, rolls
/// back otherwise.
#[must_use]
#[derive(Clone, Debug)]
pub struct ReservationLayer {
    config: Arc<Config>,
}

impl ReservationLayer {
    /// Makes a layer over `store`: a [`SqlStore`](crate::backend::sql::SqlStore) or a
    /// [`MemoryStore`](crate::backend::memory::MemoryStore).
    pub fn new(store: impl ReservationStore) -> Self {
        // Registers the store's tables, so that they are made before the first transaction of all.
        drop(store.open(None));
        Self {
            config: Arc::new(Config::new(Arc::new(store))),
        }
    }

    /// Sets the life of a new hold (10 min).
    pub fn hold_for(self, length: Duration) -> Self {
        self.set(|config| config.hold_for = length)
    }

    /// Sets the latest end of a hold, from its creation, however often it is extended (24 h).
    pub fn hold_at_most(self, length: Duration) -> Self {
        self.set(|config| config.hold_at_most = length)
    }

    /// Sets the life in `processing` (11 days: vouchers).
    pub fn processing_for(self, length: Duration) -> Self {
        self.set(|config| config.processing_for = length)
    }

    /// Says what a confirmation after the end becomes ([`LateConfirm::IfFree`]).
    pub fn late_confirm(self, late: LateConfirm) -> Self {
        self.set(|config| config.late = late)
    }

    /// Says which slots the schedule has; pure. `false` is 422 `SLOT_NOT_OFFERED`.
    pub fn offered(
        self,
        offered: impl Fn(&Slot, Timestamp) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.offered = Some(Arc::new(offered)))
    }

    /// Says which events are recorded ([`EventSet::DUE`]).
    pub fn record(self, events: EventSet) -> Self {
        self.set(|config| config.record = events)
    }

    /// Changes the finished problem document of a refusal.
    pub fn on_rejection(
        self,
        hook: impl Fn(&ReservationRejection, &mut Response<Bytes>) + Send + Sync + 'static,
    ) -> Self {
        self.set(|config| config.on_rejection = Some(Arc::new(hook)))
    }

    /// Returns the same store and settings for workers, reads and retries.
    ///
    /// # Panics
    /// If `hold_for` is longer than `hold_at_most`, or shorter than a millisecond.
    #[must_use]
    pub fn reservations(&self) -> Reservations {
        self.check();
        Reservations::new(Arc::clone(&self.config))
    }

    fn set(mut self, change: impl FnOnce(&mut Config)) -> Self {
        change(Arc::make_mut(&mut self.config));
        self
    }

    #[allow(clippy::panic)]
    fn check(&self) {
        if self.config.hold_for > self.config.hold_at_most {
            panic!("hold_for must not be longer than hold_at_most");
        }
        if self.config.hold_for < MILLIS {
            panic!("hold_for must be at least a millisecond");
        }
    }
}

impl<S> Layer<S> for ReservationLayer {
    type Service = Reservation<S>;

    /// # Panics
    /// If `hold_for` is longer than `hold_at_most`, or shorter than a millisecond.
    fn layer(&self, inner: S) -> Reservation<S> {
        self.check();
        Reservation::new(inner, Arc::clone(&self.config))
    }
}
