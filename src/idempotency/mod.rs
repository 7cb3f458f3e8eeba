//! The idempotency layer.
