//! The rate_limit suite.
