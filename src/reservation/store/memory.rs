//! Holds in this process: a transaction takes the locks of the lanes it touches, keeps its changes aside,
//! and applies them in one update at its end.

mod book;
mod calendar;
mod locks;

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Extensions;
use parking_lot::Mutex;
use smallvec::SmallVec;

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

/// A transaction, as its owner has it: dropped without an end, it rolls back.
struct Own {
    /// Each step keeps the transaction for as long as it takes.
    me: Weak<Self>,
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

/// A transaction that somebody else owns; without the owner there is none.
struct Joined(Weak<Own>);

/// The transactions of a request, one per store.
#[derive(Clone, Default)]
struct Members(SmallVec<[Weak<Own>; 1]>);

impl Own {
    fn new(store: &MemoryStore) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            store: store.clone(),
            open: tokio::sync::Mutex::new(Open::default()),
            said: Mutex::new(Said::default()),
        })
    }

    fn is_on(&self, store: &MemoryStore) -> bool {
        std::ptr::eq(self.store.part::<Book>(), store.part::<Book>())
    }

    fn is_closed(&self) -> bool {
        self.said.lock().closed
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

/// Runs `$body` as one step of `$own`; dropped half-way or failing, it dooms the transaction.
macro_rules! operate {
    ($own:expr, |$calendar:ident| $body:expr) => {{
        let own: Option<Arc<Own>> = $own;
        StoreFuture::boxed(async move {
            let own = own.ok_or(StoreErrorKind::Failed)?;
            own.usable()?;
            let mut open = own.open.lock().await;
            own.usable()?;
            let mut fuse = Fuse(Some(&own));
            let Open { changes, held } = &mut *open;
            let mut calendar = MemoryCalendar {
                store: &own.store,
                changes,
                held,
            };
            let $calendar = &mut calendar;
            let done = $body;
            if done.is_ok() {
                fuse.0 = None;
            }
            done
        })
    }};
}

struct Fuse<'s>(Option<&'s Own>);

impl Drop for Fuse<'_> {
    fn drop(&mut self) {
        if let Some(own) = self.0 {
            own.doom(RollbackCause::Poisoned);
        }
    }
}

impl ReservationStore for MemoryStore {
    fn now(&self) -> Timestamp {
        Timestamp::of(&self.clock())
    }

    fn open(&self, request: Option<&mut Extensions>) -> Arc<dyn ReservationTransaction> {
        let Some(extensions) = request else {
            return Own::new(self);
        };
        let Members(members) = extensions.get_or_insert_default();
        members.retain(|member| member.upgrade().is_some_and(|own| !own.is_closed()));
        let is_here = |member: &&Weak<Own>| member.upgrade().is_some_and(|own| own.is_on(self));
        if let Some(member) = members.iter().find(is_here) {
            return Arc::new(Joined(Weak::clone(member)));
        }
        let own = Own::new(self);
        members.push(Arc::downgrade(&own));
        own
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
            operate!(Some(own), |calendar| {
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
            operate!(Some(own), |calendar| {
                calendar.take_events(limit, lease).await
            })
        })
    }

    fn settle_events(&self, outcomes: Vec<(EventId, Delivery)>) -> StoreFuture<()> {
        alone(self, move |own| {
            operate!(Some(own), |calendar| {
                steps::settle(calendar, &outcomes).await
            })
        })
    }
}

/// Runs one step as a transaction of its own.
fn alone<T: Send + 'static>(
    store: &MemoryStore,
    work: impl FnOnce(Arc<Own>) -> StoreFuture<T>,
) -> StoreFuture<T> {
    let own = Own::new(store);
    let working = work(Arc::clone(&own));
    StoreFuture::boxed(async move {
        let answer = working.await?;
        match own.end(Ending::Commit).await? {
            Ended::Committed => Ok(answer),
            _ => Err(StoreErrorKind::Failed.into()),
        }
    })
}

impl ReservationTransaction for Own {
    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision> {
        operate!(self.me.upgrade(), |calendar| {
            steps::hold(calendar, &wish).await
        })
    }

    fn change(
        &self,
        target: HoldRef,
        change: Change,
        record: EventSet,
    ) -> StoreFuture<ChangeDecision> {
        operate!(self.me.upgrade(), |calendar| {
            steps::change(calendar, &target, &change, record).await
        })
    }

    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>> {
        operate!(self.me.upgrade(), |calendar| {
            steps::find(calendar, &by).await
        })
    }

    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>> {
        let spans = operate!(self.me.upgrade(), |calendar| {
            calendar.busy(&query).await
        });
        spans.then(super::bounded)
    }

    fn vote(&self, vote: Vote) {
        if let Vote::Rollback(cause) = vote {
            self.said.lock().rollback.get_or_insert(cause);
        }
    }

    fn after(&self, work: AfterWork) {
        self.said.lock().after.push(work);
    }

    fn commit(&self) -> StoreFuture<Ended> {
        if let Ok(mut open) = self.open.try_lock() {
            return StoreFuture::ok(self.commit_so_far(&mut open));
        }
        // Another guard's step is under way: it belongs to what is committed here.
        let own = self.me.upgrade();
        StoreFuture::boxed(async move {
            let own = own.ok_or(StoreErrorKind::Failed)?;
            let mut open = own.open.lock().await;
            Ok(own.commit_so_far(&mut open))
        })
    }

    fn end(&self, ending: Ending) -> StoreFuture<Ended> {
        let keep = {
            let mut said = self.said.lock();
            said.closed = true;
            match (ending, said.doom.or(said.rollback)) {
                (Ending::Commit, None) => Ok(()),
                (_, cause) => Err(said.rollback.or(cause).unwrap_or(RollbackCause::Cancelled)),
            }
        };
        StoreFuture::ok(self.finish(keep))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if !std::mem::replace(&mut self.said.get_mut().closed, true) {
            self.finish(Err(RollbackCause::Cancelled));
        }
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryReservations").finish_non_exhaustive()
    }
}

/// Asks the owner's transaction, if there still is one.
macro_rules! ask {
    ($joined:expr, |$own:ident| $asked:expr) => {
        match $joined.0.upgrade() {
            Some($own) => $asked,
            None => StoreFuture::ready(Err(StoreErrorKind::Failed.into())),
        }
    };
}

impl ReservationTransaction for Joined {
    fn hold(&self, wish: HoldWish) -> StoreFuture<HoldDecision> {
        ask!(self, |own| own.hold(wish))
    }

    fn change(
        &self,
        target: HoldRef,
        change: Change,
        record: EventSet,
    ) -> StoreFuture<ChangeDecision> {
        ask!(self, |own| own.change(target, change, record))
    }

    fn find(&self, by: HoldRef) -> StoreFuture<Option<HoldRecord>> {
        ask!(self, |own| own.find(by))
    }

    fn availability(&self, query: AvailabilityQuery) -> StoreFuture<Vec<Busy>> {
        ask!(self, |own| own.availability(query))
    }

    fn vote(&self, vote: Vote) {
        if let Some(own) = self.0.upgrade() {
            own.vote(vote);
        }
    }

    fn after(&self, work: AfterWork) {
        if let Some(own) = self.0.upgrade() {
            own.after(work);
        }
    }

    fn commit(&self) -> StoreFuture<Ended> {
        StoreFuture::ok(Ended::Member)
    }

    fn end(&self, ending: Ending) -> StoreFuture<Ended> {
        if ending == Ending::Rollback {
            self.vote(Vote::Rollback(RollbackCause::Cancelled));
        }
        StoreFuture::ok(Ended::Member)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryReservations")
            .field("joined", &true)
            .finish_non_exhaustive()
    }
}
