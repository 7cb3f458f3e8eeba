//! The SQL backend against SQLite and a real Postgres.
