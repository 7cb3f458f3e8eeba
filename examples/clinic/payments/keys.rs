//! IdempotencyLayer: which requests are one and the same, and for how long their answer is given again.
//!
//! Try it: send the `curl` line of `payments.rs` twice, and look at `Idempotency-Replayed`.
//!
//! Proof: `double_click_and_retry`

use tower_keep::idempotency::{
    DerivedKey, Directive, IdempotencyLayer, Preset, Scope, StatusPolicy,
};
use tower_keep::{MINUTE, SECOND};

use crate::guests;
use crate::state::State;

/// One key, one effect: answers are kept for ten minutes, a lost slot or a wrong price for ten seconds only.
pub fn once(state: &State) -> IdempotencyLayer {
    IdempotencyLayer::new(state.store.clone(), Scope::by(guests::scope))
        .preset(Preset::Api)
        .require_key()
        .ttl(10 * MINUTE)
        .max_request_body(64 * 1_024)
        .statuses(StatusPolicy::default().on(409, Directive::StoreFor(10 * SECOND)))
        .secret(state.options.key_secret())
}

/// A form has no key of its own: it is made of what the form says, and of the page that it was sent from.
pub fn once_per_form(state: &State) -> IdempotencyLayer {
    let key = DerivedKey::fields("book")
        .text("expert_id")
        .text("service_id")
        .instant("start")
        .text("nonce");
    IdempotencyLayer::new(state.store.clone(), Scope::by(guests::scope))
        .preset(Preset::Form)
        .derive(key)
        .max_request_body(64 * 1_024)
        .secret(state.options.key_secret())
}
