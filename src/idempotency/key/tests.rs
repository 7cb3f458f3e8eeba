//! Tests of the key module.
