CREATE TABLE {p}session (
  id {bytes} PRIMARY KEY,
  user_id {bytes},
  core {bytes} NOT NULL,
  roles {bytes},
  created bigint NOT NULL,
  expires_at bigint NOT NULL,
  data {bytes}
);
CREATE INDEX {p}session_user ON {p}session (user_id);
CREATE INDEX {p}session_expiry ON {p}session (expires_at);
CREATE TABLE {p}session_mark (
  user_id {bytes} PRIMARY KEY,
  mark bigint NOT NULL,
  expires_at bigint NOT NULL
);
CREATE INDEX {p}session_mark_expiry ON {p}session_mark (expires_at);
