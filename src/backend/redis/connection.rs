//! The connection: made at first use, made again after it broke, by one caller at a time.

use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisError, Value};

/// Where commands go. One server today; a cluster or a sentinel set becomes another way to connect.
pub(super) struct Link {
    client: Client,
    current: Mutex<Current>,
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a late error of an old one does not end its successor.
    generation: u64,
}

impl Link {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            current: Mutex::default(),
            connecting: tokio::sync::Mutex::new(()),
        }
    }

    /// Sends one command and waits for its answer; the caller bounds the time.
    ///
    /// Dropping this future drops the waiting, not the command: it may have been sent.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, RedisError> {
        let (mut connection, generation) = self.connection().await?;
        let answer = connection
            .send_packed_command(command)
            .await
            .and_then(Value::extract_error);
        if let Err(error) = &answer
            && (error.is_io_error()
                || error.is_connection_dropped()
                || error.is_unrecoverable_error())
        {
            self.forget(generation);
        }
        answer
    }

    /// Gives up the current connection: a silent one is as good as broken.
    pub(super) fn reset(&self) {
        let generation = self.current.lock().generation;
        self.forget(generation);
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), RedisError> {
        if let Some(found) = self.current() {
            return Ok(found);
        }
        // One caller connects, the others wait for it; each is bounded by its own timeout.
        let _turn = self.connecting.lock().await;
        if let Some(found) = self.current() {
            return Ok(found);
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(1)))
            .set_response_timeout(None);
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let mut current = self.current.lock();
        current.generation += 1;
        current.connection = Some(connection.clone());
        Ok((connection, current.generation))
    }

    fn current(&self) -> Option<(MultiplexedConnection, u64)> {
        let current = self.current.lock();
        Some((current.connection.clone()?, current.generation))
    }

    fn forget(&self, generation: u64) {
        let mut current = self.current.lock();
        if current.generation == generation {
            current.connection = None;
        }
    }
}
