//! SQL databases: pools, migrations, and the one transaction that a request shares.
//!
//! A request's transaction is joined by whoever wants to write in it and finished by whoever joined
//! first. Nothing is opened before the first statement, and no connection goes back to the pool with
//! a transaction open. On Postgres nothing is committed that had a failed statement outside a
//! savepoint; on SQLite a failed statement that the handler ignores undoes itself alone.
//!
//! ```
//! # #[cfg(feature = "sqlite")]
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use tower_keep::backend::sql::{RequestTransaction, SqlStore, Sqlite};
//!
//! let db = SqlStore::connect("sqlite::memory:").await?;
//! let (transaction, finisher) = RequestTransaction::join(&mut http::Extensions::new(), &db);
//! let finisher = finisher.ok_or("somebody else finishes")?;
//! {
//!     let mut lease = transaction.lease::<Sqlite>().await?;
//!     sqlx::query("create table visits (guest text)").execute(&mut *lease).await?;
//! }
//! finisher.commit().await?;
//! # Ok(()) }
//! # #[cfg(not(feature = "sqlite"))] fn main() {}
//! ```
//!
//! # What a lease gives
//! It derefs to sqlx's connection. `lease.begin()` is a SAVEPOINT, so an error caught inside one does
//! not poison the transaction; an error caught outside one does on Postgres, and the commit becomes a
//! rollback and an error, never a silent success.
//!
//! # Behind a pooler
//! One that lends a session for a transaction (pgbouncer's `pool_mode = transaction`) mixes up the statements that a driver prepares by name.
//! Let it follow them (pgbouncer from 1.21 on, `max_prepared_statements`), or end the URL in `?statement-cache-capacity=0`: then
//! each transaction begins by forgetting the statements of whoever had the session, and what else needs no transaction stands in one of its own.
//! That costs a second round trip for each statement. (The URL says so to [`SqlStore::builder`] only; a pool of your own, and what you
//! ask of [`SqlStore::pool`] outside a transaction, is not watched.) Without either, statements fail, or meet another client's of the same name.
//! A commit's fate is asked after on whichever session: what names it belongs to the server, not to the session. A pooler that lends for a
//! whole connection (`pool_mode = session`) needs nothing. Either of pgbouncer's has to have `ignore_startup_parameters = extra_float_digits`.
//!
//! # What it does not do
//! It does not watch statements that go round it, through a pool of your own. On `sqlite::memory:`
//! there is one connection: a handler that holds the transaction must not ask the pool for another.

mod builder;
mod connection;
mod ending;
mod engine;
mod error;
#[cfg(feature = "axum")]
mod extract;
mod finisher;
mod lease;
mod migrations;
mod open;
mod pooled;
#[cfg(feature = "postgres")]
mod postgres;
mod proof;
mod reading;
mod shared;
#[cfg(feature = "sqlite")]
mod sqlite;
#[cfg(feature = "postgres")]
mod starting;
mod store;
mod tasks;
mod transaction;
mod watch;
mod xid;

pub use builder::{Migrations, SqlStoreBuilder};
#[doc(hidden)]
pub use connection::Connected;
pub use engine::{Dialect, Engine};
pub use error::{TransactionError, TransactionErrorKind};
#[cfg(feature = "axum")]
pub use extract::{SqlTransaction, SqlTransactionRejection};
pub use finisher::Finisher;
pub use lease::Lease;
pub use migrations::Schema;
pub(crate) use open::Step;
#[cfg(feature = "postgres")]
pub(crate) use postgres::TRANSACTION;
pub use proof::{AnyLease, Proof, ProofFuture};
#[cfg(feature = "postgres")]
pub use sqlx::Postgres;
#[cfg(feature = "sqlite")]
pub use sqlx::Sqlite;
pub use store::{AnyPool, SqlStore};
pub use transaction::RequestTransaction;
pub(crate) use xid::Xid;
