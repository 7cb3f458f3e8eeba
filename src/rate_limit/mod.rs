//! The rate_limit layer.
