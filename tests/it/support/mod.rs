//! What the tests share: servers of their own, services to drive, proxies that cut.
#![allow(dead_code, reason = "a harness offers more than every test file uses")]

pub mod launch;
pub mod postgres;
pub mod proxy;
pub mod redis;

pub use postgres::PostgresServer;
pub use proxy::Proxy;
pub use redis::RedisServer;
