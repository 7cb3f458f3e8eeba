//! The two statements that every other is made of, on each engine.
//!
//! Try it: `cargo run --example clinic -- --db sqlite:clinic.db`
//!
//! Proof: `pay`

use std::time::Duration;

use sqlx::query::Query;
use sqlx::{Database, Encode, Postgres, Sqlite, Type};
use tower_keep::SECOND;
use tower_keep::reservation::ReservationGuard;

use super::Records;
use crate::fault::Fault;

impl Records for Sqlite {
    // All writers wait with us: a turn that does not come at once is left to the next try.
    const PATIENCE: Duration = Duration::from_millis(200);

    async fn write(
        guard: &mut ReservationGuard<Self>,
        sql: &'static str,
        values: Vec<String>,
    ) -> Result<(), Fault> {
        let query = bound(sql, values);
        query.execute(&mut *guard.transaction().await?).await?;
        Ok(())
    }

    async fn read(
        guard: &mut ReservationGuard<Self>,
        sql: &'static str,
        value: &str,
    ) -> Result<Option<String>, Fault> {
        let query = sqlx::query_scalar(sql).bind(comparable(value));
        Ok(query
            .fetch_optional(&mut *guard.transaction().await?)
            .await?)
    }
}

impl Records for Postgres {
    const PATIENCE: Duration = SECOND.saturating_mul(2);

    async fn write(
        guard: &mut ReservationGuard<Self>,
        sql: &'static str,
        values: Vec<String>,
    ) -> Result<(), Fault> {
        let query = bound(sql, values);
        query.execute(&mut *guard.transaction().await?).await?;
        Ok(())
    }

    async fn read(
        guard: &mut ReservationGuard<Self>,
        sql: &'static str,
        value: &str,
    ) -> Result<Option<String>, Fault> {
        let query = sqlx::query_scalar(sql).bind(comparable(value));
        Ok(query
            .fetch_optional(&mut *guard.transaction().await?)
            .await?)
    }
}

fn bound<'q, D: Database>(sql: &'static str, values: Vec<String>) -> Query<'q, D, D::Arguments>
where
    String: Encode<'q, D> + Type<D>,
{
    let query = sqlx::query(sql);
    values.into_iter().fold(query, Query::bind)
}

/// Postgres has no text with a zero byte in it, and so nothing that is called so: nothing equals null.
fn comparable(value: &str) -> Option<&str> {
    (!value.contains('\0')).then_some(value)
}
