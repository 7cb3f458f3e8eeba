//! Asks sentinels where the primary is, at each connection: after a failover the next one leads to its successor.

use std::sync::atomic::{AtomicUsize, Ordering};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ConnectionAddr, ConnectionInfo, RedisError, Value};

use super::address::{SentinelsAddress, unusable};
use super::node::connect;
use crate::core::telemetry::debug;

/// Sentinels that watch over one primary.
pub(super) struct Sentinels {
    address: SentinelsAddress,
    /// The one that answered last is asked first.
    first: AtomicUsize,
}

impl Sentinels {
    pub(super) fn new(address: SentinelsAddress) -> Self {
        Self {
            address,
            first: AtomicUsize::new(0),
        }
    }

    pub(super) fn database(&self) -> i64 {
        self.address.server.redis_settings().db()
    }

    /// Returns the address of the primary as the first sentinel that answers has it.
    pub(super) async fn primary(&self) -> Result<ConnectionInfo, RedisError> {
        let count = self.address.sentinels.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut last = unusable("no sentinel knows the primary");
        for index in (0..count).map(|index| (first + index) % count) {
            match self.ask(&self.address.sentinels[index]).await {
                Ok(found) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(found);
                }
                Err(error) => {
                    debug!(error = %error, "a sentinel does not know the primary");
                    last = error;
                }
            }
        }
        Err(last)
    }

    async fn ask(&self, sentinel: &ConnectionInfo) -> Result<ConnectionInfo, RedisError> {
        let (mut connection, driver) = connect(sentinel).await?;
        let question = async move {
            let mut question = Cmd::new();
            question.arg(b"SENTINEL").arg(b"get-master-addr-by-name");
            question.arg(&self.address.name);
            connection.send_packed_command(&question).await
        };
        let answer = tokio::select! {
            answer = question => answer?.extract_error()?,
            () = driver => return Err(unusable("the sentinel hung up")),
        };
        let (host, port): (String, u16) = match answer {
            Value::Nil => return Err(unusable("the sentinel does not know that name")),
            answer => redis::from_redis_value(answer)?,
        };
        let address = ConnectionAddr::Tcp(host, port);
        Ok(self.address.server.clone().set_addr(address))
    }
}

/// Fails where the server is not (or no longer) a primary: sentinels may be behind, and a replica takes no write.
pub(super) async fn check_role(connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
    let mut role = Cmd::new();
    role.arg(b"ROLE");
    let answer = connection.send_packed_command(&role).await?;
    match answer.extract_error()? {
        Value::Array(fields) if matches!(fields.first(), Some(Value::BulkString(role)) if role == b"master") => {
            Ok(())
        }
        _ => Err(unusable("the server is not the primary")),
    }
}
