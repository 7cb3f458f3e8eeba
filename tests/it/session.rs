//! The session layer, driven in process.

mod app;
mod cancelled;
mod cluster;
mod events;
mod example;
mod faults;
mod http;
mod identity;
mod judges;
mod leaks;
mod overlap;
mod races;
mod redis;
mod sql;
