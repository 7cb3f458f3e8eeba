//! Feeds of events that say when something is missing: publish, subscribe, resume, and server-sent events.
//!
//! ```
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::data::topic::{Event, Topic};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let status: Topic<String> = Topic::new(MemoryStore::new(), "expert");
//! let mut feed = status.subscribe(("e1", "status")).await?;
//! let id = status.publish(("e1", "status"), &"online".to_owned()).await?;
//! match feed.next().await {
//!     Some(Event::Message { value, .. }) => assert_eq!(value, "online"),
//!     // Read the present state from where it is kept, and go on.
//!     Some(Event::Gap { .. }) | None => {}
//! }
//! let resumed = status.subscribe_after(("e1", "status"), id).await?;
//! # drop(resumed); Ok(()) }
//! ```
//!
//! With axum an event source is one line; it resumes by itself with `Last-Event-ID`, also in another process:
//!
//! ```
//! # #[cfg(feature = "axum")] mod app {
//! # use tower_keep::data::topic::{LastEventId, Topic, TopicError, TopicSse};
//! async fn events(status: Topic<String>, last: LastEventId) -> Result<TopicSse, TopicError> {
//!     status.sse(("e1", "status"), last).await
//! }
//! # }
//! ```
//!
//! # What holds
//! - Ids are `epoch-seq-at`, seq 1, 2, 3 … per key; all readers see one order. `at` (ms) takes no part in it.
//! - A reader gets every event after its start once, in order. Notices carry the payload; a hole, a link that was cut, or
//!   lagging 256 behind is healed from the log. Only what the log lacks is a gap, with its size where that is known.
//! - The log keeps the last 256 events, none older than 5 minutes ([`Topic::retain`]); its head outlives them by 24 h, so
//!   that who missed nothing gets no gap. A place that the log does not know begins with a gap.
//! - A publish that fails may have happened all the same; then it is seen once.
//!
//! # What it does not do
//! It is no queue: what nobody read in time is gone, and said to be. Who may listen is for the application to ask first.

mod error;
mod event;
#[cfg(feature = "axum")]
mod extract;
mod feed;
mod handle;
mod policy;
mod sse;
pub mod store;

pub use error::{TopicError, TopicErrorKind};
pub use event::{Event, EventId, Latest, NotAnEventId};
pub use feed::Feed;
pub use handle::Topic;
pub use sse::{LastEventId, SseBody, TopicSse};
pub use store::TopicStore;
