//! Safe caching: what is shared with whom, and what a handler has to say itself.
#![doc = include_str!("safe_caching.md")]
