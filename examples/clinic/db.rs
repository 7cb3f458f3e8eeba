//! Statements outside a reservation: text in, text out, the same SQL on SQLite and Postgres.
//!
//! What belongs to a hold goes through its guard instead, see `records.rs`: one transaction, one truth.
//!
//! Try it: `cargo run --example clinic -- --db sqlite:clinic.db` twice: the second finds what the first has kept.
//!
//! Proof: `users_holds_and_bookings_survive_a_restart`

use sqlx::{PgPool, Postgres, Sqlite, SqlitePool};
use tower_keep::backend::sql::SqlStore;

use crate::admin::transfers;
use crate::fault::Fault;
use crate::fixtures;
use crate::users::{self, UserRecord};

const SCHEMA: &str = include_str!("schema.sql");

/// The pool of the engine that was chosen at the command line.
#[derive(Clone, Debug)]
pub enum Db {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Db {
    /// Makes the tables and puts the fixtures into them, where they are not there yet.
    pub async fn open(store: &SqlStore) -> Result<Self, Box<dyn std::error::Error>> {
        let db = match (store.pool::<Sqlite>(), store.pool::<Postgres>()) {
            (Some(pool), _) => Self::Sqlite(pool.clone()),
            (_, Some(pool)) => Self::Postgres(pool.clone()),
            _ => return Err("this engine is not for the clinic".into()),
        };
        // Two processes may begin at once, and Postgres lets only one of them make a table.
        if db.migrate().await.is_err() {
            db.migrate().await?;
        }
        Ok(db)
    }

    /// Forgets everything, and begins with the fixtures again.
    pub async fn begin_again(&self, tables: &[&'static str]) -> Result<(), Fault> {
        for sql in tables {
            self.run(sql, &[]).await?;
        }
        Ok(self.migrate().await?)
    }

    async fn migrate(&self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(pool) => sqlx::raw_sql(SCHEMA).execute(pool).await.map(|_| ())?,
            Self::Postgres(pool) => sqlx::raw_sql(SCHEMA).execute(pool).await.map(|_| ())?,
        }
        for user in &fixtures::USERS {
            let body = serde_json::to_string(&UserRecord::of(user)).unwrap_or_default();
            self.run(users::FIRST, &[user.id, &body]).await?;
        }
        for transfer in fixtures::TRANSFERS {
            self.run(transfers::FIRST, &[transfer]).await?;
        }
        Ok(())
    }

    /// Runs a statement and says how many rows it changed.
    pub async fn execute(&self, sql: &'static str, values: &[&str]) -> Result<u64, Fault> {
        Ok(self.run(sql, values).await?)
    }

    async fn run(&self, sql: &'static str, values: &[&str]) -> Result<u64, sqlx::Error> {
        let values = values.iter().map(|value| (*value).to_owned());
        match self {
            Self::Sqlite(pool) => {
                let query = values.fold(sqlx::query(sql), |query, value| query.bind(value));
                Ok(query.execute(pool).await?.rows_affected())
            }
            Self::Postgres(pool) => {
                let query = values.fold(sqlx::query(sql), |query, value| query.bind(value));
                Ok(query.execute(pool).await?.rows_affected())
            }
        }
    }

    /// Returns the one column of text of all rows.
    pub async fn texts(&self, sql: &'static str, value: &str) -> Result<Vec<String>, Fault> {
        // Postgres has no text with a zero byte in it, and so nothing that is called so.
        if value.contains('\0') {
            return Ok(Vec::new());
        }
        let value = value.to_owned();
        Ok(match self {
            Self::Sqlite(pool) => sqlx::query_scalar(sql).bind(value).fetch_all(pool).await?,
            Self::Postgres(pool) => sqlx::query_scalar(sql).bind(value).fetch_all(pool).await?,
        })
    }

    /// Returns the one text of one row, if there is one.
    pub async fn text(&self, sql: &'static str, value: &str) -> Result<Option<String>, Fault> {
        Ok(self.texts(sql, value).await?.into_iter().next())
    }
}
