//! The statements on Postgres, built once from the prefix; everything else is bound.

use std::sync::Arc;

use super::super::rows::{COLUMNS, OVERLAP_COLUMNS};
use crate::backend::sql::TRANSACTION;

/// The injected clock, bound as $1, else the server's; `now()` would stand still since BEGIN.
pub(super) const CLOCK: &str =
    "coalesce($1::bigint, floor(extract(epoch from clock_timestamp()) * 1000)::bigint)";

/// The slots of a call as rows, in their order.
const SLOTS: &str = "unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::bigint[], \
     $7::bigint[], $8::int[], $9::int[]) WITH ORDINALITY AS \
     w(resource, unit, starts, ends, block_start, block_end, units, capacity, part)";

pub(in crate::reservation::store::sql) struct Statements {
    pub(super) prefix: Arc<str>,
    pub(super) lock_lanes: Arc<str>,
    pub(super) lock_holds: Arc<str>,
    pub(super) overlaps: Arc<str>,
    pub(super) load: Arc<str>,
    pub(super) load_locked: Arc<str>,
    pub(super) payment: Arc<str>,
    pub(super) payments: Arc<str>,
    pub(super) insert: Arc<str>,
    pub(super) insert_several: Arc<str>,
    pub(super) insert_alone: Arc<str>,
    pub(super) take_over: Arc<str>,
    pub(super) confirm_running: Arc<str>,
    pub(super) write_edit: Arc<str>,
    pub(super) delete_rows: Arc<str>,
    pub(super) delete_others: Arc<str>,
    pub(super) expire: Arc<str>,
    pub(super) expire_due: Arc<str>,
    pub(super) write_payment: Arc<str>,
    pub(super) write_hold: Arc<str>,
    pub(super) write_events: Arc<str>,
    pub(super) purge_holds: Arc<str>,
    pub(super) purge_events: Arc<str>,
    pub(super) busy: Arc<str>,
    pub(super) take_events: Arc<str>,
    pub(super) fail_event: Arc<str>,
    pub(super) settle_event: Arc<str>,
    pub(super) first_end: Arc<str>,
    pub(super) pending: Arc<str>,
}

impl Statements {
    pub(in crate::reservation::store::sql) fn new(p: &str) -> Self {
        let arc = |sql: String| Arc::from(sql);
        Self {
            prefix: Arc::from(p),
            lock_lanes: arc(
                "SELECT pg_advisory_xact_lock(lane) FROM unnest($1::bigint[]) lane".into(),
            ),
            lock_holds: arc(format!(
                "SELECT row_id FROM {p}hold WHERE hold_id = ANY((SELECT $1::uuid[])::uuid[]) ORDER BY row_id FOR UPDATE"
            )),
            overlaps: arc(format!(
                "SELECT {OVERLAP_COLUMNS}, {CLOCK} \
                 FROM unnest($2::text[], $3::text[], $4::bigint[], $5::bigint[]) \
                 AS w(resource, unit, block_start, block_end), LATERAL ({}) h",
                overlapping(p)
            )),
            load: arc(format!(
                "SELECT {COLUMNS}, {CLOCK} FROM {p}hold WHERE hold_id = $2 ORDER BY part"
            )),
            // The clock is read above the locks: it must not be older than the wait for them.
            load_locked: arc(format!(
                "WITH own AS MATERIALIZED (SELECT part, {COLUMNS} FROM {p}hold WHERE hold_id = $2 \
                 ORDER BY row_id FOR UPDATE) SELECT {COLUMNS}, {CLOCK} FROM own ORDER BY part"
            )),
            payment: arc(format!(
                "SELECT payment, hold_id, valid_until, standing FROM {p}payment WHERE payment = $1"
            )),
            payments: arc(format!(
                "SELECT payment, hold_id, valid_until, standing FROM {p}payment \
                 WHERE hold_id = $1 OR payment = $2"
            )),
            insert: arc(insert(p, "")),
            insert_several: arc(insert_several(p, "", &unless_taken(p))),
            // Outside a transaction the wait for others is bounded by the statement itself.
            insert_alone: arc(insert(p, ", set_config('lock_timeout', $18::text, true)")),
            take_over: arc(take_over(p)),
            confirm_running: arc(confirm_running(p)),
            write_edit: arc(write_edit(p)),
            delete_rows: arc(format!("DELETE FROM {p}hold WHERE row_id = ANY($1)")),
            delete_others: arc(format!(
                "DELETE FROM {p}hold WHERE hold_id = $1 AND row_id <> ALL($2)"
            )),
            expire: arc(format!(
                "WITH due AS MATERIALIZED (SELECT row_id FROM {p}hold WHERE hold_id = ANY($1) \
                 AND state <= 2 AND expires_at <= $2 ORDER BY row_id FOR UPDATE) \
                 UPDATE {p}hold h SET state = 5, version = version + 1, changed_at = $2 \
                 FROM due WHERE h.row_id = due.row_id \
                 RETURNING h.hold_id, h.holder, h.version, h.part, {TRANSACTION}"
            )),
            expire_due: arc(format!(
                "WITH clock AS MATERIALIZED (SELECT {CLOCK} AS ms), \
                 due AS MATERIALIZED (SELECT hold_id FROM {p}hold, clock WHERE state <= 2 \
                 AND expires_at <= clock.ms AND part = 0 ORDER BY expires_at LIMIT $2 \
                 FOR UPDATE OF {p}hold SKIP LOCKED) \
                 UPDATE {p}hold h SET state = 5, version = version + 1, changed_at = clock.ms \
                 FROM due, clock WHERE h.hold_id = due.hold_id AND h.state <= 2 \
                 RETURNING h.hold_id, h.holder, h.version, h.part, {TRANSACTION}"
            )),
            write_payment: arc(format!(
                "INSERT INTO {p}payment AS own (payment, hold_id, valid_until, standing, paid_at) \
                 VALUES ($1, $2, $3, $4, CASE WHEN $4 > 0 THEN $5::bigint END) \
                 ON CONFLICT (payment) DO UPDATE SET valid_until = excluded.valid_until, \
                 standing = excluded.standing, paid_at = coalesce(own.paid_at, excluded.paid_at) \
                 WHERE own.hold_id = excluded.hold_id"
            )),
            write_hold: arc(format!(
                "UPDATE {p}hold SET state = $2, version = $3, expires_at = $4, changed_at = $5 \
                 WHERE hold_id = $1 RETURNING {TRANSACTION}"
            )),
            write_events: arc(format!(
                "INSERT INTO {p}event (id, kind, hold_id, payload, created_at, due_at, attempts, state) \
                 SELECT id, kind, hold_id, payload, at, at, 0, 0 \
                 FROM unnest($1::text[], $2::text[], $3::uuid[], $4::text[], $5::bigint[]) \
                 AS e(id, kind, hold_id, payload, at) ON CONFLICT (id) DO NOTHING"
            )),
            purge_holds: arc(format!(
                "WITH closed AS MATERIALIZED (SELECT hold_id FROM {p}hold WHERE state >= 4 \
                 AND changed_at <= $1 AND part = 0 LIMIT $2 FOR UPDATE SKIP LOCKED), \
                 paid AS (DELETE FROM {p}payment p USING closed WHERE p.hold_id = closed.hold_id) \
                 DELETE FROM {p}hold h USING closed WHERE h.hold_id = closed.hold_id \
                 AND h.state >= 4 AND h.part >= 0 RETURNING h.part"
            )),
            purge_events: arc(format!(
                "DELETE FROM {p}event WHERE ctid = ANY(ARRAY(SELECT ctid FROM {p}event WHERE state = 1 \
                 AND due_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED))"
            )),
            busy: arc(format!(
                "SELECT unit, starts, ends, block_start, block_end, state, expires_at, units \
                 FROM {p}hold WHERE resource = $2 AND state <= 3 \
                 AND int8range(block_start, block_end) && int8range($3, $4) \
                 AND (state = 3 OR expires_at > {CLOCK}) ORDER BY unit, starts, row_id LIMIT $5"
            )),
            take_events: arc(format!(
                "WITH clock AS MATERIALIZED (SELECT {CLOCK} AS ms), \
                 due AS MATERIALIZED (SELECT id FROM {p}event, clock WHERE state = 0 \
                 AND due_at <= clock.ms ORDER BY due_at, created_at, id LIMIT $2 \
                 FOR UPDATE OF {p}event SKIP LOCKED) \
                 UPDATE {p}event e SET due_at = clock.ms + $3 FROM due, clock WHERE e.id = due.id \
                 RETURNING e.id, e.kind, e.hold_id, e.payload, e.created_at, e.attempts"
            )),
            fail_event: arc(format!(
                "UPDATE {p}event SET attempts = attempts + 1 WHERE id = $1 AND state = 0 \
                 RETURNING attempts"
            )),
            settle_event: arc(format!(
                "UPDATE {p}event SET state = $3, due_at = {CLOCK} + $4, \
                 attempts = CASE WHEN $5 THEN 0 ELSE attempts END \
                 WHERE id = $2 AND (state = 0 OR $5)"
            )),
            first_end: arc(format!(
                "SELECT {CLOCK}, (SELECT min(expires_at) FROM {p}hold WHERE state <= 2)"
            )),
            pending: arc(format!(
                "SELECT count(*) FROM (SELECT 1 FROM {p}event WHERE state = 0 LIMIT $1) e"
            )),
        }
    }
}

/// The holds in the way of a wish `w`. Looked up for each wish: joined any other way, they would be looked for among
/// all holds, with a plan from the time when there were few.
fn overlapping(p: &str) -> String {
    format!(
        "SELECT *, xmax = 0 AS untouched FROM {p}hold WHERE resource = w.resource AND unit = w.unit \
         AND int8range(block_start, block_end) && int8range(w.block_start, w.block_end) \
         AND state <= 3 OFFSET 0"
    )
}

/// The columns of a fresh row.
const FRESH: &str = "(hold_id, part, resource, unit, starts, ends, block_start, block_end, units, capacity, \
     counted, holder, wish_key, token_hash, state, version, created_at, expires_at, changed_at)";

/// The row of a hold with one slot; where it is refused, what is seen in its way ([`OVERLAP_COLUMNS`], the clock).
/// Whom the insert had to wait for is not seen, and what somebody has written meanwhile is seen as it was: such a row
/// says that it has been touched (its header is read now, whatever the snapshot). `beside` is read with the clock. What
/// the wish is stands in a row of its own: a planner that knew it would plan anew each time.
/// A hold that was made here tells more than the transaction's whole name: its number is enough.
fn insert(p: &str, beside: &str) -> String {
    format!(
        "WITH wish AS MATERIALIZED (SELECT {CLOCK} AS ms, $2::text AS resource, $3::text AS unit, \
         $6::bigint AS block_start, $7::bigint AS block_end{beside}), \
         made AS (INSERT INTO {p}hold {FRESH} \
         SELECT $10, 0, resource, unit, $4::bigint, $5::bigint, block_start, block_end, $8::int, $9::int, \
         $9::int > 0, $11, $12, $13, $14, $15, coalesce($16::bigint, ms), ms + $17::bigint, ms \
         FROM wish ON CONFLICT DO NOTHING RETURNING row_id, created_at, expires_at, changed_at) \
         SELECT {OVERLAP_COLUMNS}, {CLOCK}, NULL, NULL, NULL, untouched \
         FROM wish w, LATERAL ({}) h WHERE NOT EXISTS (SELECT 1 FROM made) \
         UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, expires_at, \
         changed_at, row_id, pg_current_xact_id()::text, created_at, true FROM made",
        overlapping(p)
    )
}

/// All rows of a hold, in their order; refused ones are left out. `before` are queries that come first, `after` makes
/// the insert wait for them, or not be at all.
fn insert_several(p: &str, before: &str, after: &str) -> String {
    format!(
        "WITH clock AS MATERIALIZED (SELECT {CLOCK} AS ms){before} INSERT INTO {p}hold {FRESH} \
         SELECT $10, w.part - 1, w.resource, w.unit, w.starts, w.ends, w.block_start, \
         w.block_end, w.units, w.capacity, w.capacity > 0, $11, $12, $13, $14, $15, \
         coalesce($16::bigint, clock.ms), clock.ms + $17::bigint, clock.ms \
         FROM {SLOTS}, clock{after} ORDER BY w.part ON CONFLICT DO NOTHING \
         RETURNING row_id, created_at, expires_at, pg_current_xact_id()::text"
    )
}

/// Nothing goes in where something is seen to be in the way. Of several slots the free ones would go in,
/// and whoever has them must not wait for the row of a hold that is over: another may have that row, and
/// want these slots.
fn unless_taken(p: &str) -> String {
    format!(
        " WHERE NOT EXISTS (SELECT 1 FROM unnest($2::text[], $3::text[], $6::bigint[], \
         $7::bigint[], $9::int[]) AS w(resource, unit, block_start, block_end, capacity), \
         LATERAL ({}) h WHERE NOT (h.counted AND w.capacity > 0))",
        overlapping(p)
    )
}

/// What is over is locked, written as expired and told of; the rows go in when that is done and nothing of it lasts:
/// a hold that somebody has made to last meanwhile, in a transaction that was waited for, is not over. Where places
/// are counted no constraint would say so. One that somebody else has written as expired is in nobody's way.
fn take_over(p: &str) -> String {
    let before = format!(
        ", met AS MATERIALIZED (SELECT row_id, state <= 2 AND expires_at <= $19::bigint AS is_over \
         FROM {p}hold WHERE hold_id = ANY($18::uuid[]) AND state <= 3 ORDER BY row_id FOR UPDATE), \
         over AS (UPDATE {p}hold h SET state = 5, version = version + 1, changed_at = $19::bigint \
         FROM met WHERE h.row_id = met.row_id AND met.is_over \
         RETURNING h.hold_id, h.holder, h.version, h.part), \
         told AS (INSERT INTO {p}event \
         (id, kind, hold_id, payload, created_at, due_at, attempts, state) \
         SELECT hold_id::text || ':' || version, 'expired', hold_id, \
         json_build_object('holder', holder)::text, $19::bigint, $19::bigint, 0, 0 \
         FROM over WHERE part = 0 AND $20::boolean ON CONFLICT (id) DO NOTHING), \
         gone AS MATERIALIZED (SELECT count(*) FROM over), \
         lasting AS MATERIALIZED (SELECT count(*) AS rows FROM met WHERE is_over IS NOT TRUE)"
    );
    insert_several(p, &before, ", gone, lasting WHERE lasting.rows = 0")
}

/// A hold that is over is not even locked, nor is one waited for that somebody else has: it may be over by
/// then, and its lanes come before its rows. The clock is read again once the lock is there. Whoever has
/// the first row of a hold has all of it: nobody locks the others before that one.
fn confirm_running(p: &str) -> String {
    format!(
        "WITH own AS MATERIALIZED (SELECT hold_id, holder, state, version, expires_at \
         FROM {p}hold WHERE part = 0 AND hold_id = \
         coalesce($2::uuid, (SELECT hold_id FROM {p}payment WHERE payment = $3::text)) \
         AND state <= 2 AND expires_at > {CLOCK} FOR UPDATE SKIP LOCKED), \
         locked AS MATERIALIZED (SELECT *, {CLOCK} AS ms FROM own), \
         runs AS MATERIALIZED (SELECT * FROM locked WHERE state <= 2 AND expires_at > ms), \
         paid AS (INSERT INTO {p}payment AS known (payment, hold_id, valid_until, standing, paid_at) \
         SELECT $4::text, hold_id, $5::bigint, 1, ms FROM runs WHERE $4::text IS NOT NULL \
         ON CONFLICT (payment) DO UPDATE SET standing = 1, \
         valid_until = coalesce(known.valid_until, excluded.valid_until), \
         paid_at = coalesce(known.paid_at, excluded.paid_at) \
         WHERE known.hold_id = excluded.hold_id RETURNING 1), \
         ok AS MATERIALIZED (SELECT * FROM runs WHERE $4::text IS NULL OR EXISTS (SELECT 1 FROM paid)), \
         moved AS (UPDATE {p}hold h SET state = 3, version = h.version + 1, expires_at = NULL, \
         changed_at = ok.ms FROM ok WHERE h.hold_id = ok.hold_id RETURNING h.*), \
         told AS (INSERT INTO {p}event \
         (id, kind, hold_id, payload, created_at, due_at, attempts, state) \
         SELECT hold_id::text || ':' || (version + 1), 'confirmed', hold_id, \
         json_build_object('holder', holder, 'payment', $4::text)::text, ms, ms, 0, 0 \
         FROM ok WHERE $6::boolean ON CONFLICT (id) DO NOTHING) \
         SELECT {COLUMNS}, {TRANSACTION} FROM moved ORDER BY part"
    )
}

/// Payment, hold and events of one edit; no row, and nothing written, if the payment is another hold's.
fn write_edit(p: &str) -> String {
    format!(
        "WITH paid AS (INSERT INTO {p}payment AS known \
         (payment, hold_id, valid_until, standing, paid_at) \
         SELECT $8::text, $2::uuid, $9::bigint, $10::smallint, \
         CASE WHEN $10::smallint > 0 THEN {CLOCK} END WHERE $8::text IS NOT NULL \
         ON CONFLICT (payment) DO UPDATE SET valid_until = excluded.valid_until, \
         standing = excluded.standing, paid_at = coalesce(known.paid_at, excluded.paid_at) \
         WHERE known.hold_id = excluded.hold_id RETURNING 1 AS one), \
         ok AS MATERIALIZED (SELECT 1 AS one WHERE $8::text IS NULL UNION ALL SELECT one FROM paid), \
         moved AS (UPDATE {p}hold SET state = $3::smallint, version = $4::int, \
         expires_at = $5::bigint, changed_at = $6::bigint \
         FROM ok WHERE hold_id = $2::uuid AND $7::boolean), \
         told AS (INSERT INTO {p}event \
         (id, kind, hold_id, payload, created_at, due_at, attempts, state) \
         SELECT id, kind, $2::uuid, payload, at, at, 0, 0 \
         FROM ok, unnest($11::text[], $12::text[], $13::text[], $14::bigint[]) \
         AS e(id, kind, payload, at) ON CONFLICT (id) DO NOTHING) \
         SELECT {TRANSACTION} FROM ok"
    )
}
