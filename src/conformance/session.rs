//! The session suite.
