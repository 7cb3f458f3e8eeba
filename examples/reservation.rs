//! Rooms by the hour: held, paid for, confirmed by the provider's webhook, paid back when it came too late.
//!
//! Run it: `cargo run --example reservation`, then
//! `curl -i -X POST localhost:8082/rooms/1/2130-01-01T10:00:00Z -H 'x-guest: ann'` (201, a hold and its payment),
//! the same as `x-guest: bob` (409, and when to come back),
//! `curl -i -X POST localhost:8082/payments/PAYMENT` (200, confirmed), and once more (200, already confirmed).
//!
//! Arguments: address, database (`sqlite:rooms.db`, `postgres://…`), a file for what must be paid back, the
//! seconds that a hold lasts. Any number of these programs may share one database.

#![allow(clippy::print_stdout, reason = "a program tells where it listens")]

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, Path};
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use http::request::Parts;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower_keep::backend::sql::SqlStore;
use tower_keep::core::Timestamp;
use tower_keep::reservation::{
    Hold, HoldId, HoldRef, Payment, ReservationEvent, ReservationGuard, ReservationLayer,
    ReservationRejection, Settled, Slot, Sweeper,
};
use tower_keep::{HOUR, MINUTE, SECOND};

type Answer<T> = Result<T, ReservationRejection>;

/// Who asks. Here a header says so; in earnest your login does. Never the body, or anybody could fill
/// the calendar in somebody else's name.
struct Guest(String);

impl<S: Send + Sync> FromRequestParts<S> for Guest {
    type Rejection = StatusCode;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, StatusCode> {
        let name = parts.headers.get("x-guest").map(|name| name.to_str());
        let name = name.and_then(Result::ok).ok_or(StatusCode::UNAUTHORIZED)?;
        Ok(Self(name.to_owned()))
    }
}

/// Held, committed, and only then a payment: no lock is held while the provider is asked.
async fn book(
    Path((room, start)): Path<(String, Timestamp)>,
    Guest(guest): Guest,
    mut guard: ReservationGuard,
) -> Answer<(StatusCode, Json<Value>)> {
    let slot = Slot::try_new(format!("room {room}"), start..start.plus(HOUR))?;
    let slot = slot.buffer(Duration::ZERO, 15 * MINUTE);
    let hold = guard.hold(slot, &guest).await?;
    guard.commit().await?;
    let payment = open_payment(&hold);
    // From here on a failed answer releases the hold; the payment has to be closed then.
    let closing = payment.id().to_owned();
    guard.after_rollback(move |_| close_payment(closing));
    let opened = payment.id().to_owned();
    let hold = guard.attach_payment(hold.id(), payment).await?;
    let booked = json!({ "hold": hold, "payment": opened });
    Ok((StatusCode::CREATED, Json(booked)))
}

/// The provider's webhook: whatever it comes to, it is settled, and the provider is told so.
async fn paid(Path(payment): Path<String>, mut guard: ReservationGuard) -> Answer<Json<Value>> {
    let settled = guard.confirm(HoldRef::payment(payment)).await?;
    let word = match &settled {
        Settled::Confirmed(_) => "confirmed",
        Settled::AlreadyConfirmed(_) => "already confirmed",
        // The outbox has it: it will be paid back, even if this process dies now.
        Settled::LateConflict(_) | Settled::DuplicatePayment(_) => "to be paid back",
        _ => "settled",
    };
    Ok(Json(json!({ "settled": word, "hold": settled.hold() })))
}

async fn find(
    Path(hold): Path<HoldId>,
    mut guard: ReservationGuard,
) -> Answer<(StatusCode, Json<Option<Hold>>)> {
    let hold = guard.find(hold).await?;
    let status = hold
        .as_ref()
        .map_or(StatusCode::NOT_FOUND, |_| StatusCode::OK);
    Ok((status, Json(hold)))
}

async fn release(
    Path(hold): Path<HoldId>,
    Guest(guest): Guest,
    mut guard: ReservationGuard,
) -> Answer<Json<Hold>> {
    Ok(Json(guard.release(hold, guest.as_str()).await?))
}

async fn calendar(
    Path((room, day)): Path<(String, Timestamp)>,
    mut guard: ReservationGuard,
) -> Answer<Json<Value>> {
    let calendar = guard
        .availability(&format!("room {room}"), day..day.plus(24 * HOUR))
        .await?;
    let free = calendar.free(HOUR, HOUR);
    Ok(Json(json!({ "busy": calendar.spans(), "free": free })))
}

/// Where a provider would be asked for a checkout.
fn open_payment(hold: &Hold) -> Payment {
    let payment = Payment::new(format!("pay-{}", hold.id()));
    match hold.expires_at() {
        Some(end) => payment.valid_until(end),
        None => payment,
    }
}

/// Where the provider would be told that nobody may pay any more.
async fn close_payment(_payment: String) {}

/// What has to be paid back goes to a file, once per line and at least once per event; its id tells twins.
async fn pay_back(file: Arc<str>, event: ReservationEvent) -> std::io::Result<()> {
    let payment = event.payment.as_deref().unwrap_or("-");
    let line = format!("{} {} {payment}\n", event.id, event.kind.as_str());
    let mut file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(&*file)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let address = next("127.0.0.1:8082");
    // Patient with a crowd: whoever waits longer than that for a turn is told to come back.
    let db = SqlStore::builder(&next("sqlite::memory:"))
        .acquire_timeout(15 * SECOND)
        .lock_timeout(15 * SECOND)
        .open()
        .await?;
    let file: Arc<str> = next("pay-back.txt").into();
    let lasting = SECOND * next("600").parse::<u32>()?;

    let rooms = ReservationLayer::new(db.clone()).hold_for(lasting);
    let reservations = rooms.reservations();
    reservations.migrate().await?;
    let sweeper = Sweeper::new(&reservations)
        .every(5 * SECOND)
        .on_event(move |event| {
            let file = Arc::clone(&file);
            async move { Ok(pay_back(file, event).await?) }
        });
    let sweeping = tokio::spawn(sweeper.run(stopped()));

    let app = Router::new()
        .route("/rooms/{room}/{start}", post(book).get(calendar))
        .route("/payments/{payment}", post(paid))
        .route("/holds/{hold}", get(find).delete(release))
        .layer(rooms);
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app)
        .with_graceful_shutdown(stopped())
        .await?;
    sweeping.await?;
    db.close(10 * SECOND).await;
    Ok(())
}

async fn stopped() {
    // Without a signal there is nothing to wait for.
    let _ = tokio::signal::ctrl_c().await;
}
