//! The request's transaction as an axum extractor, for handlers without a reservation layer.

use std::marker::PhantomData;

use axum_core::extract::FromRequestParts;
use axum_core::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;

use super::engine::Engine;
use super::error::TransactionError;
use super::lease::Lease;
use super::transaction::{Guarded, RequestTransaction};
use crate::core::Problem;
use crate::core::telemetry::{Once, error};

/// Extracts the transaction that a layer outside (transactional idempotency, a reservation layer) finishes.
///
/// It opens nothing by itself. Of two databases it takes the one of the engine `D`. Alive after the handler has returned, it has leaked: nothing commits.
pub struct SqlTransaction<D: Engine> {
    transaction: RequestTransaction,
    _guarded: Guarded,
    engine: PhantomData<fn() -> D>,
}

impl<D: Engine> SqlTransaction<D> {
    /// Lends the connection; the transaction begins at first use.
    ///
    /// # Errors
    /// As [`RequestTransaction::lease`].
    pub async fn lease(&mut self) -> Result<Lease<'_, D>, TransactionError> {
        self.transaction.lease().await
    }

    /// Registers work for after the commit.
    pub fn after_commit(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.transaction.after_commit(work);
    }
}

impl<D: Engine> std::fmt::Debug for SqlTransaction<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqlTransaction")
            .field("engine", &D::DIALECT)
            .finish_non_exhaustive()
    }
}

impl<S: Sync, D: Engine> FromRequestParts<S> for SqlTransaction<D> {
    type Rejection = SqlTransactionRejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let transaction =
            RequestTransaction::only::<D>(&parts.extensions).ok_or(SqlTransactionRejection)?;
        let guarded = transaction.guard();
        Ok(Self {
            transaction,
            _guarded: guarded,
            engine: PhantomData,
        })
    }
}

/// No layer on the route finishes a transaction on this engine, or several do, each on a database of its own: 500
/// `MISCONFIGURED`.
#[derive(Clone, Copy, Debug)]
pub struct SqlTransactionRejection;

impl IntoResponse for SqlTransactionRejection {
    fn into_response(self) -> Response {
        static SAID: Once = Once::new();
        if SAID.first() {
            error!("no layer on this route finishes a transaction on this engine, or several do");
        }
        let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "MISCONFIGURED");
        problem.response().map(axum_core::body::Body::from)
    }
}
