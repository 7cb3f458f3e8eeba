//! Data services: caches, counters and one-time values, on every engine.

mod counter;
mod once;
