//! State in SQLite or Postgres, and the request transaction.
