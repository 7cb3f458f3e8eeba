//! Topics: on every engine, over processes, with links cut; and as server-sent events.

mod feeds;
mod sse;
mod stores;
