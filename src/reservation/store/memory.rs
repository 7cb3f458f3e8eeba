//! Holds in this process: a transaction takes the locks of the lanes it touches, keeps its changes aside,
//! and applies them in one update at its end.

mod book;
mod calendar;
mod locks;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;
use parking_lot::Mutex;

use self::book::{Book, Changes};
use self::calendar::MemoryCalendar;
use self::locks::Held;
use super::calendar::{Calendar, Outbox};
use super::steps;
use super::{
    AvailabilityQuery, Busy, Change, ChangeDecision, Delivery, Ended, HoldDecision, HoldRecord,
    HoldWish, ReservationStore, ReservationTransaction, SweepLimits, SweptBatch,
};
use crate::backend::memory::MemoryStore;
use crate::core::{
    AfterWork, End, Ending, RollbackCause, StoreError, StoreErrorKind, StoreFuture, Timestamp,
    Vote, run_all,
};
use crate::reservation::event::{EventId, EventSet, ReservationEvent};
use crate::reservation::hold::HoldRef;

/// What all members of one request's transaction share.
struct Shared {
    store: MemoryStore,
    open: tokio::sync::Mutex<Open>,
    said: Mutex<Said>,
}

/// The open transaction: what it has changed, and the locks it has.
#[derive(Default)]
struct Open {
    changes: Changes,
    held: Held,
}

#[derive(Default)]
struct Said {
    closed: bool,
    doom: Option<RollbackCause>,
    rollback: Option<RollbackCause>,
    after: Vec<AfterWork>,
}

struct MemoryReservations {
    shared: Arc<Shared>,
    owner: bool,
}

/// The transactions of a request, one per store.
#[derive(Clone, Default)]
struct Members(Vec<Arc<Shared>>);

impl Shared {
    fn new(store: &MemoryStore) -> Arc<Self> {
        Arc::new(Self {
            store: store.clone(),
            open: tokio::sync::Mutex::new(Open::default()),
            said: Mutex::new(Said::default()),
        })
    }

    fn is_on(&self, store: &MemoryStore) -> bool {
        std::ptr::eq(self.store.part::<Book>(), store.part::<Book>())
    }

    fn usable(&self) -> Result<(), StoreError> {
        let said = self.said.lock();
        if said.closed || said.doom.is_some() {
            return Err(StoreErrorKind::Failed.into());
        }
        Ok(())
    }

    fn doom(&self, cause: RollbackCause) {
        self.said.lock().doom.get_or_insert(cause);
    }

    fn commit_so_far(&self, open: &mut Open) -> Ended {
        let refused = {
            let said = self.said.lock();
            // While a leaked guard waited for it, all of it has ended.
            let over = said.closed.then_some(RollbackCause::Leaked);
            said.doom.or(said.rollback).or(over)
        };
        self.settle(open, refused)
    }

    /// Ends it; a step that still runs has been leaked.
    fn finish(&self, keep: Result<(), RollbackCause>) -> Ended {
        match self.open.try_lock() {
            Ok(mut open) => self.settle(&mut open, keep.err()),
            Err(_) => self.tell(Some(keep.err().unwrap_or(RollbackCause::Leaked))),
        }
    }

    /// Applies what was written so far, or forgets it.
    fn settle(&self, open: &mut Open, refused: Option<RollbackCause>) -> Ended {
        let Open { changes, held } = std::mem::take(open);
        if refused.is_none() {
            self.store.part::<Book>().apply(changes);
        }
        // The locks go last: whoever waits for one sees what was applied.
        drop(held);
        self.tell(refused)
    }

    /// Starts what waited for the end.
    fn tell(&self, refused: Option<RollbackCause>) -> Ended {
        let end = refused.map_or(End::Committed, End::RolledBack);
        let work = std::mem::take(&mut self.said.lock().after);
        if let (false, Ok(runtime)) = (work.is_empty(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(run_all(work, end));
        }
        refused.map_or(Ended::Committed, Ended::RolledBack)
    }
}

/// Runs `$body` as one step of `$shared`; dropped half-way or failing, it dooms the transaction.
macro_rules! operate {
    ($shared:expr, |$calendar:ident| $body:expr) => {{
        let shared: Arc<Shared> = $shared;
        StoreFuture::boxed(async move {
            shared.usable()?;
            let mut open = shared.open.lock().await;
            shared.usable()?;
            let mut fuse = Fuse(Some(&shared));
            let Open { changes, held } = &mut *open;
            let mut own = MemoryCalendar {
                store: &shared.store,
                changes,
                held,
            };
            let $calendar = &mut own;
            let done = $body;
            if done.is_ok() {
                fuse.0 = None;
            }
            done
        })
    }};
}

struct Fuse<'s>(Option<&'s Arc<Shared>>);

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        if let Some(shared) = self.0 {
            shared.doom(RollbackCause::Poisoned);
        }
    }
}

impl ReservationStore for MemoryStore {
    fn now(&self) -> Timestamp {
        Timestamp::of(&self.clock())
    }

    fn open(&self, request: Option<&mut Extensions>) -> Arc<dyn ReservationTransaction> {
        let Some(extensions) = request else {
            return Arc::new(MemoryReservations::alone(self));
        };
        let members = extensions.get_or_insert_default::<Members>();
        members.0.retain(|member| !member.said.lock().closed);
        if let Some(member) = members.0.iter().find(|member| member.is_on(self)) {
            return Arc::new(MemoryReservations {
                shared: Arc::clone(member),
                owner: false,
            });
        }
        let own = MemoryReservations::alone(self);
        members.0.push(Arc::clone(&own.shared));
        Arc::new(own)
    }

    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision> {
        alone(self, move |own| own.hold(wish))
    }

    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>> {
        StoreFuture::ok(self.part::<Book>().find(&by, ReservationStore::now(self)))
    }

    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>> {
        let now = ReservationStore::now(self);
        let spans = self.part::<Book>().busy(&query, now, &Changes::default());
        StoreFuture::ready(super::bounded(Ok(spans)))
    }

    fn sweep(&self, limits: SweepLimits) -> StoreFuture<SweptBatch> {
        alone(self, move |own| {
            operate!(Arc::clone(&own.shared), |calendar| {
                steps::sweep(calendar, limits).await
            })
        })
    }

    fn told(&self) -> StoreFuture<()> {
        let told = Arc::clone(&self.part::<Book>().told);
        StoreFuture::boxed(async move {
            told.notified().await;
            Ok(())
        })
    }

    fn take_events(&self, limit: u32, lease: Duration) -> StoreFuture<Vec<ReservationEvent>> {
        alone(self, move |own| {
            operate!(Arc::clone(&own.shared), |calendar| {
                calendar.take_events(limit, lease).await
            })
        })
    }

    fn settle_events(&self, outcomes: Vec<(EventId, Delivery)>) -> StoreFuture<()> {
        alone(self, move |own| {
            operate!(Arc::clone(&own.shared), |calendar| {
                steps::settle(calendar, &outcomes).await
            })
        })
    }
}

/// Runs one step as a transaction of its own.
fn alone<T: Send + 'static>(
    store: &MemoryStore,
    work: impl FnOnce(&MemoryReservations) -> StoreFuture<T>,
) -> StoreFuture<T> {
    let own = MemoryReservations::alone(store);
    let working = work(&own);
    StoreFuture::boxed(async move {
        let answer = working.await?;
        match own.end(Ending::Commit).await? {
            Ended::Committed => Ok(answer),
            _ => Err(StoreErrorKind::Failed.into()),
        }
    })
}

impl MemoryReservations {
    fn alone(store: &MemoryStore) -> Self {
        Self {
            shared: Shared::new(store),
            owner: true,
        }
    }
}

impl ReservationTransaction for MemoryReservations {
    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision> {
        operate!(Arc::clone(&self.shared), |calendar| {
            steps::hold(calendar, &wish).await
        })
    }

    fn change(
        &self,
        target: HoldRef,
        change: Change,
        record: EventSet,
    ) -> StoreFuture<ChangeDecision> {
        operate!(Arc::clone(&self.shared), |calendar| {
            steps::change(calendar, &target, &change, record).await
        })
    }

    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>> {
        operate!(Arc::clone(&self.shared), |calendar| {
            steps::find(calendar, &by).await
        })
    }

    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>> {
        let spans = operate!(Arc::clone(&self.shared), |calendar| {
            calendar.busy(&query).await
        });
        spans.then(super::bounded)
    }

    fn vote(&self, vote: Vote) {
        if let Vote::Rollback(cause) = vote {
            self.shared.said.lock().rollback.get_or_insert(cause);
        }
    }

    fn after(&self, work: AfterWork) {
        self.shared.said.lock().after.push(work);
    }

    fn commit(&self) -> StoreFuture<Ended> {
        if !self.owner {
            return StoreFuture::ok(Ended::Member);
        }
        if let Ok(mut open) = self.shared.open.try_lock() {
            return StoreFuture::ok(self.shared.commit_so_far(&mut open));
        }
        // Another guard's step is under way: it belongs to what is committed here.
        let shared = Arc::clone(&self.shared);
        StoreFuture::boxed(async move {
            let mut open = shared.open.lock().await;
            Ok(shared.commit_so_far(&mut open))
        })
    }

    fn end(&self, ending: Ending) -> StoreFuture<Ended> {
        if !self.owner {
            if ending == Ending::Rollback {
                self.vote(Vote::Rollback(RollbackCause::Cancelled));
            }
            return StoreFuture::ok(Ended::Member);
        }
        let keep = {
            let mut said = self.shared.said.lock();
            said.closed = true;
            match (ending, said.doom.or(said.rollback)) {
                (Ending::Commit, None) => Ok(()),
                (_, cause) => Err(said.rollback.or(cause).unwrap_or(RollbackCause::Cancelled)),
            }
        };
        StoreFuture::ok(self.shared.finish(keep))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for MemoryReservations {
    fn drop(&mut self) {
        // A member that goes leaves the transaction to its owner.
        if self.owner && !std::mem::replace(&mut self.shared.said.lock().closed, true) {
            self.shared.finish(Err(RollbackCause::Cancelled));
        }
    }
}

impl fmt::Debug for MemoryReservations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryReservations")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}
