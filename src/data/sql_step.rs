//! A step in SQL: a transaction of its own, on whichever engine the store has.

use crate::backend::sql::{Dialect, SqlStore};
use crate::core::Timestamp;

/// What a step goes by: milliseconds of the passed clock, else of the engine's, and microseconds of the engine's.
#[derive(Clone, Copy)]
pub(crate) struct Now {
    pub(crate) ms: i64,
    pub(crate) engine_us: i64,
}

impl Now {
    pub(crate) fn of(injected: Option<Timestamp>, engine_us: i64) -> Self {
        let ms = injected.map(|now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
        Self {
            ms: ms.unwrap_or(engine_us / 1_000),
            engine_us,
        }
    }
}

/// How a statement leaves alone the rows that others hold; on SQLite the whole database is held while a step runs.
pub(crate) fn skip_locked(db: &SqlStore) -> &'static str {
    match db.dialect() {
        #[cfg(feature = "sqlite")]
        Dialect::Sqlite => "",
        #[cfg(feature = "postgres")]
        Dialect::Postgres => "FOR UPDATE SKIP LOCKED",
    }
}

/// Runs `$body` as a transaction of its own; dropped, it rolls back. `$text` is what the statements are made of.
macro_rules! alone {
    ($db:expr, $own:expr, |$connection:ident, $now:ident, $text:ident| $body:expr) => {{
        let (db, $text) = ($db.clone(), $own);
        crate::core::StoreFuture::boxed(async move {
            let (request, finisher) = crate::backend::sql::RequestTransaction::alone(&db);
            let injected = db.injected_now();
            let step = request.operate(move |step| {
                Box::pin(async move {
                    let engine_us = step.connection.engine_micros().await?;
                    let $now = crate::data::sql_step::Now::of(injected, engine_us);
                    #[cfg(feature = "sqlite")]
                    if let Some($connection) = step.connection.sqlite() {
                        return $body;
                    }
                    #[cfg(feature = "postgres")]
                    if let Some($connection) = step.connection.postgres() {
                        return $body;
                    }
                    Err(crate::backend::sql::TransactionError::crowded())
                })
            });
            match step.await {
                Ok(answer) => {
                    finisher.commit().await?;
                    Ok(answer)
                }
                Err(error) => {
                    let cause = crate::core::RollbackCause::Poisoned;
                    finisher.rollback(cause).await;
                    Err(crate::core::StoreError::from(error))
                }
            }
        })
    }};
}

pub(crate) use alone;
