//! What became of a commit whose reply was lost, told by the hold that was written in it.

use std::sync::Arc;

use sqlx::AssertSqlSafe;

use super::rows::{at, whole};
use crate::backend::sql::{AnyLease, Proof, ProofFuture};
use crate::core::Timestamp;
use crate::reservation::hold::{HoldId, HoldState};
use crate::reservation::store::{ChangeDecision, HoldDecision, HoldRecord};

/// A hold as a transaction left it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Written {
    hold: HoldId,
    version: u32,
    state: HoldState,
    changed_at: Timestamp,
    /// Made in this transaction, so that its mere being there tells.
    fresh: bool,
}

impl Written {
    pub(super) fn by_hold(decision: &HoldDecision) -> Option<Self> {
        match decision {
            HoldDecision::Created(record) => Some(Self::of(record, true)),
            // Its version was written: that somebody else relies on it, too.
            HoldDecision::Reused(record) => Some(Self::of(record, false)),
            HoldDecision::Taken(_) | HoldDecision::Full { .. } => None,
        }
    }

    /// Where only a payment was written, the hold tells nothing.
    pub(super) fn by_change(decision: &ChangeDecision) -> Option<Self> {
        match decision {
            ChangeDecision::Done(record) => Some(Self::of(record, false)),
            _ => None,
        }
    }

    fn of(record: &HoldRecord, fresh: bool) -> Self {
        Self {
            hold: record.id,
            version: record.version,
            state: record.state,
            changed_at: record.changed_at,
            fresh,
        }
    }

    /// The better of two: the hold that was made here, else the one that was written last.
    pub(super) fn or(self, earlier: Option<Self>) -> Self {
        match earlier {
            Some(earlier) if earlier.fresh && !self.fresh => earlier,
            _ => self,
        }
    }

    fn tell(&self, found: Option<Found>) -> Proof {
        match found {
            Some(_) if self.fresh => Proof::Committed,
            None if self.fresh => Proof::RolledBack,
            None => Proof::Open,
            Some((version, state, changed_at)) => {
                let found = (whole(version), state, at(changed_at));
                if found == (self.version, self.state.code(), self.changed_at) {
                    Proof::Committed
                } else if found.0 < self.version {
                    Proof::RolledBack
                } else {
                    // Somebody has changed it since: after ours, or instead of ours.
                    Proof::Open
                }
            }
        }
    }

    /// Looks for it in the table that `statement` reads.
    pub(super) fn probe(
        self,
        statement: Arc<str>,
    ) -> impl for<'c> Fn(AnyLease<'c>) -> ProofFuture<'c> + Send + Sync + 'static {
        move |lease| {
            let statement = AssertSqlSafe(Arc::clone(&statement));
            Box::pin(async move {
                let found = match lease {
                    #[cfg(feature = "sqlite")]
                    AnyLease::Sqlite(connection) => {
                        sqlx::query_as::<_, Found>(statement)
                            .bind(self.hold.as_uuid())
                            .fetch_optional(connection)
                            .await?
                    }
                    #[cfg(feature = "postgres")]
                    AnyLease::Postgres(connection) => {
                        sqlx::query_as::<_, Found>(statement)
                            .bind(self.hold.as_uuid())
                            .fetch_optional(connection)
                            .await?
                    }
                };
                Ok(self.tell(found))
            })
        }
    }
}

/// version, state, changed_at.
type Found = (i32, i16, i64);

/// The statement that a probe asks.
pub(super) fn statement(prefix: &str) -> Arc<str> {
    format!("SELECT version, state, changed_at FROM {prefix}hold WHERE hold_id = $1 AND part = 0")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(fresh: bool) -> Written {
        Written {
            hold: HoldId::from(uuid::Uuid::nil()),
            version: 2,
            state: HoldState::Confirmed,
            changed_at: Timestamp::from_millis(7),
            fresh,
        }
    }

    #[test]
    fn a_hold_that_was_made_is_there_or_is_not() {
        assert_eq!(written(true).tell(Some((9, 5, 9))), Proof::Committed);
        assert_eq!(written(true).tell(None), Proof::RolledBack);
    }

    #[test]
    fn a_hold_that_was_changed_tells_unless_others_have_changed_it_since() {
        assert_eq!(written(false).tell(Some((2, 3, 7))), Proof::Committed);
        assert_eq!(written(false).tell(Some((1, 1, 1))), Proof::RolledBack);
        assert_eq!(written(false).tell(Some((2, 4, 7))), Proof::Open);
        assert_eq!(written(false).tell(Some((3, 6, 9))), Proof::Open);
        assert_eq!(written(false).tell(None), Proof::Open);
    }

    #[test]
    fn the_hold_that_was_made_is_the_better_proof() {
        let (made, changed) = (written(true), written(false));
        assert!(changed.or(Some(made)).fresh);
        assert!(made.or(Some(changed)).fresh);
        assert!(!changed.or(None).fresh);
    }
}
