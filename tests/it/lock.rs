//! Locks: on every engine, over processes, with links cut and holders paused.

mod stores;
