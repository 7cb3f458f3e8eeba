//! Health: one report of all parts, asked now and never remembered from the start.
//!
//! ```
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::data::health::{Health, HealthStatus};
//! use tower_keep::data::queue::Queue;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let store = MemoryStore::new();
//! let notices: Queue<String> = Queue::new(store.clone(), "notifications");
//! let health = Health::new()
//!     .required("store", store)
//!     .check("queue", notices)
//!     .check("provider", || async { Err::<(), _>("it does not answer") });
//! // In an axum application: .nest("/api/health", health.routes())
//! let report = health.report().await;
//! assert_eq!(report.status, HealthStatus::Degraded);
//! assert_eq!(report.part("provider").unwrap().status, HealthStatus::Down);
//! # }
//! ```
//!
//! # What holds
//! - Checks run side by side, each for 500 ms at most, and a panic of one is that one's. A report is reused for 1 s, and
//!   shared by all who ask meanwhile.
//! - `down` (503) only if something required is down; `degraded` (200) if anything else is down, a breaker is open, a
//!   threshold is broken, or state is kept elsewhere than [`Health::expect`] says; else `healthy`.
//! - `mode` is what operations use now: `memory`, `redis`, or `fallback` while the breaker is open.
//! - A store's check writes, reads and removes a value (on a cluster at one node, another each time), and says so if Redis
//!   may evict what locks, tokens and jobs keep. A database's asks for a sign of life only.
//! - A hit rate is of a cache's last thousand reads. What calls do is judged from one report to another, a thousand calls
//!   apart at least and a minute at most ([`Thresholds::window`]), or since the report before; with fewer nothing is. So
//!   after an outage `healthy` comes within a minute, also where nobody asks for anything but health.
//! - Neither the report nor its document has the text of an error.
//!
//! # What it does not do
//! It asks nothing by itself: [`Health::on_change`] is called while a report is made.

#[cfg(feature = "axum")]
mod extract;
mod handle;
mod policy;
mod report;
mod thresholds;
mod window;

pub use handle::Health;
pub use report::{CheckReport, HealthChange, HealthReason, HealthReport, HealthStatus};
pub use thresholds::Thresholds;

pub use crate::backend::health::{Probed, StoreMode, StoreStats};
pub use crate::data::check::{Check, Vitals};
