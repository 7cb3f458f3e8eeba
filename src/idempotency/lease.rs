//! The lease of a run: renewed for as long as the handler works, and noticed when it is lost.

use std::sync::Arc;
use std::time::Duration;

use super::rejection::RejectionCause;
use super::run::Ticket;
use super::run_state::RunState;
use super::running::timed;
use super::service::Shared;
use super::store::Owned;
use crate::core::monotonic;
use crate::core::telemetry::count;
use crate::core::{StoreError, StoreErrorKind};

/// A lease of more than a year is renewed all the same; and it must not overflow.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The reply to a claim came when its lease was over (the process was stopped, say), and another may have taken over by
/// then: the handler starts under a new lease, or not at all.
pub(super) async fn renew_late(
    ticket: &mut Ticket,
    shared: &Arc<Shared>,
) -> Result<(), RejectionCause> {
    let config = &*shared.config;
    let (id, nonce) = (ticket.question.id, ticket.nonce);
    let asked_at = monotonic();
    let renewal = (config.store).renew(&id, nonce, config.lease, config.at_lease_end);
    let error = match timed("renew", renewal).await {
        Ok(Owned::Yes) if asked_at.elapsed() < config.lease => {
            ticket.asked_at = asked_at;
            return Ok(());
        }
        Ok(Owned::Lost) => return Err(RejectionCause::InProgress(1)),
        Ok(Owned::Yes) => StoreError::new(StoreErrorKind::TimedOut),
        Err(error) => error,
    };
    shared.runs.release_later(&config.store, id, nonce);
    Err(RejectionCause::of_store(&error))
}

/// Renews at each third of the lease, after a failure at each thirtieth, until it is lost. Never ends.
pub(super) async fn keep(ticket: &Ticket, shared: &Shared, state: &RunState) {
    let config = &*shared.config;
    let (lease, end) = (config.lease, config.at_lease_end);
    let renew = |lease| {
        let (id, nonce) = (&ticket.question.id, ticket.nonce);
        timed("renew", config.store.renew(id, nonce, lease, end))
    };
    let longest = lease.min(LONGEST);
    // The store's lease began when it was asked at the latest.
    let since = ticket.asked_at;
    let (mut over_at, mut next_at) = (since + longest, since + longest / 3);
    if state.is_given_up() {
        // While it started: the drain had no lease to end yet.
        let _ = renew(Duration::ZERO).await;
    }
    while !state.is_given_up() {
        tokio::time::sleep_until(next_at).await;
        if state.is_given_up() {
            break;
        }
        let asked_at = monotonic();
        let renewed = renew(lease).await;
        count!("keep_idempotency_renewals_total", 1, "result" => match &renewed {
            Ok(Owned::Yes) => "renewed",
            Ok(Owned::Lost) => "lost",
            Err(_) => "failed",
        });
        if state.is_given_up() {
            // Both were under way: this one may have come last.
            let _ = renew(Duration::ZERO).await;
            break;
        }
        match renewed {
            Ok(Owned::Yes) => (over_at, next_at) = (asked_at + longest, asked_at + longest / 3),
            Ok(Owned::Lost) => break,
            Err(_) if monotonic() >= over_at => break,
            Err(_) => next_at = monotonic() + longest / 30,
        }
    }
    if let Some(seat) = &ticket.seat {
        seat.look();
    }
    state.lose();
    std::future::pending().await
}
