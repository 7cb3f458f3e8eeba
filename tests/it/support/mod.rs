//! What the tests share: servers of their own, services to drive, proxies that cut.
#![allow(
    dead_code,
    unused_imports,
    reason = "a harness offers more than every test file uses"
)]

pub mod browser;
pub mod http;
pub mod launch;
pub mod postgres;
pub mod program;
pub mod proxy;
pub mod redis;

pub use browser::{Browser, Reply};
pub use postgres::PostgresServer;
pub use program::Program;
pub use proxy::Proxy;
pub use redis::RedisServer;
