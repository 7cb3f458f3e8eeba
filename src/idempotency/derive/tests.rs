//! Tests of the derive module.
