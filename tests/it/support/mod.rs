//! What the tests share: servers of their own, services to drive, proxies that cut.
#![allow(
    dead_code,
    unused_imports,
    reason = "a harness offers more than every test file uses"
)]

pub mod authority;
pub mod browser;
pub mod chromium;
pub mod cost;
pub mod http;
pub mod http2;
pub mod launch;
pub mod pgbouncer;
pub mod postgres;
pub mod program;
pub mod proxy;
pub mod redis;
pub mod redis_cluster;
pub mod redis_sentinel;
pub mod runtimes;
pub mod serving;
pub mod sql;
pub mod wayward;

pub use authority::Authority;
pub use browser::{Browser, Reply};
pub use pgbouncer::PgBouncer;
pub use postgres::PostgresServer;
pub use program::Program;
pub use proxy::Proxy;
pub use redis::RedisServer;
pub use redis_cluster::{RedisCluster, is_redis_6};
pub use redis_sentinel::RedisSentinels;
pub use wayward::Wayward;
