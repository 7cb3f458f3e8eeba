//! IdempotencyLayer: which requests are one and the same, and for how long their answer is given again.
//!
//! Try it: send the `curl` line of `payments.rs` twice, and look at `Idempotency-Replayed`.
//!
//! Proof: `double_click_and_retry`

use std::sync::Arc;

use tower_keep::idempotency::{
    DerivedKey, Directive, IdempotencyLayer, Preset, Scope, StatusPolicy,
};
use tower_keep::store::Store;
use tower_keep::{MINUTE, SECOND};

use crate::guests;
use crate::options::Options;

/// One key, one effect: answers are kept for ten minutes, a lost slot or a wrong price for ten seconds only.
pub fn once(store: &Arc<dyn Store>, options: &Options) -> IdempotencyLayer {
    IdempotencyLayer::new(store.clone(), Scope::by(guests::scope))
        .preset(Preset::Api)
        .require_key()
        .ttl(10 * MINUTE)
        .max_request_body(64 * 1_024)
        .statuses(StatusPolicy::default().on(409, Directive::StoreFor(10 * SECOND)))
        .secret(options.key_secret())
}

/// A form has no key of its own: it is made of what the form says, and of the page that it was sent from.
pub fn once_per_form(store: &Arc<dyn Store>, options: &Options) -> IdempotencyLayer {
    let key = DerivedKey::fields("book")
        .text("expert_id")
        .text("service_id")
        .instant("start")
        .text("nonce");
    IdempotencyLayer::new(store.clone(), Scope::by(guests::scope))
        .preset(Preset::Form)
        .derive(key)
        .max_request_body(64 * 1_024)
        .secret(options.key_secret())
}
