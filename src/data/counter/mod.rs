//! Counters that expire, and series of minutes, hours and days.
//!
//! ```
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::data::counter::{Bucket, Counter, Increment};
//! use tower_keep::{core::Timestamp, ttl};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let metrics = Counter::new(MemoryStore::new(), "metrics");
//! assert_eq!(metrics.incr(("signup", "pro"), 1, ttl::METRIC).await?.value, 1);
//!
//! // The same event of a provider, told twice, counts once; a seat more than there are is refused.
//! let seat = || Increment::new("seats", 1, ttl::METRIC).within(0..=1).once("evt_1");
//! let counts = metrics.apply([seat(), seat()]).await?;
//! assert_eq!((counts[0].applied, counts[1].applied), (true, false));
//!
//! let actions = metrics.series("user-action", [Bucket::HOUR, Bucket::DAY]);
//! actions.incr(("book", "u1"), 1).await?;
//! let all = Timestamp::EPOCH..Timestamp::MAX;
//! # let now = Timestamp::of(&tower_keep::core::SystemClock);
//! # let all = now..now + tower_keep::MINUTE;
//! assert_eq!(actions.range(("book", "u1"), Bucket::DAY, all).await?.iter().map(|day| day.count).sum::<i64>(), 1);
//! # Ok(()) }
//! ```
//!
//! # What holds
//! - Increment and expiry are one step: no counter lives without an expiry, and none loses an increment.
//! - A change that overflows or leaves its bounds changes nothing and says so.
//! - Buckets are of UTC by the store's clock. Each lives until `keep` widths after its end, whatever else is written.
//! - [`Counter::add`] is kept back in this process for at most a second and sent under an id: an unclear flush is
//!   repeated, not doubled.
//!
//! # What it does not do
//! Unique counts, top lists, days of a time zone. A store that is away is an error, never a made-up number.

mod bucket;
mod buffer;
mod handle;
mod policy;
mod series;
pub mod store;

pub use bucket::{Bucket, Granularity, Point};
pub use handle::{Counter, Increment};
pub use series::Series;
pub use store::{Count, CounterStore};
