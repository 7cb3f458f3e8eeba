//! What every session store has to do, told by examples and by an oracle that knows the whole past.
#![allow(clippy::panic)]

mod examples;
mod model;
mod oracle;

use std::sync::Arc;

pub use self::model::{parallel_history, random_sequence};
use crate::core::ManualClock;
use crate::session::store::SessionStore;

/// Runs all examples, then random sequences, on a store that follows `clock`.
///
/// # Panics
/// The store breaks a promise; the message says which.
pub async fn session(store: Arc<dyn SessionStore>, clock: &ManualClock) {
    examples::ends_at_exactly_its_ends(&*store, clock).await;
    examples::activity_is_recorded_once_an_interval(&store, clock).await;
    examples::the_old_secret_is_superseded_then_replayed(&*store, clock).await;
    examples::what_was_ended_stays_ended(&*store, clock).await;
    examples::a_login_that_began_before_is_overtaken(&*store, clock).await;
    examples::everyone_is_cut_off(&*store, clock).await;
    examples::parallel_writes_are_all_kept(&store).await;
    examples::parallel_logins_keep_the_limit(&store, clock).await;
    for seed in 1..=8 {
        random_sequence(&*store, clock, seed, 150).await;
    }
}

/// Runs histories of three tasks that call at once, and finds an order for each that explains all answers.
///
/// Not for a store on which a login that moves a session takes several steps, as on a Cluster.
///
/// # Panics
/// No order explains a history; the message says which.
pub async fn session_histories(
    store: Arc<dyn SessionStore>,
    clock: &ManualClock,
    seeds: std::ops::Range<u64>,
) {
    for seed in seeds {
        parallel_history(&store, clock, seed).await;
    }
}
