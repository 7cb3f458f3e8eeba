ALTER TABLE {p}queue_once ADD COLUMN look_ms {int} NOT NULL DEFAULT 0;
DROP INDEX {p}queue_forget;
CREATE INDEX {p}queue_look ON {p}queue_once (queue, look_ms);
