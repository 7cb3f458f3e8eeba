CREATE TABLE {p}queue (
  seq {id},
  queue text NOT NULL,
  recipient text NOT NULL,
  rank {int} NOT NULL,
  state {int} NOT NULL,
  due {int} NOT NULL,
  expires {int} NOT NULL,
  attempts {int} NOT NULL,
  items {bytes} NOT NULL,
  digest text,
  token {bytes},
  lease_end {int},
  died {int},
  error text
);
CREATE INDEX {p}queue_ready ON {p}queue (queue, rank, due, seq) WHERE state = 1;
CREATE INDEX {p}queue_who ON {p}queue (queue, recipient, rank, due, seq) WHERE state < 3;
CREATE INDEX {p}queue_expiry ON {p}queue (queue, expires) WHERE state = 1;
CREATE INDEX {p}queue_leased ON {p}queue (queue, lease_end) WHERE state = 2;
CREATE INDEX {p}queue_dead ON {p}queue (queue, died) WHERE state = 3;
CREATE TABLE {p}queue_once (
  queue text NOT NULL,
  id {bytes} NOT NULL,
  seq {int} NOT NULL,
  until_ms {int} NOT NULL,
  PRIMARY KEY (queue, id)
);
CREATE INDEX {p}queue_forget ON {p}queue_once (queue, until_ms);
