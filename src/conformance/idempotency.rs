//! The idempotency suite.
