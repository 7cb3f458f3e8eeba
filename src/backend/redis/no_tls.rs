//! What stands for TLS where the feature `redis-tls` is off: nobody can have one.

use redis::RedisError;
use tokio::net::TcpStream;

use super::address::{is_tls, unusable};

/// Nothing can be given.
#[derive(Clone, Default)]
pub(crate) struct Trust {}

/// There is none.
#[derive(Clone, Debug)]
pub(super) enum Tls {}

impl Tls {
    pub(super) async fn of(url: &str, _: Trust) -> Result<Option<Self>, RedisError> {
        if is_tls(url) {
            return Err(unusable(
                "TLS to Redis needs the feature redis-tls of tower-keep",
            ));
        }
        Ok(None)
    }

    pub(super) async fn greet(&self, _: &str, _: TcpStream) -> Result<TcpStream, RedisError> {
        match *self {}
    }

    pub(super) fn explained(&self, _: RedisError) -> RedisError {
        match *self {}
    }
}
