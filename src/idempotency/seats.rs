//! Who asks or runs in this process, each at a seat of its own, and the twins that wait there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(any(feature = "sqlite", feature = "postgres"))]
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use super::record::{Content, Fingerprint, RecordId};
use crate::core::Timestamp;
use crate::core::telemetry::shift;

/// Waiters per key and per layer; more are refused.
const WAITERS_PER_KEY: usize = 128;
const WAITERS: usize = 4_096;

/// What a waiter is woken with, and what a replay is made of.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) content: Content,
    pub(super) expires_at: Timestamp,
}

/// Who runs in this process, for twins that wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(Arc<Seats>);

/// Wakes the waiters of one seat.
type Call = watch::Sender<Stage>;

/// How far the one at a seat is.
#[derive(Debug)]
enum Stage {
    /// It asks the store; whether the key is its payload's is not known yet.
    Asks,
    /// It looks whether the run of another process, or one that was lost, has ended; the key may be another payload's by
    /// now.
    Looks,
    /// The store, asked at this moment, said that the key is ours.
    Holds(
        #[cfg_attr(
            not(any(feature = "sqlite", feature = "postgres")),
            expect(dead_code, reason = "asked by those who wait for a transaction")
        )]
        Instant,
    ),
    Found(Found),
}

#[derive(Debug, Default)]
struct Seats {
    seats: Mutex<HashMap<RecordId, (Fingerprint, Call)>>,
    waiters: AtomicUsize,
}

/// What a request finds in the table.
pub(super) enum Enter {
    /// Nobody was there: twins will wait for us.
    Own(Seat),
    /// Another payload runs under this key.
    Mismatch,
    /// Another payload was found under this key: the store knows whether it still is.
    Unseated,
    /// Too many wait already.
    Crowded,
    Wait(Waiter),
}

impl Table {
    /// Says whether somebody in this process runs under this key.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(super) fn is_held(&self, id: &RecordId) -> bool {
        let seats = self.0.seats.lock();
        let seat = seats.get(id);
        seat.is_some_and(|(_, sender)| matches!(*sender.borrow(), Stage::Holds(_)))
    }

    pub(super) fn enter(&self, id: RecordId, fingerprint: Fingerprint) -> Enter {
        let mut seats = self.0.seats.lock();
        let Some((first, sender)) = seats.get(&id) else {
            seats.insert(id, (fingerprint, watch::Sender::new(Stage::Asks)));
            return Enter::Own(Seat {
                table: Arc::clone(&self.0),
                id,
            });
        };
        let is_other = first.contradicts(&fingerprint);
        if is_other {
            match *sender.borrow() {
                Stage::Asks => {}
                Stage::Looks => return Enter::Unseated,
                Stage::Holds(_) | Stage::Found(_) => return Enter::Mismatch,
            }
        }
        if sender.receiver_count() >= WAITERS_PER_KEY {
            return Enter::Crowded;
        }
        let Some(place) = self.place() else {
            return Enter::Crowded;
        };
        Enter::Wait(Waiter {
            _place: place,
            receiver: sender.subscribe(),
            is_other,
        })
    }

    /// Takes the place of one that waits, here or for another process; nothing where too many do.
    pub(super) fn place(&self) -> Option<Place> {
        let more = |waiters| (waiters < WAITERS).then_some(waiters + 1);
        let (write, read) = (Ordering::Relaxed, Ordering::Relaxed);
        self.0.waiters.fetch_update(write, read, more).ok()?;
        shift!("keep_idempotency_waiters", 1.0);
        Some(Place(Arc::clone(&self.0)))
    }
}

/// The place of one that waits.
pub(super) struct Place(Arc<Seats>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Relaxed);
        shift!("keep_idempotency_waiters", -1.0);
    }
}

/// The place of the one who asks or runs; given up when dropped, and all waiters ask for themselves.
#[derive(Debug)]
pub(super) struct Seat {
    table: Arc<Seats>,
    id: RecordId,
}

impl Seat {
    /// The store, asked then, said that the key is ours: another payload is refused from now on.
    pub(super) fn hold(&self, since: Instant) {
        self.pass_to(Stage::Holds(since));
    }

    /// The key is another process's, or may be: another payload asks the store for itself from now on.
    pub(super) fn look(&self) {
        self.pass_to(Stage::Looks);
    }

    /// Wakes all waiters with the answer.
    pub(super) fn publish(self, found: Found) {
        self.pass_to(Stage::Found(found));
    }

    fn pass_to(&self, stage: Stage) {
        if let Some((_, sender)) = self.table.seats.lock().get(&self.id) {
            sender.send_replace(stage);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.table.seats.lock().remove(&self.id);
    }
}

/// A twin that waits; it changes nothing when it leaves.
pub(super) struct Waiter {
    _place: Place,
    receiver: watch::Receiver<Stage>,
    /// Its payload is another than that of the one at the seat.
    is_other: bool,
}

impl Waiter {
    /// How long the one at the seat has been running.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(super) fn elapsed(&self) -> Duration {
        match *self.receiver.borrow() {
            Stage::Holds(since) => since.elapsed(),
            Stage::Asks | Stage::Looks | Stage::Found(_) => Duration::ZERO,
        }
    }

    /// Returns the answer, or nothing when the place was given up or is another payload's.
    pub(super) async fn wait(mut self) -> Option<Found> {
        let is_other = self.is_other;
        let is_over = |stage: &Stage| match stage {
            Stage::Asks => false,
            Stage::Looks | Stage::Holds(_) => is_other,
            Stage::Found(_) => true,
        };
        match &*self.receiver.wait_for(is_over).await.ok()? {
            Stage::Found(found) if !is_other => Some(found.clone()),
            _ => None,
        }
    }
}
