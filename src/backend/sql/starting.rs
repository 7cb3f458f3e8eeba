//! A BEGIN under way on Postgres, where it is awaited; dropped before its answer, it is taken back in a task.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::pooled::{Begun, Pooled};
use super::tasks::Tasks;

/// How long taking it back is awaited before the connection is thrown away.
const TAKEN_BACK_LONGEST: Duration = Duration::from_secs(10);

/// A connection on which BEGIN may have been sent.
pub(super) struct Starting {
    begun: Option<Begun<sqlx::Postgres>>,
    tasks: Tasks,
    runtime: Handle,
}

impl Starting {
    pub(super) fn on(connection: Pooled<sqlx::Postgres>, tasks: &Tasks) -> Self {
        Self {
            begun: Some(Begun::on(connection)),
            tasks: tasks.clone(),
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
        self.tasks.spawn(&self.runtime, async move {
            begun.take_back(TAKEN_BACK_LONGEST).await;
        });
    }
}
