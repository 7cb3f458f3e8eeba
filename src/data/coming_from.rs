//! From home-made Redis code, and from the usual crates, to these services: call by call.
#![doc = include_str!("coming_from.md")]
