CREATE EXTENSION IF NOT EXISTS btree_gist;
CREATE TABLE {p}hold (
  row_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  hold_id uuid NOT NULL,
  part smallint NOT NULL,
  resource text COLLATE "C" NOT NULL,
  unit text COLLATE "C" NOT NULL,
  starts bigint NOT NULL,
  ends bigint NOT NULL,
  block_start bigint NOT NULL,
  block_end bigint NOT NULL,
  units int NOT NULL,
  capacity int NOT NULL,
  counted boolean NOT NULL,
  holder text NOT NULL,
  wish_key text NOT NULL,
  token_hash bytea NOT NULL,
  state smallint NOT NULL,
  version int NOT NULL,
  created_at bigint NOT NULL,
  expires_at bigint,
  changed_at bigint NOT NULL,
  CONSTRAINT {p}hold_no_overlap EXCLUDE USING gist (
    resource WITH =, unit WITH =, int8range(block_start, block_end) WITH &&,
    (CASE WHEN counted THEN 0 ELSE row_id END) WITH <>
  ) WHERE (state <= 3)
);
CREATE INDEX {p}hold_id ON {p}hold (hold_id);
CREATE INDEX {p}hold_due ON {p}hold (expires_at) WHERE state <= 2;
CREATE INDEX {p}hold_closed ON {p}hold (changed_at) WHERE state >= 4;
CREATE TABLE {p}payment (
  payment text PRIMARY KEY,
  hold_id uuid NOT NULL,
  valid_until bigint,
  paid_at bigint,
  standing smallint NOT NULL
);
CREATE INDEX {p}payment_hold ON {p}payment (hold_id);
CREATE TABLE {p}event (
  id text PRIMARY KEY,
  kind text NOT NULL,
  hold_id uuid NOT NULL,
  payload text NOT NULL,
  created_at bigint NOT NULL,
  due_at bigint NOT NULL,
  attempts int NOT NULL,
  state smallint NOT NULL
);
CREATE INDEX {p}event_due ON {p}event (due_at) WHERE state = 0;
CREATE INDEX {p}event_delivered ON {p}event (due_at) WHERE state = 1;
