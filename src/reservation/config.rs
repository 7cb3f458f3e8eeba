//! What layer, guards and workers are set to; all defaults in one place.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use smallvec::SmallVec;

use super::event::EventSet;
use super::hold::{HoldId, HoldToken};
use super::rejection::{ReservationError, ReservationRejection};
use super::slot::{Slot, SlotError, Slots, is_text};
use super::store::{HoldWish, LateConfirm, ReservationStore};
use crate::core::Timestamp;
use crate::core::telemetry::count;
use crate::core::ttl::{DAY, HOUR, MINUTE};

type Offered = dyn Fn(&Slot, Timestamp) -> bool + Send + Sync;
type OnRejection = dyn Fn(&ReservationRejection, &mut Response<Bytes>) + Send + Sync;

#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) store: Arc<dyn ReservationStore>,
    pub(crate) hold_for: Duration,
    pub(crate) hold_at_most: Duration,
    pub(crate) processing_for: Duration,
    pub(crate) late: LateConfirm,
    pub(crate) offered: Option<Arc<Offered>>,
    pub(crate) record: EventSet,
    pub(crate) on_rejection: Option<Arc<OnRejection>>,
}

impl Config {
    pub(crate) fn new(store: Arc<dyn ReservationStore>) -> Self {
        Self {
            store,
            hold_for: 10 * MINUTE,
            hold_at_most: 24 * HOUR,
            processing_for: 11 * DAY,
            late: LateConfirm::IfFree,
            offered: None,
            record: EventSet::DUE,
            on_rejection: None,
        }
    }

    /// Checks a wish before any store call: nothing is held that the schedule does not have. What is refused here is
    /// counted.
    pub(crate) fn wish(
        &self,
        slots: Slots,
        holder: &str,
        key: &str,
        hold_for: Option<Duration>,
    ) -> Result<(HoldWish, HoldToken), ReservationError> {
        let checked = self.checked(slots, holder, key, hold_for);
        if checked.is_err() {
            count!("keep_reservation_holds_total", 1, "outcome" => "refused");
        }
        checked
    }

    fn checked(
        &self,
        slots: Slots,
        holder: &str,
        key: &str,
        hold_for: Option<Duration>,
    ) -> Result<(HoldWish, HoldToken), ReservationError> {
        let now = self.store.now();
        let slots = slots.checked()?;
        if !is_text(holder, 1, 128) {
            return Err(SlotError::Holder.into());
        }
        if !is_text(key, 0, 64) {
            return Err(SlotError::Key.into());
        }
        let hold_for = hold_for.unwrap_or(self.hold_for);
        if hold_for < Duration::from_millis(1) || hold_for > self.hold_at_most {
            return Err(SlotError::Length.into());
        }
        let past = |slot: &Slot| slot.end <= now || (slot.start < now && !slot.in_progress);
        if slots.iter().any(past) {
            return Err(ReservationError::SlotInPast);
        }
        if let Some(offered) = &self.offered
            && !slots.iter().all(|slot| offered(slot, now))
        {
            return Err(ReservationError::SlotNotOffered);
        }
        let token = HoldToken::fresh().map_err(|_| ReservationError::Internal)?;
        let wish = HoldWish {
            id: HoldId::fresh(now),
            slots: shared(slots),
            holder: holder.into(),
            key: key.into(),
            token: token.hash(),
            // What is to last for ever ends with the calendar.
            hold_for: hold_for.min(Timestamp::MAX.since(now)),
            record: self.record,
        };
        Ok((wish, token))
    }

    /// Shows a refusal that the handler returned to the hook. What others have added to the response stays: its
    /// status, its fields, its extensions.
    pub(crate) fn pass<B>(
        &self,
        rejection: &ReservationRejection,
        inner: Response<B>,
    ) -> Response<Bytes> {
        let mut document = rejection.response();
        let (parts, _) = inner.into_parts();
        *document.status_mut() = parts.status;
        let own = std::mem::take(document.headers_mut());
        *document.headers_mut() = parts.headers;
        // The body is the document's: so are the fields about it.
        for about_body in [CONTENT_LENGTH, CONTENT_ENCODING, TRANSFER_ENCODING] {
            document.headers_mut().remove(about_body);
        }
        document.headers_mut().extend(own);
        *document.extensions_mut() = parts.extensions;
        if let Some(hook) = &self.on_rejection {
            hook(rejection, &mut document);
        }
        document
    }

    /// Makes the response of a refusal, with the hook applied.
    pub(crate) fn refuse(&self, rejection: &ReservationRejection) -> Response<Bytes> {
        let mut response = rejection.response();
        if let Some(hook) = &self.on_rejection {
            hook(rejection, &mut response);
        }
        response
    }
}

/// Most wishes are for one slot, which needs no list on its way.
fn shared(slots: SmallVec<[Slot; 1]>) -> Arc<[Slot]> {
    match slots.into_inner() {
        Ok(only) => Arc::new(only),
        Err(slots) => slots.into_vec().into(),
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("store", &self.store)
            .field("hold_for", &self.hold_for)
            .field("hold_at_most", &self.hold_at_most)
            .field("processing_for", &self.processing_for)
            .field("late", &self.late)
            .field("record", &self.record)
            .finish_non_exhaustive()
    }
}
