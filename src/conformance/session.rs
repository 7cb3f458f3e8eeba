//! What every session store has to do, told by examples and by an oracle that knows the whole past.
#![allow(clippy::panic)]

mod examples;
mod model;
mod oracle;

use std::sync::Arc;

pub use self::model::random_sequence;
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
