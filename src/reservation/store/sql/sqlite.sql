CREATE TABLE {p}hold (
  row_id INTEGER PRIMARY KEY,
  hold_id BLOB NOT NULL,
  part INTEGER NOT NULL,
  resource TEXT NOT NULL,
  unit TEXT NOT NULL,
  starts INTEGER NOT NULL,
  ends INTEGER NOT NULL,
  block_start INTEGER NOT NULL,
  block_end INTEGER NOT NULL,
  units INTEGER NOT NULL,
  capacity INTEGER NOT NULL,
  counted INTEGER NOT NULL,
  holder TEXT NOT NULL,
  wish_key TEXT NOT NULL,
  token_hash BLOB NOT NULL,
  state INTEGER NOT NULL,
  version INTEGER NOT NULL,
  created_at INTEGER NOT NULL,
  expires_at INTEGER,
  changed_at INTEGER NOT NULL
);
CREATE INDEX {p}hold_lane ON {p}hold (resource, unit, block_end) WHERE state <= 3;
CREATE INDEX {p}hold_id ON {p}hold (hold_id);
CREATE INDEX {p}hold_due ON {p}hold (expires_at) WHERE state <= 2;
CREATE INDEX {p}hold_closed ON {p}hold (changed_at) WHERE state >= 4;
CREATE TRIGGER {p}hold_insert BEFORE INSERT ON {p}hold WHEN NEW.state <= 3
BEGIN
  SELECT RAISE(ABORT, 'an exclusive hold overlaps') WHERE EXISTS (
    SELECT 1 FROM {p}hold h WHERE h.resource = NEW.resource AND h.unit = NEW.unit AND h.state <= 3
    AND h.block_end > NEW.block_start AND h.block_start < NEW.block_end
    AND NOT (h.counted AND NEW.counted));
END;
CREATE TRIGGER {p}hold_update BEFORE UPDATE OF resource, unit, block_start, block_end, counted, state
ON {p}hold WHEN NEW.state <= 3 AND (OLD.state > 3 OR NEW.resource <> OLD.resource
  OR NEW.unit <> OLD.unit OR NEW.block_start < OLD.block_start OR NEW.block_end > OLD.block_end
  OR NEW.counted <> OLD.counted)
BEGIN
  SELECT RAISE(ABORT, 'an exclusive hold overlaps') WHERE EXISTS (
    SELECT 1 FROM {p}hold h WHERE h.resource = NEW.resource AND h.unit = NEW.unit AND h.state <= 3
    AND h.row_id <> NEW.row_id AND h.block_end > NEW.block_start AND h.block_start < NEW.block_end
    AND NOT (h.counted AND NEW.counted));
END;
CREATE TABLE {p}payment (
  payment TEXT PRIMARY KEY,
  hold_id BLOB NOT NULL,
  valid_until INTEGER,
  paid_at INTEGER,
  standing INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX {p}payment_hold ON {p}payment (hold_id);
CREATE TABLE {p}event (
  id TEXT PRIMARY KEY,
  kind TEXT NOT NULL,
  hold_id BLOB NOT NULL,
  payload TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  due_at INTEGER NOT NULL,
  attempts INTEGER NOT NULL,
  state INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX {p}event_due ON {p}event (due_at) WHERE state = 0;
CREATE INDEX {p}event_delivered ON {p}event (due_at) WHERE state = 1;
