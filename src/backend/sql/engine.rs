//! The engines as types, and as a value.

use super::connection::Connected;
use super::store::AnyPool;

/// The language a database speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Dialect {
    /// SQLite, by file or in memory.
    #[cfg(feature = "sqlite")]
    Sqlite,
    /// PostgreSQL 13 or later.
    #[cfg(feature = "postgres")]
    Postgres,
}

/// An engine as a type: names the connection that a lease derefs to.
#[diagnostic::on_unimplemented(message = "`{Self}` is no engine: use `Postgres` or `Sqlite`")]
pub trait Engine: sqlx::Database + sealed::Sealed {
    /// The same engine as a value.
    const DIALECT: Dialect;

    /// Whether a network lies between, on which answers can be lost.
    #[doc(hidden)]
    const IS_FAR: bool;

    #[doc(hidden)]
    fn of(connection: &mut Connected) -> Option<&mut Self::Connection>;

    #[doc(hidden)]
    fn pool(pool: &AnyPool) -> Option<&sqlx::Pool<Self>>;
}

mod sealed {
    pub trait Sealed {}
    #[cfg(feature = "sqlite")]
    impl Sealed for sqlx::Sqlite {}
    #[cfg(feature = "postgres")]
    impl Sealed for sqlx::Postgres {}
}

#[cfg(feature = "sqlite")]
impl Engine for sqlx::Sqlite {
    const DIALECT: Dialect = Dialect::Sqlite;
    const IS_FAR: bool = false;

    fn of(connection: &mut Connected) -> Option<&mut sqlx::SqliteConnection> {
        connection.sqlite()
    }

    fn pool(pool: &AnyPool) -> Option<&sqlx::SqlitePool> {
        match pool {
            AnyPool::Sqlite(pool) => Some(pool),
            #[cfg(feature = "postgres")]
            AnyPool::Postgres(_) => None,
        }
    }
}

#[cfg(feature = "postgres")]
impl Engine for sqlx::Postgres {
    const DIALECT: Dialect = Dialect::Postgres;
    const IS_FAR: bool = true;

    fn of(connection: &mut Connected) -> Option<&mut sqlx::PgConnection> {
        connection.postgres()
    }

    fn pool(pool: &AnyPool) -> Option<&sqlx::PgPool> {
        match pool {
            AnyPool::Postgres(pool) => Some(pool),
            #[cfg(feature = "sqlite")]
            AnyPool::Sqlite(_) => None,
        }
    }
}
