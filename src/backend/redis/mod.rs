//! State on a Redis server.
