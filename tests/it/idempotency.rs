//! The idempotency layer, driven in process.
