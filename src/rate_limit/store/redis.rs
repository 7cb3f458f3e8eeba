//! Limits on Redis.
