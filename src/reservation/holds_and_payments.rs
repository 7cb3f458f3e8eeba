//! Holds and payments: the states, the calls, and what happens to money that comes too late.
#![doc = include_str!("holds_and_payments.md")]
