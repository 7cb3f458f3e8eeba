//! A BEGIN under way on Postgres, where it is awaited; dropped before its answer, it is taken back in a task.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::pooled::{Begun, Pooled};
use super::store::SqlStore;
use crate::core::Admission;

/// A connection on which BEGIN may have been sent.
pub(super) struct Starting {
    begun: Option<Begun<sqlx::Postgres>>,
    db: SqlStore,
    admission: Admission,
    runtime: Handle,
}

impl Starting {
    pub(super) fn on(
        connection: Pooled<sqlx::Postgres>,
        db: &SqlStore,
        admission: Admission,
    ) -> Self {
        Self {
            begun: Some(Begun::on(connection)),
            db: db.clone(),
            admission,
            runtime: Handle::current(),
        }
    }

    /// Begins by `sql`, if the server answers within `longest`; [`sqlx::Error::PoolTimedOut`] if not.
    pub(super) async fn begin(
        mut self,
        sql: Arc<str>,
        longest: Duration,
    ) -> Result<Begun<sqlx::Postgres>, sqlx::Error> {
        if let Some(begun) = &mut self.begun {
            begun.start_within(sql, longest).await?;
        }
        self.begun.take().ok_or(sqlx::Error::BeginFailed)
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let Some(begun) = self.begun.take().filter(Begun::is_unanswered) else {
            return;
        };
        // A server that has fallen silent is noticed also where nobody waits for it long enough.
        let (db, admission) = (self.db.clone(), self.admission);
        self.db.inner.tasks.spawn(&self.runtime, async move {
            let longest = db.inner.settings.begin_longest();
            let undone = begun.take_back(longest).await;
            db.report(admission, undone.as_ref().err());
        });
    }
}
