//! Payments and bookings: one table, written in the same transaction as the hold they belong to.
//!
//! Try it: `cargo run --example clinic -- --db sqlite:clinic.db`, book, and look at it with `sqlite3 clinic.db`
//!
//! Proof: `pay`

mod engines;
mod outside;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_keep::backend::sql::Engine;
use tower_keep::core::Timestamp;
use tower_keep::reservation::{GuardEngine, ReservationGuard};

use crate::fault::Fault;

/// Whom a booking is for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Guest {
    pub name: String,
    pub email: String,
}

/// A payment session and what it pays for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PaymentRecord {
    pub payment_id: String,
    pub reservation_id: String,
    pub booking_id: Option<String>,
    pub subject: String,
    pub expert_id: String,
    pub service_id: String,
    pub start: Timestamp,
    pub end: Timestamp,
    pub price_cents: i64,
    pub guest: Guest,
    pub hold_expires_at: Option<Timestamp>,
    /// It was given back: once, however often the provider tells it, and whether or not it was told to have come.
    #[serde(default)]
    pub refunded: bool,
}

/// Statements with text in and text out, on one engine.
pub trait Records: GuardEngine + Engine + Sized {
    /// How long an event waits for another one of its payment: in its transaction, and so at the cost of others.
    const PATIENCE: Duration;

    /// Runs a statement that returns nothing, in the transaction of the request.
    fn write(
        guard: &mut ReservationGuard<Self>,
        sql: &'static str,
        values: Vec<String>,
    ) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Runs a statement that returns one text or none, in the transaction of the request.
    fn read(
        guard: &mut ReservationGuard<Self>,
        sql: &'static str,
        value: &str,
    ) -> impl Future<Output = Result<Option<String>, Fault>> + Send;

    /// Keeps a new payment.
    fn insert(
        guard: &mut ReservationGuard<Self>,
        record: &PaymentRecord,
    ) -> impl Future<Output = Result<(), Fault>> + Send {
        let values = vec![
            record.payment_id.clone(),
            record.reservation_id.clone(),
            record.subject.clone(),
            record.expert_id.clone(),
            text_of(record),
        ];
        Self::write(
            guard,
            "insert into clinic_payment (payment_id, reservation_id, subject, expert_id, body) \
             values ($1, $2, $3, $4, $5)",
            values,
        )
    }

    /// Notes the booking that a payment made.
    fn book(
        guard: &mut ReservationGuard<Self>,
        record: &PaymentRecord,
    ) -> impl Future<Output = Result<(), Fault>> + Send {
        let booking = record.booking_id.clone().unwrap_or_default();
        let values = vec![record.payment_id.clone(), booking, text_of(record)];
        Self::write(
            guard,
            "update clinic_payment set booking_id = $2, body = $3 where payment_id = $1",
            values,
        )
    }

    /// Notes that a payment was given back.
    fn give_back(
        guard: &mut ReservationGuard<Self>,
        record: &PaymentRecord,
    ) -> impl Future<Output = Result<(), Fault>> + Send {
        Self::write(
            guard,
            "update clinic_payment set body = $2 where payment_id = $1",
            vec![record.payment_id.clone(), text_of(record)],
        )
    }

    /// Finds a payment by its own id.
    fn payment(
        guard: &mut ReservationGuard<Self>,
        id: &str,
    ) -> impl Future<Output = Result<Option<PaymentRecord>, Fault>> + Send {
        find(Self::read(
            guard,
            "select body from clinic_payment where payment_id = $1",
            id,
        ))
    }

    /// Finds the payment of a reservation.
    fn payment_of(
        guard: &mut ReservationGuard<Self>,
        reservation: &str,
    ) -> impl Future<Output = Result<Option<PaymentRecord>, Fault>> + Send {
        find(Self::read(
            guard,
            "select body from clinic_payment where reservation_id = $1",
            reservation,
        ))
    }

    /// Finds a booking.
    fn booking(
        guard: &mut ReservationGuard<Self>,
        id: &str,
    ) -> impl Future<Output = Result<Option<PaymentRecord>, Fault>> + Send {
        find(Self::read(
            guard,
            "select body from clinic_payment where booking_id = $1",
            id,
        ))
    }
}

async fn find(
    row: impl Future<Output = Result<Option<String>, Fault>>,
) -> Result<Option<PaymentRecord>, Fault> {
    Ok(row.await?.and_then(|text| serde_json::from_str(&text).ok()))
}

fn text_of(record: &PaymentRecord) -> String {
    serde_json::to_string(record).unwrap_or_default()
}
