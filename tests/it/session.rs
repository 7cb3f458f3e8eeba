//! The session layer, driven in process.

mod app;
mod events;
mod faults;
mod http;
mod identity;
mod overlap;
mod races;
mod redis;
