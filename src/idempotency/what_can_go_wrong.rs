//! What can go wrong, and what you get: each fault, what the client sees, and what a retry does.
#![doc = include_str!("what_can_go_wrong.md")]
