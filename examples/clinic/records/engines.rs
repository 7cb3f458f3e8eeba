//! The two statements that every other is made of, once per engine: only the connection's type differs.
//!
//! Try it: `cargo run --example clinic -- --db sqlite:clinic.db`
//!
//! Proof: `pay`

use sqlx::{Postgres, Sqlite};
use tower_keep::reservation::ReservationGuard;

use super::Records;
use crate::fault::Fault;

macro_rules! engine {
    ($engine:ty) => {
        impl Records for $engine {
            async fn write(
                guard: &mut ReservationGuard<Self>,
                sql: &'static str,
                values: Vec<String>,
            ) -> Result<(), Fault> {
                let query = values
                    .into_iter()
                    .fold(sqlx::query(sql), |query, value| query.bind(value));
                query.execute(&mut *guard.transaction().await?).await?;
                Ok(())
            }

            async fn read(
                guard: &mut ReservationGuard<Self>,
                sql: &'static str,
                value: &str,
            ) -> Result<Option<String>, Fault> {
                // Postgres has no text with a zero byte in it, and so nothing that is called so.
                if value.contains('\0') {
                    return Ok(None);
                }
                Ok(sqlx::query_scalar(sql)
                    .bind(value)
                    .fetch_optional(&mut *guard.transaction().await?)
                    .await?)
            }
        }
    };
}

engine!(Sqlite);
engine!(Postgres);
