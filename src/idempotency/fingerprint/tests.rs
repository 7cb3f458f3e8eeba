//! Tests of the fingerprint module.
