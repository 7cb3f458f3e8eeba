//! The connection: made at first use, made again after it broke, one attempt at a time.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo,
    RedisError, Value,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

use super::error;
use crate::core::telemetry::count;

/// The longest that one attempt to connect may take, name lookup and first words included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where commands go. One server today; a cluster or a sentinel set becomes another way to connect.
pub(super) struct Link {
    server: Arc<Server>,
    connecting: Arc<tokio::sync::Mutex<()>>,
    sent: AtomicU64,
}

struct Server {
    address: ConnectionInfo,
    current: Mutex<Current>,
}

/// A connected socket of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What moves the bytes of a connection; ends with it.
type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a late error of an old one does not end its successor.
    generation: Generation,
}

/// The number of a connection.
pub(super) type Generation = u64;

impl Link {
    /// Understands the address; nothing is sent.
    pub(super) fn new(url: &str) -> Result<Self, RedisError> {
        let address = url.into_connection_info()?;
        if !address.addr().is_supported() {
            return Err(unsupported());
        }
        Ok(Self {
            server: Arc::new(Server {
                address,
                current: Mutex::default(),
            }),
            connecting: Arc::default(),
            sent: AtomicU64::new(0),
        })
    }

    /// Sends one command and waits for its answer; the caller bounds the time.
    ///
    /// Dropping this future drops the waiting, not the command: it may have been sent.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, RedisError> {
        let (mut connection, generation) = self.connection().await?;
        self.sent.fetch_add(1, Ordering::Relaxed);
        count!("keep_redis_commands_total", 1);
        let answer = connection
            .send_packed_command(command)
            .await
            .and_then(Value::extract_error);
        if let Err(error) = &answer
            && error::ends_connection(error)
        {
            self.server.forget(generation);
        }
        answer
    }

    /// Returns the number of commands sent so far; those of the driver's greeting are not counted.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Names the connection there is.
    pub(super) fn current(&self) -> Option<Generation> {
        self.server.current().map(|(_, generation)| generation)
    }

    /// Gives up that connection if it still is the current one: a silent one is as good as broken.
    pub(super) fn give_up(&self, connection: Option<Generation>) {
        if let Some(generation) = connection {
            self.server.forget(generation);
        }
    }

    /// Opens a connection that only listens.
    pub(super) async fn listen(&self) -> Result<PubSub, RedisError> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.server.listen())
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Returns the number of the database, which a channel's name has to carry: publishing knows none.
    pub(super) fn database(&self) -> i64 {
        self.server.address.redis_settings().db()
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, Generation), RedisError> {
        if let Some(found) = self.server.current() {
            return Ok(found);
        }
        // One caller connects, the others wait for it; each is bounded by its own timeout.
        let turn = Arc::clone(&self.connecting).lock_owned().await;
        if let Some(found) = self.server.current() {
            return Ok(found);
        }
        // On a task of its own: callers who hang up early would else throw away every half-made connection.
        let server = Arc::clone(&self.server);
        let attempt = tokio::spawn(async move {
            let _turn = turn;
            server.connect().await
        });
        attempt.await.map_err(io::Error::other)?
    }
}

impl Server {
    async fn connect(self: Arc<Self>) -> Result<(MultiplexedConnection, Generation), RedisError> {
        let (connection, driver) = tokio::time::timeout(CONNECT_TIMEOUT, self.greet())
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        let generation = self.keep(&connection);
        // A connection that ends while nobody uses it (a restart, an idle limit) is forgotten at once,
        // so that the next call does not find it broken. The driver ends with the last handle, too.
        let server = Arc::downgrade(&self);
        tokio::spawn(async move {
            driver.await;
            if let Some(server) = server.upgrade() {
                server.forget(generation);
            }
        });
        Ok((connection, generation))
    }

    /// Reaches the server and passes its door: password, database.
    async fn greet(&self) -> Result<(MultiplexedConnection, Driver), RedisError> {
        let settings = self.address.redis_settings();
        // Each call has its own timeout; the driver's would count from another moment.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let made = MultiplexedConnection::new_with_config(settings, self.reach().await?, config);
        let (connection, driver) = made.await?;
        Ok((connection, Box::pin(driver)))
    }

    async fn listen(&self) -> Result<PubSub, RedisError> {
        PubSub::new(self.address.redis_settings(), self.reach().await?).await
    }

    async fn reach(&self) -> Result<Box<dyn Stream>, RedisError> {
        match self.address.addr() {
            ConnectionAddr::Tcp(host, port) => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                // Commands of many callers share the connection: none waits until another's is acknowledged.
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            _ => Err(unsupported()),
        }
    }

    fn keep(&self, connection: &MultiplexedConnection) -> Generation {
        let mut current = self.current.lock();
        current.generation += 1;
        current.connection = Some(connection.clone());
        current.generation
    }

    fn current(&self) -> Option<(MultiplexedConnection, Generation)> {
        let current = self.current.lock();
        Some((current.connection.clone()?, current.generation))
    }

    fn forget(&self, generation: Generation) {
        let mut current = self.current.lock();
        if current.generation == generation {
            current.connection = None;
        }
    }
}

fn unsupported() -> RedisError {
    let why = "the address is neither redis:// nor redis+unix://";
    RedisError::from((ErrorKind::InvalidClientConfig, why))
}
