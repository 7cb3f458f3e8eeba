//! State on a Redis server: a multiplexed connection that comes back by itself, scripts, a breaker; one of each per node.
//!
//! A call never waits longer than its timeout (500 ms, a part may set less), is never sent twice after an
//! unknown outcome, and is refused at once while the breaker is open. Calls that wait less than the handle have
//! breakers of their own, one for each factor of two in the wait: what is too slow for them is not away. The handle opens while the server is
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
//!
//! # TLS
//!
//! With the feature `redis-tls`, `rediss://…`, `rediss+sentinel://…` and `rediss+cluster://…` say that nothing goes in the
//! clear: the server of the URL, the sentinels and the primary that they name, the nodes and all they tell of are greeted
//! by TLS 1.3 or 1.2, within the second that an attempt to connect has. A server that is not trusted has not been told
//! a password; it counts as one that is away, and the error's source says why.
//!
//! ```no_run
//! # #[cfg(feature = "redis-tls")]
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_keep::backend::redis::RedisStore;
//!
//! let store = RedisStore::builder("rediss://app:password@redis.example:6380/0")
//!     .root_certificates(std::fs::read("/etc/keep/root.pem")?)
//!     .client_certificate(std::fs::read("/etc/keep/app.pem")?, std::fs::read("/etc/keep/app.key")?)
//!     .open()
//!     .await?;
//! # let _ = store;
//! # Ok(())
//! # }
//! ```
//!
//! - Trusted are the platform's roots, or those of the file or folder that `SSL_CERT_FILE` and `SSL_CERT_DIR` name, read
//!   when the handle is opened; once `root_certificates` was called, what it was given and nothing else.
//!   [`store::builder`](crate::store::builder) has both methods, too.
//! - The certificate has to name the host that was asked for, or its IP address: the URL's, and behind it what sentinels and
//!   nodes tell. Where these tell addresses that no certificate has, let them tell names: `sentinel announce-hostnames`;
//!   `cluster-announce-hostname` with `cluster-preferred-endpoint-type hostname`. A cluster that
//!   speaks TLS within (`tls-cluster yes`) tells the ports for TLS; older servers do so then only.
//! - No switch leaves a certificate unchecked, `#insecure` is refused. For a server whose certificate nobody signed, make a
//!   root, sign one by it, and give that root: a certificate that is its own authority, as `openssl req -x509` makes it, is
//!   not taken from a server.
//! - A port that speaks no TLS is mostly silent when greeted by it, like a server that is away.

mod address;
mod asking;
mod backlog;
mod call;
mod cluster;
mod command;
mod error;
mod gate;
mod likely;
mod link;
mod look;
mod meter;
mod node;
mod notices;
mod reply;
mod resp;
mod script;
mod sentinel;
mod server;
mod slots;
mod store;
#[cfg(feature = "redis-tls")]
mod tls;
#[cfg(not(feature = "redis-tls"))]
#[path = "no_tls.rs"]
mod tls;
mod wire;

pub use call::Call;
pub(crate) use likely::Likely;
pub use look::Look;
pub use reply::Reply;
pub use script::Script;
pub use store::{RedisStore, RedisStoreBuilder};
#[cfg(feature = "redis-tls")]
pub(crate) use tls::Trust;
