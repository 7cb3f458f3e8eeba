//! One server's connection: made at first use, forgotten when it breaks, a successor made at the next.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::PubSub;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{ConnectionAddr, RedisConnectionInfo, RedisError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;

use super::address::Endpoint;
use super::asking::first_answer;
use super::command::Command;
use super::error::{self, away};
use super::sentinel::{Sentinels, check_role};
use super::wire::Wire;

/// The longest that one attempt to connect may take, name lookup, the greeting of TLS and first words included.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a node is.
pub(super) enum Origin {
    Fixed(Endpoint),
    /// To be asked for at each connection.
    Sentinels(Sentinels),
}

/// The way to one server.
pub(super) struct Server {
    origin: Origin,
    current: Mutex<Current>,
    connecting: Arc<tokio::sync::Mutex<()>>,
}

/// A connected socket of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// What moves the bytes of a connection; ends with it.
pub(super) type Driver = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
struct Current {
    connection: Option<Wire>,
    /// Counts connections, so that a late error of an old one does not end its successor.
    generation: Generation,
    /// When the last one was made.
    made: Option<Instant>,
}

/// The number of a connection, from 1.
pub(super) type Generation = u64;

/// Forgets a connection when its driver ends, or the runtime that the driver ran on.
struct Driven {
    server: Weak<Server>,
    generation: Generation,
}

impl Drop for Driven {
    fn drop(&mut self) {
        if let Some(server) = self.server.upgrade() {
            server.forget(self.generation);
        }
    }
}

impl Server {
    pub(super) fn new(origin: Origin) -> Self {
        Self {
            origin,
            current: Mutex::default(),
            connecting: Arc::default(),
        }
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Returns the connection, made where there is none.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<(Wire, Generation), RedisError> {
        if let Some(found) = self.current() {
            return Ok(found);
        }
        // One caller connects, the others wait for it; each is bounded by its own timeout.
        let turn = Arc::clone(&self.connecting).lock_owned().await;
        if let Some(found) = self.current() {
            return Ok(found);
        }
        // On a task of its own: callers who hang up early would else throw away every half-made connection.
        let server = Arc::clone(self);
        let attempt = tokio::spawn(async move {
            let _turn = turn;
            server.connect().await
        });
        let attempt = attempt.await.map_err(io::Error::other)?;
        attempt.map_err(error::unreached)
    }

    async fn connect(self: Arc<Self>) -> Result<(Wire, Generation), RedisError> {
        let (connection, driver) = tokio::time::timeout(CONNECT_TIMEOUT, self.greet())
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))??;
        let generation = self.keep(&connection);
        // A connection that ends while nobody uses it (a restart, an idle limit) is forgotten at once,
        // so that the next call does not find it broken. The driver ends with the last handle, too.
        let driven = Driven {
            server: Arc::downgrade(&self),
            generation,
        };
        tokio::spawn(async move {
            let _driven = driven;
            driver.await;
        });
        Ok((connection, generation))
    }

    async fn greet(&self) -> Result<(Wire, Driver), RedisError> {
        match &self.origin {
            Origin::Fixed(address) => connect(address).await,
            Origin::Sentinels(sentinels) => {
                let (address, told_by) = sentinels.primary().await?;
                let (connection, mut driver) = connect(&address).await?;
                tokio::select! {
                    checked = check_role(&connection) => checked?,
                    () = &mut driver => return Err(away("the server hung up")),
                }
                sentinels.trust(told_by);
                Ok((connection, driver))
            }
        }
    }

    /// Opens a connection that only listens. After a failover it leads to the successor: the old one's connections end
    /// when it is demoted.
    pub(super) async fn listen(&self) -> Result<PubSub, RedisError> {
        tokio::time::timeout(CONNECT_TIMEOUT, self.open_listener())
            .await
            .map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn open_listener(&self) -> Result<PubSub, RedisError> {
        match &self.origin {
            Origin::Fixed(address) => listener(address, false).await,
            Origin::Sentinels(sentinels) => {
                let (address, told_by) = sentinels.primary().await?;
                let connection = listener(&address, true).await?;
                sentinels.trust(told_by);
                Ok(connection)
            }
        }
    }

    fn keep(&self, connection: &Wire) -> Generation {
        let mut current = self.current.lock();
        current.generation += 1;
        current.connection = Some(connection.clone());
        current.made = Some(Instant::now());
        current.generation
    }

    /// Returns the connection that is there.
    fn current(&self) -> Option<(Wire, Generation)> {
        let current = self.current.lock();
        Some((current.connection.clone()?, current.generation))
    }

    /// Lets the next call make another connection, unless that has been done.
    pub(super) fn forget(&self, generation: Generation) {
        let mut current = self.current.lock();
        if current.generation == generation {
            current.connection = None;
        }
    }

    /// Says whether there has been no connection since that one.
    pub(super) fn is_latest(&self, generation: Generation) -> bool {
        self.current.lock().generation == generation
    }

    /// Lets the next call make another connection where this one was there before `began`; where `reads` says how often
    /// something had been read on it, only if nothing came since.
    pub(super) fn give_up(&self, generation: Generation, began: Instant, reads: Option<u64>) {
        let mut current = self.current.lock();
        let is_old = current.made.is_some_and(|made| made <= began);
        let is_silent = |connection: &Wire| reads.is_none_or(|reads| connection.reads() == reads);
        if current.generation == generation
            && is_old
            && current.connection.as_ref().is_some_and(is_silent)
        {
            current.connection = None;
        }
    }
}

/// Reaches a server and passes its door: password, database.
pub(super) async fn connect(address: &Endpoint) -> Result<(Wire, Driver), RedisError> {
    let (wire, driver) = Wire::over(reach(address).await?);
    let mut driver: Driver = Box::pin(driver);
    let passed = tokio::select! {
        passed = pass_door(&wire, address.redis_settings()) => passed,
        () = &mut driver => Err(wire.why()),
    };
    passed.map_err(|error| address.explained(error))?;
    Ok((wire, driver))
}

/// Opens a connection that only listens, where so wanted to a primary only. It passes the door in our own words before the
/// driver has it: that one would tell on what a server says to a password.
async fn listener(address: &Endpoint, is_primary: bool) -> Result<PubSub, RedisError> {
    let mut stream = reach(address).await?;
    {
        let (wire, driver) = Wire::over(Box::new(&mut stream));
        let passing = async {
            pass_door(&wire, address.redis_settings()).await?;
            match is_primary {
                true => check_role(&wire).await,
                false => Ok(()),
            }
        };
        let passed = tokio::select! {
            passed = passing => passed,
            () = driver => Err(wire.why()),
        };
        passed.map_err(|error| address.explained(error))?;
    }
    let passed = RedisConnectionInfo::default().set_skip_set_lib_name();
    PubSub::new(&passed, stream).await
}

/// Says who is there, in the words of RESP2, whatever the URL asks for: scripts answer the same in both.
async fn pass_door(wire: &Wire, settings: &RedisConnectionInfo) -> Result<(), RedisError> {
    let auth = settings.password().map(|password| {
        let auth = Command::new("AUTH");
        let auth = match settings.username() {
            Some(name) => auth.arg(name),
            None => auth,
        };
        auth.arg(password)
    });
    let select = (settings.db() != 0).then(|| Command::new("SELECT").num(settings.db().into()));
    // For whoever lists the server's clients. Servers before 7.2 do not know it, and users need not have the right.
    let name = Command::new("CLIENT").arg("SETINFO").arg("LIB-NAME");
    let name = name.arg(env!("CARGO_PKG_NAME"));
    let say = async |words: Option<Command>| match words {
        Some(words) => wire.send(&words).await.map(drop),
        None => Ok(()),
    };
    // They go out together, in this order.
    let (passed, selected, _named) = tokio::join!(biased; say(auth), say(select), say(Some(name)));
    passed.map_err(refused).and(selected)
}

/// What a server says to AUTH is not told on: where it does not know the command, it repeats the password.
fn refused(error: RedisError) -> RedisError {
    if error.is_io_error() {
        return error;
    }
    let why = match error.code() {
        Some(code) => format!("the server refused the name or the password ({code})"),
        None => "the server refused the name or the password".to_owned(),
    };
    io::Error::new(io::ErrorKind::NotConnected, why).into()
}

async fn reach(address: &Endpoint) -> Result<Box<dyn Stream>, RedisError> {
    match address.addr() {
        ConnectionAddr::Tcp(host, port) => {
            let stream = dial(host, *port).await?;
            match &address.tls {
                Some(tls) => Ok(Box::new(tls.greet(host, stream).await?)),
                None => Ok(Box::new(stream)),
            }
        }
        #[cfg(unix)]
        ConnectionAddr::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        _ => Err(away("the address is of no known kind")),
    }
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, RedisError> {
    let addresses = tokio::net::lookup_host((host, port)).await?;
    let stream = dial_any(addresses.collect()).await?;
    // Commands of many callers share the connection: none waits until another's is acknowledged.
    stream.set_nodelay(true)?;
    SockRef::from(&stream).set_tcp_keepalive(&keepalive())?;
    Ok(stream)
}

/// Reaches one of the addresses of a name: one that swallows everything does not use up the time of the others.
async fn dial_any(addresses: Vec<SocketAddr>) -> Result<TcpStream, RedisError> {
    let dial = |address| async move { Ok::<_, RedisError>(TcpStream::connect(address).await?) };
    match addresses.as_slice() {
        [one] => dial(*one).await,
        _ => first_answer(addresses.into_iter().map(dial)).await,
    }
}

/// What the system asks where nothing moves: a link that nobody uses, and that is cut silently, ends within a minute. It
/// also keeps those on the way, who forget idle links, from cutting it.
fn keepalive() -> TcpKeepalive {
    let asked = TcpKeepalive::new().with_time(Duration::from_secs(30));
    // Elsewhere the system decides.
    #[cfg(any(
        target_os = "linux",
        target_os = "macos",
        target_os = "windows",
        target_os = "freebsd"
    ))]
    let asked = asked.with_interval(Duration::from_secs(10)).with_retries(3);
    asked
}

#[cfg(test)]
mod tests {
    use std::error::Error;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpSocket;

    use super::super::address::Address;
    use super::*;

    /// The address of a server that refuses the door of `u`, and repeats what it was told.
    async fn one_that_repeats(protocol: &str) -> Endpoint {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = vec![0; 1_000];
            let _read = stream.read(&mut heard).await.unwrap();
            let line = "-ERR unknown command 'AUTH', with args beginning with: 'u' 'hunter2'\r\n";
            stream.write_all(line.repeat(2).as_bytes()).await.unwrap();
            // Until it is left.
            let _end = stream.read(&mut heard).await;
        });
        let url = format!("redis://u:hunter2@127.0.0.1:{port}/{protocol}");
        match Address::parse(&url, None) {
            Ok(Address::Server(address)) => address,
            _ => panic!("{url}"),
        }
    }

    #[tokio::test]
    async fn a_server_that_repeats_the_password_is_not_quoted() {
        for protocol in ["", "?protocol=resp3"] {
            let address = one_that_repeats(protocol).await;
            let commands = connect(&address).await.err().unwrap();
            let address = one_that_repeats(protocol).await;
            let notices = Server::new(Origin::Fixed(address)).listen().await;
            for error in [commands, notices.err().unwrap()] {
                let mut told = format!("{error} {error:?}");
                let mut source = error.source();
                while let Some(error) = source {
                    told += &format!("{error} {error:?}");
                    source = error.source();
                }
                assert!(told.contains("ERR") && !told.contains("hunter2"), "{told}");
                assert!(error::ends_connection(&error), "{told}");
            }
        }
    }

    #[tokio::test]
    async fn an_address_that_swallows_everything_hides_no_other_of_the_same_name() {
        let full = TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(1).unwrap();
        let silent = full.local_addr().unwrap();
        // Where nobody accepts, the system answers no more once its queue is full.
        let mut queue = Vec::new();
        let a_moment = Duration::from_millis(100);
        while let Ok(waits) = tokio::time::timeout(a_moment, TcpStream::connect(silent)).await {
            queue.push(waits.unwrap());
        }
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let live = server.local_addr().unwrap();
        let dialled = dial_any(vec![silent, live]);
        let dialled = tokio::time::timeout(CONNECT_TIMEOUT, dialled).await;
        assert_eq!(dialled.unwrap().unwrap().peer_addr().unwrap(), live);
        assert!(dial_any(Vec::new()).await.is_err());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_link_on_which_nothing_moves_is_asked_for_within_a_minute() {
        let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        let stream = dial("127.0.0.1", port).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        let (first, next) = (
            socket.tcp_keepalive_time().unwrap(),
            socket.tcp_keepalive_interval().unwrap(),
        );
        let asked = socket.tcp_keepalive_retries().unwrap();
        assert_eq!(first + next * asked, Duration::from_secs(60));
    }
}
