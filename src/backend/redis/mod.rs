//! State on a Redis server: a multiplexed connection that comes back by itself, scripts, a breaker; one of each per node.
//!
//! A call never waits longer than its timeout (500 ms, a part may set less), is never sent twice after an
//! unknown outcome, and is refused at once while the breaker is open. Calls that wait less than the handle have a
//! breaker of their own: what is too slow for them is not away. The handle opens while the server is
//! away and joins it by itself; a connection that ends while nobody uses it is replaced before the next call.
//!
//! ```no_run
//! # async fn example() -> Result<(), tower_keep::core::StoreError> {
//! use tower_keep::backend::redis::{RedisStore, Reply, Script};
//!
//! static GREET: Script = Script::new("return 'hello ' .. ARGV[2]");
//!
//! let store = RedisStore::connect("redis://127.0.0.1:6379/0").await?;
//! let key = store.key("greet").segment("x").finish();
//! let text = store.script(&GREET, &[key]).arg("you").run(Reply::bytes).await?;
//! assert_eq!(text, "hello you");
//! # Ok(())
//! # }
//! ```

mod address;
mod asking;
mod call;
mod cluster;
mod error;
mod gate;
mod link;
mod look;
mod meter;
mod node;
mod notices;
mod reply;
mod script;
mod sentinel;
mod server;
mod slots;
mod store;

pub use call::Call;
pub use look::Look;
pub use reply::Reply;
pub use script::Script;
pub use store::{RedisStore, RedisStoreBuilder};
