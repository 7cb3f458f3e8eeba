//! Transitions on Postgres: what an edit writes goes out as one statement, and so does a confirmation
//! that comes in time.

use sqlx::Row as _;

use super::super::rows::{at, int, ms, payload_of, record_of, stored_slot};
use super::{PostgresCalendar, sql};
use crate::backend::sql::{TransactionError, Xid};
use crate::core::Timestamp;
use crate::reservation::event::{EventKind, EventSet, ReservationEvent};
use crate::reservation::hold::{HoldRef, Payment};
use crate::reservation::policy::Edit;
use crate::reservation::store::HoldRecord;

impl PostgresCalendar<'_> {
    /// Writes payment, hold and events; `false`, and nothing, if the payment belongs to another hold.
    pub(super) async fn write_edit(&mut self, edit: &Edit) -> Result<bool, TransactionError> {
        let (record, payment) = (&edit.record, edit.payment.as_ref());
        if payment.is_none() && !edit.moved && edit.events.is_empty() {
            return Ok(true);
        }
        let each = |of: fn(&ReservationEvent) -> &str| -> Vec<&str> {
            edit.events.iter().map(of).collect()
        };
        let written: Option<Xid> = sqlx::query_scalar(sql(&self.sql.write_edit))
            .bind(self.injected())
            .bind(record.id.as_uuid())
            .bind(record.state.code())
            .bind(int(record.version))
            .bind(record.expires_at.map(ms))
            .bind(ms(record.changed_at))
            .bind(edit.moved)
            .bind(payment.map(|payment| &*payment.payment))
            .bind(payment.and_then(|payment| payment.valid_until).map(ms))
            .bind(payment.map(|payment| payment.standing.code()))
            .bind(each(|event| event.id.as_str()))
            .bind(each(|event| event.kind.as_str()))
            .bind(edit.events.iter().map(payload_of).collect::<Vec<_>>())
            .bind(
                edit.events
                    .iter()
                    .map(|event| ms(event.at))
                    .collect::<Vec<_>>(),
            )
            .fetch_optional(&mut *self.connection)
            .await?;
        let done = written.is_some();
        *self.xid = written.or_else(|| self.xid.take());
        self.told |= done && !edit.events.is_empty();
        Ok(done)
    }

    /// Confirms a hold that runs. Anything else is left to the policy, with nothing written.
    pub(super) async fn confirm_running(
        &mut self,
        target: &HoldRef,
        paid_by: Option<&Payment>,
        kinds: EventSet,
    ) -> Result<Option<HoldRecord>, TransactionError> {
        let (id, named) = match target {
            HoldRef::Id(id) => (Some(id.as_uuid()), None),
            HoldRef::Payment(payment) => (None, Some(&**payment)),
        };
        let tell = kinds.contains(EventKind::Confirmed);
        let found = sqlx::query(sql(&self.sql.confirm_running))
            .bind(self.injected())
            .bind(id)
            .bind(named)
            .bind(paid_by.map(Payment::id).or(named))
            .bind(paid_by.and_then(|payment| payment.valid_until).map(ms))
            .bind(tell)
            .fetch_all(&mut *self.connection)
            .await?;
        let mut read_at = Timestamp::EPOCH;
        let mut rows = Vec::with_capacity(found.len());
        for row in found {
            read_at = at(row.try_get(16)?);
            *self.xid = Some(row.try_get(17)?);
            rows.push(stored_slot!(row));
        }
        let record = record_of(rows, read_at);
        self.told |= tell && record.is_some();
        Ok(record)
    }
}
