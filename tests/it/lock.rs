//! Locks: on every engine, over processes, with links cut and holders paused.

mod guards;
pub mod processes;
mod sql;
mod stores;
