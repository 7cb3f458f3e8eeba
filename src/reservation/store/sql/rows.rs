//! Rows of either engine as values.

use uuid::Uuid;

use crate::core::Timestamp;
use crate::reservation::event::{EventId, EventKind, ReservationEvent};
use crate::reservation::hold::{HoldId, HoldState, TokenHash};
use crate::reservation::slot::{Places, Slot};
use crate::reservation::store::{Busy, BusyState, HoldRecord, PaymentRecord, Standing};

/// One row per slot, in this order.
pub(super) const COLUMNS: &str = "hold_id, resource, unit, starts, ends, block_start, block_end, \
     units, capacity, holder, wish_key, token_hash, state, version, created_at, expires_at, changed_at";

pub(super) const OVERLAP_COLUMNS: &str = "h.hold_id, h.resource, h.unit, h.block_start, \
     h.block_end, h.units, h.capacity, h.holder, h.wish_key, h.state, h.expires_at";

pub(super) struct StoredSlot {
    pub(super) hold_id: Uuid,
    pub(super) resource: String,
    pub(super) unit: String,
    pub(super) starts: i64,
    pub(super) ends: i64,
    pub(super) block_start: i64,
    pub(super) block_end: i64,
    pub(super) units: i32,
    pub(super) capacity: i32,
    pub(super) holder: String,
    pub(super) wish_key: String,
    pub(super) token_hash: Vec<u8>,
    pub(super) state: i16,
    pub(super) version: i32,
    pub(super) created_at: i64,
    pub(super) expires_at: Option<i64>,
    pub(super) changed_at: i64,
}

/// Reads a [`StoredSlot`] from a driver's row.
macro_rules! stored_slot {
    ($row:expr) => {{
        let row = $row;
        crate::reservation::store::sql::rows::StoredSlot {
            hold_id: row.try_get(0)?,
            resource: row.try_get(1)?,
            unit: row.try_get(2)?,
            starts: row.try_get(3)?,
            ends: row.try_get(4)?,
            block_start: row.try_get(5)?,
            block_end: row.try_get(6)?,
            units: row.try_get(7)?,
            capacity: row.try_get(8)?,
            holder: row.try_get(9)?,
            wish_key: row.try_get(10)?,
            token_hash: row.try_get(11)?,
            state: row.try_get(12)?,
            version: row.try_get(13)?,
            created_at: row.try_get(14)?,
            expires_at: row.try_get(15)?,
            changed_at: row.try_get(16)?,
        }
    }};
}
pub(super) use stored_slot;

/// Reads a [`Row`] from a driver's row of [`OVERLAP_COLUMNS`].
macro_rules! overlap_row {
    ($row:expr, $holder:expr, $key:expr) => {{
        use crate::reservation::store::sql::rows::{at, state, whole};
        let row = $row;
        let (resource, unit): (String, String) = (row.try_get(1)?, row.try_get(2)?);
        let (holder, key): (String, String) = (row.try_get(7)?, row.try_get(8)?);
        let expires_at: Option<i64> = row.try_get(10)?;
        let capacity: i32 = row.try_get(6)?;
        crate::reservation::policy::Row {
            hold: row.try_get::<uuid::Uuid, _>(0)?.into(),
            state: state(row.try_get(9)?),
            expires_at: expires_at.map(at),
            mine: holder == $holder,
            same_key: key == $key,
            resource: resource.into(),
            unit: unit.into(),
            from: at(row.try_get(3)?),
            to: at(row.try_get(4)?),
            units: whole(row.try_get(5)?),
            counted: capacity > 0,
        }
    }};
}
pub(super) use overlap_row;

pub(super) fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(u64::try_from(millis).unwrap_or(0))
}

pub(super) fn ms(at: Timestamp) -> i64 {
    i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn millis(of: std::time::Duration) -> i64 {
    i64::try_from(of.as_millis()).unwrap_or(i64::MAX)
}

pub(super) fn whole(of: i32) -> u32 {
    u32::try_from(of).unwrap_or(0)
}

pub(super) fn int(of: u32) -> i32 {
    i32::try_from(of).unwrap_or(i32::MAX)
}

/// A state that nobody wrote reads as confirmed: it blocks, and nothing is given away.
pub(super) fn state(code: i16) -> HoldState {
    HoldState::of_code(code).unwrap_or(HoldState::Confirmed)
}

pub(super) const fn capacity(slot: &Slot) -> i32 {
    match slot.places {
        Some(places) => places.capacity as i32,
        None => 0,
    }
}

/// Makes the hold of its rows, which are sorted by part.
pub(super) fn record_of(rows: Vec<StoredSlot>, read_at: Timestamp) -> Option<HoldRecord> {
    let first = rows.first()?;
    let mut token = [0_u8; 32];
    if first.token_hash.len() == token.len() {
        token.copy_from_slice(&first.token_hash);
    }
    Some(HoldRecord {
        id: HoldId::from(first.hold_id),
        holder: first.holder.as_str().into(),
        key: first.wish_key.as_str().into(),
        token: TokenHash(token),
        state: state(first.state),
        created_at: at(first.created_at),
        expires_at: first.expires_at.map(at),
        changed_at: at(first.changed_at),
        version: whole(first.version),
        slots: rows.iter().map(slot_of).collect(),
        read_at,
    })
}

fn slot_of(row: &StoredSlot) -> Slot {
    Slot {
        resource: row.resource.as_str().into(),
        unit: row.unit.as_str().into(),
        start: at(row.starts),
        end: at(row.ends),
        before: at(row.starts).since(at(row.block_start)),
        after: at(row.block_end).since(at(row.ends)),
        places: (row.capacity > 0).then(|| Places {
            units: whole(row.units),
            capacity: whole(row.capacity),
        }),
        in_progress: false,
    }
}

/// payment, hold_id, valid_until, standing.
pub(super) type StoredPayment = (String, Uuid, Option<i64>, i16);

pub(super) fn payment_of((payment, hold, valid_until, standing): StoredPayment) -> PaymentRecord {
    PaymentRecord {
        payment: payment.into(),
        hold: HoldId::from(hold),
        valid_until: valid_until.map(at),
        standing: Standing::of_code(standing),
    }
}

/// unit, starts, ends, block_start, block_end, state, expires_at, units.
pub(super) type StoredSpan = (String, i64, i64, i64, i64, i16, Option<i64>, i32);

pub(super) fn busy_of(row: StoredSpan) -> Busy {
    let (unit, starts, ends, from, to, stored, expires_at, units) = row;
    Busy {
        unit: unit.into(),
        start: at(starts),
        end: at(ends),
        blocks_from: at(from),
        blocks_to: at(to),
        state: match (state(stored), expires_at) {
            (HoldState::Confirmed, _) | (_, None) => BusyState::Booked,
            (_, Some(end)) => BusyState::Held(at(end)),
        },
        units: whole(units),
    }
}

/// id, kind, hold_id, payload, created_at, attempts.
pub(super) type StoredEvent = (String, String, Uuid, String, i64, i32);

#[derive(serde::Serialize, serde::Deserialize)]
struct Payload {
    holder: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    payment: Option<Box<str>>,
}

pub(super) fn payload_of(event: &ReservationEvent) -> String {
    let payload = Payload {
        holder: event.holder.clone(),
        payment: event.payment.clone(),
    };
    // Two strings cannot fail to become JSON.
    serde_json::to_string(&payload).unwrap_or_default()
}

/// `None` for an event of a later version of this crate: it is left for that one.
pub(super) fn event_of(row: StoredEvent) -> Option<ReservationEvent> {
    let (id, kind, hold, payload, created_at, attempts) = row;
    let payload: Payload = serde_json::from_str(&payload).ok()?;
    Some(ReservationEvent {
        id: EventId::from(id.as_str()),
        kind: EventKind::of_str(&kind)?,
        hold: HoldId::from(hold),
        holder: payload.holder,
        payment: payload.payment,
        at: at(created_at),
        attempts: whole(attempts),
    })
}
