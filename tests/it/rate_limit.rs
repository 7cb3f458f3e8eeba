//! The rate_limit layer, driven in process.
