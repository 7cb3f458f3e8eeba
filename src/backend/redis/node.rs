//! One server: its connection, made at first use and again after it broke, one attempt at a time; its breaker.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, RedisError, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

use super::address::unusable;
use super::error::{self, Meaning};
use super::meter::Meter;
use super::sentinel::{Sentinels, check_role};
use crate::core::telemetry::{count, info, warn};
use crate::core::{Admission, Breaker, StoreError, StoreErrorKind};

/// The longest that one attempt to connect may take, name lookup and first words included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a node is.
pub(super) enum Origin {
    Fixed(ConnectionInfo),
    /// To be asked for at each connection.
    Sentinels(Sentinels),
}

/// One server, or the primary of a sentinel set.
pub(super) struct Node {
    server: Arc<Server>,
    connecting: Arc<tokio::sync::Mutex<()>>,
    started: Instant,
    breaker: Mutex<Breaker>,
    /// Counts for all nodes of the handle.
    meter: Arc<Meter>,
}

struct Server {
    origin: Origin,
    current: Mutex<Current>,
}

/// A connected socket of either kind.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What moves the bytes of a connection; ends with it.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Current {
    connection: Option<MultiplexedConnection>,
    /// Counts connections, so that a late error of an old one does not end its successor.
    generation: Generation,
}

/// The number of a connection.
type Generation = u64;

/// One command, ready to be sent to any node.
pub(super) struct Request<'a> {
    pub(super) command: &'a Cmd,
    /// The same with the script's text, for a node that does not know it.
    pub(super) with_source: &'a (dyn Fn() -> Cmd + Send + Sync),
    /// The node is about to take over the slot: it serves the command only when told so.
    pub(super) asking: bool,
}

/// Why a node did not do it.
pub(super) enum Refusal {
    /// Another node has the slot: nothing was done. Only a node of a cluster says so.
    Elsewhere(RedisError),
    /// Everything else.
    Failed(StoreError),
}

impl Node {
    pub(super) fn new(origin: Origin, meter: Arc<Meter>) -> Self {
        let current = Mutex::default();
        Self {
            server: Arc::new(Server { origin, current }),
            connecting: Arc::default(),
            started: Instant::now(),
            breaker: Mutex::default(),
            meter,
        }
    }

    /// Sends a command within `timeout`, under the breaker. Only NOSCRIPT, a known outcome, is sent once more.
    ///
    /// Dropping this future drops the waiting, not the command: it may have been sent.
    pub(super) async fn call(
        &self,
        request: &Request<'_>,
        timeout: Duration,
    ) -> Result<Value, Refusal> {
        let admission = self.breaker.lock().admit(self.started.elapsed());
        if let Admission::Refused(until_probe) = admission {
            self.meter.refused();
            let refused = StoreError::new(StoreErrorKind::Unavailable);
            return Err(Refusal::Failed(refused.retry_after(until_probe)));
        }
        let began = Instant::now();
        let ended = |kind| self.meter.ended(began.elapsed(), kind);
        let before = self.server.current().map(|(_, generation)| generation);
        let mut sent = pin!(async {
            match self.send(request.command, request.asking).await {
                Err(error) if matches!(error::meaning(&error), Meaning::NoScript) => {
                    self.send(&(request.with_source)(), request.asking).await
                }
                answer => answer,
            }
        });
        let answer = match tokio::time::timeout(timeout, sent.as_mut()).await {
            Ok(answer) => Some(answer),
            Err(_elapsed) => last_look(sent).await,
        };
        let error = match answer {
            Some(Ok(value)) => {
                self.succeeded();
                ended(None);
                return Ok(value);
            }
            Some(Err(error)) => error,
            None => {
                ended(Some(StoreErrorKind::TimedOut));
                let late = StoreError::new(StoreErrorKind::TimedOut);
                return Err(Refusal::Failed(
                    late.retry_after(self.failed(admission, before)),
                ));
            }
        };
        Err(match error::meaning(&error) {
            Meaning::Elsewhere => {
                self.succeeded();
                Refusal::Elsewhere(error)
            }
            Meaning::Refused(kind) => {
                self.succeeded();
                ended(Some(kind));
                Refusal::Failed(error::with_source(kind, error))
            }
            Meaning::NoScript => {
                ended(Some(StoreErrorKind::Failed));
                Refusal::Failed(error::with_source(StoreErrorKind::Failed, error))
            }
            Meaning::Away => {
                ended(Some(StoreErrorKind::Unavailable));
                let retry_after = self.failed(admission, before);
                let away = error::with_source(StoreErrorKind::Unavailable, error);
                Refusal::Failed(away.retry_after(retry_after))
            }
        })
    }

    /// Says whether calls are being refused because the server did not answer.
    pub(super) fn is_open_circuit(&self) -> bool {
        self.breaker.lock().is_open()
    }

    /// Opens a connection that only listens.
    pub(super) async fn listen(&self) -> Result<PubSub, RedisError> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.server.listen())
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
    }

    /// Returns the number of the database, which a channel's name has to carry: publishing knows none.
    pub(super) fn database(&self) -> i64 {
        match &self.server.origin {
            Origin::Fixed(address) => address.redis_settings().db(),
            Origin::Sentinels(sentinels) => sentinels.database(),
        }
    }

    /// Returns the host of a node whose address is fixed.
    pub(super) fn host(&self) -> String {
        match &self.server.origin {
            Origin::Fixed(address) => match address.addr() {
                ConnectionAddr::Tcp(host, _) => host.clone(),
                _ => String::new(),
            },
            Origin::Sentinels(_) => String::new(),
        }
    }

    /// Says whether this is the node at that place.
    pub(super) fn is_at(&self, host: &str, port: u16) -> bool {
        matches!(&self.server.origin, Origin::Fixed(address)
            if matches!(address.addr(), ConnectionAddr::Tcp(own, own_port) if own == host && *own_port == port))
    }

    /// Sends one command that is not counted and waits for its answer; the caller bounds the time.
    pub(super) async fn ask(&self, command: &Cmd) -> Result<Value, RedisError> {
        let (mut connection, generation) = self.connection().await?;
        let answer = connection.send_packed_command(command).await;
        self.look(answer.and_then(Value::extract_error), generation)
    }

    async fn send(&self, command: &Cmd, asking: bool) -> Result<Value, RedisError> {
        let (mut connection, generation) = self.connection().await?;
        self.meter.sent();
        count!("keep_redis_commands_total", 1);
        let answer = if asking {
            // Both go out together: the permission holds for the very next command only.
            let mut both = redis::pipe();
            both.cmd("ASKING").add_command(command.clone());
            let answers = connection.send_packed_commands(&both, 1, 1).await;
            answers.map(|answers| answers.into_iter().next().unwrap_or(Value::Nil))
        } else {
            connection.send_packed_command(command).await
        };
        self.look(answer.and_then(Value::extract_error), generation)
    }

    fn look(
        &self,
        answer: Result<Value, RedisError>,
        generation: Generation,
    ) -> Result<Value, RedisError> {
        if let Err(error) = &answer
            && error::ends_connection(error)
        {
            self.server.forget(generation);
        }
        answer
    }

    fn succeeded(&self) {
        let mut breaker = self.breaker.lock();
        if breaker.is_open() {
            info!("redis answers again");
        }
        breaker.succeeded();
    }

    /// Returns the time until the server is asked again. `before` is the connection that was there when the call began.
    fn failed(&self, admission: Admission, before: Option<Generation>) -> Duration {
        let now = self.started.elapsed();
        let mut breaker = self.breaker.lock();
        let was_open = breaker.is_open();
        breaker.failed(admission, now);
        let until_probe = breaker.until_probe(now);
        let is_opening = breaker.is_open() && !was_open;
        drop(breaker);
        if is_opening {
            warn!("redis does not answer, calls are refused until it does");
            count!("keep_redis_breaker_opened_total", 1);
        }
        if (is_opening || admission == Admission::Probe)
            && let Some(generation) = before
        {
            // A link that is cut silently never breaks by itself: the next probe gets a new one. One that was
            // made during this call is kept: where greeting takes long, the next probe finds it ready.
            self.server.forget(generation);
        }
        until_probe
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

    async fn greet(&self) -> Result<(MultiplexedConnection, Driver), RedisError> {
        match &self.origin {
            Origin::Fixed(address) => connect(address).await,
            Origin::Sentinels(sentinels) => {
                let (mut connection, mut driver) = connect(&sentinels.primary().await?).await?;
                tokio::select! {
                    checked = check_role(&mut connection) => checked?,
                    () = &mut driver => return Err(unusable("the server hung up")),
                }
                Ok((connection, driver))
            }
        }
    }

    /// After a failover a listener hears from the successor only: the old one's connections end when it is demoted.
    async fn listen(&self) -> Result<PubSub, RedisError> {
        let found;
        let address = match &self.origin {
            Origin::Fixed(address) => address,
            Origin::Sentinels(sentinels) => {
                found = sentinels.primary().await?;
                &found
            }
        };
        PubSub::new(address.redis_settings(), reach(address.addr()).await?).await
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

/// Reaches a server and passes its door: password, database.
pub(super) async fn connect(
    address: &ConnectionInfo,
) -> Result<(MultiplexedConnection, Driver), RedisError> {
    let settings = address.redis_settings();
    // Each call has its own timeout; the driver's would count from another moment.
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    let stream = reach(address.addr()).await?;
    let made = MultiplexedConnection::new_with_config(settings, stream, config);
    let (connection, driver) = made.await?;
    Ok((connection, Box::pin(driver)))
}

async fn reach(address: &ConnectionAddr) -> Result<Box<dyn Stream>, RedisError> {
    match address {
        ConnectionAddr::Tcp(host, port) => {
            let stream = TcpStream::connect((host.as_str(), *port)).await?;
            // Commands of many callers share the connection: none waits until another's is acknowledged.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream))
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        _ => Err(unusable("the address is no redis:// of a known kind")),
    }
}

/// Asks once more after the time is over: where this process is so busy that it woke late, the answer lies in the
/// socket already, and the server is not to blame. Costs no time where there is none.
async fn last_look<F: Future>(mut sent: Pin<&mut F>) -> Option<F::Output> {
    /// The runtime looks at its sockets, then the connection's task runs, then the answer is here.
    const TURNS: usize = 3;
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
        let polled = poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx))).await;
        if let Poll::Ready(answer) = polled {
            return Some(answer);
        }
    }
    None
}
