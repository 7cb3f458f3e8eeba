//! The Redis backend against a real server.
