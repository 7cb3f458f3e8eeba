//! Every code that a problem document can carry, and what it asks of the client.
#![doc = include_str!("problem_codes.md")]
