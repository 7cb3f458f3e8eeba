//! Operations with options: built, then awaited.

use std::future::IntoFuture;
use std::pin::Pin;
use std::time::Duration;

use super::hold::{Hold, HoldRef, Payment, Settled};
use super::rejection::ReservationError;
use super::request::Request;
use super::slot::{PROCESSING_AT_MOST, SlotError, Slots};
use super::store::Change;

type Boxed<'g, T> = Pin<Box<dyn Future<Output = Result<T, ReservationError>> + Send + 'g>>;

/// A hold about to be made; await it.
///
/// # Errors
/// [`ReservationError::Conflict`] for a lost race, the `Slot…` ones before any store call, and the store's.
#[must_use = "nothing is held unless it is awaited"]
#[derive(Debug)]
pub struct Holding<'g> {
    request: &'g Request,
    slots: Slots,
    holder: &'g str,
    key: &'g str,
    hold_for: Option<Duration>,
}

impl<'g> Holding<'g> {
    pub(crate) fn new(request: &'g Request, slots: Slots, holder: &'g str) -> Self {
        Self {
            request,
            slots,
            holder,
            key: "",
            hold_for: None,
        }
    }

    /// Sets the life of this hold.
    pub fn hold_for(mut self, length: Duration) -> Self {
        self.hold_for = Some(length);
        self
    }

    /// Tells apart two wishes of one holder for the same slots that are meant as two.
    pub fn key(mut self, key: &'g str) -> Self {
        self.key = key;
        self
    }
}

impl<'g> IntoFuture for Holding<'g> {
    type Output = Result<Hold, ReservationError>;
    type IntoFuture = Boxed<'g, Hold>;

    fn into_future(self) -> Boxed<'g, Hold> {
        Box::pin(async move {
            let (wish, token) =
                self.request
                    .config
                    .wish(self.slots, self.holder, self.key, self.hold_for)?;
            self.request.held(wish, token).await
        })
    }
}

/// A slow payment about to be noted; await it.
///
/// # Errors
/// [`ReservationError::HoldExpired`], [`ReservationError::HoldState`], [`ReservationError::HoldNotFound`],
/// [`ReservationError::PaymentNotFound`], and the store's.
#[must_use = "nothing happens unless it is awaited"]
#[derive(Debug)]
pub struct Processing<'g> {
    request: &'g Request,
    target: HoldRef,
    lasting: Option<Duration>,
}

impl<'g> Processing<'g> {
    pub(crate) fn new(request: &'g Request, target: HoldRef) -> Self {
        Self {
            request,
            target,
            lasting: None,
        }
    }

    /// Sets how long the payment may take, from now; up to 30 days from the hold's creation.
    pub fn lasting(mut self, length: Duration) -> Self {
        self.lasting = Some(length);
        self
    }
}

impl<'g> IntoFuture for Processing<'g> {
    type Output = Result<Hold, ReservationError>;
    type IntoFuture = Boxed<'g, Hold>;

    fn into_future(self) -> Boxed<'g, Hold> {
        let change = Change::Processing {
            lasting: self.lasting.unwrap_or(self.request.config.processing_for),
            at_most: PROCESSING_AT_MOST,
        };
        Box::pin(self.request.changed(self.target, change))
    }
}

/// A confirmation about to be made; await it.
///
/// # Errors
/// [`ReservationError::HoldNotFound`], [`ReservationError::PaymentNotFound`],
/// [`ReservationError::PaymentInUse`], and the store's.
#[must_use = "nothing is confirmed unless it is awaited"]
#[derive(Debug)]
pub struct Confirming<'g> {
    request: &'g Request,
    target: HoldRef,
    paid_by: Option<Payment>,
}

impl<'g> Confirming<'g> {
    pub(crate) fn new(request: &'g Request, target: HoldRef) -> Self {
        Self {
            request,
            target,
            paid_by: None,
        }
    }

    /// Attaches the payment and confirms in one step: its event overtook the attaching.
    pub fn paid_by(mut self, payment: Payment) -> Self {
        self.paid_by = Some(payment);
        self
    }
}

impl<'g> IntoFuture for Confirming<'g> {
    type Output = Result<Settled, ReservationError>;
    type IntoFuture = Boxed<'g, Settled>;

    fn into_future(self) -> Boxed<'g, Settled> {
        Box::pin(async move {
            if self
                .paid_by
                .as_ref()
                .is_some_and(|payment| !payment.is_valid())
            {
                return Err(SlotError::Payment.into());
            }
            let change = Change::Confirm {
                paid_by: self.paid_by,
                late: self.request.config.late,
            };
            self.request.change(self.target, change).await
        })
    }
}
