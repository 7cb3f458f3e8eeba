//! Queues: on every engine, over processes, with workers killed and stores away.

mod bounds;
mod defaults;
mod pages;
mod parts;
mod processes;
mod sql;
mod staging;
mod stores;
mod weighing;
mod workers;
