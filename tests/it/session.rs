//! The session layer, driven in process.

mod again;
mod answers;
mod app;
mod cancelled;
mod cluster;
mod costs;
mod events;
mod example;
mod faults;
mod histories;
mod http;
mod identity;
mod index;
mod judges;
mod leaks;
mod lost;
mod measured;
mod overlap;
mod owed;
mod parity;
mod races;
mod redis;
mod sql;
