//! Queues: on every engine, over processes, with workers killed and stores away.

mod bounds;
mod defaults;
mod parts;
mod processes;
mod sql;
mod stores;
mod workers;
