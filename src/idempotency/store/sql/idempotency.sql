CREATE TABLE {p}idempotency (
  id {bytes} PRIMARY KEY,
  version smallint NOT NULL,
  state smallint NOT NULL,
  at_end smallint NOT NULL,
  rule smallint NOT NULL,
  nonce {bytes} NOT NULL,
  fence bigint NOT NULL,
  fingerprint {bytes} NOT NULL,
  created bigint NOT NULL,
  lease_until bigint NOT NULL,
  expires_at bigint NOT NULL,
  answer {bytes}
);
CREATE INDEX {p}idempotency_expiry ON {p}idempotency (expires_at);
