//! A redis-server of one's own: on a unix socket and a free port, in a temporary folder.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::OnceCell;
use tower_keep::backend::redis::{RedisStore, RedisStoreBuilder};
use tower_keep::core::ManualClock;

use super::authority::Authority;
use super::launch::{Launch, Port, Process, wait_until};

/// A private server; killed and its folder removed on drop.
#[derive(Debug)]
pub struct RedisServer {
    process: Process,
    folder: TempDir,
    port: Port,
    options: Vec<String>,
    /// How long its handles wait for an answer, where not as long as anybody's do.
    patience: Option<Duration>,
}

impl RedisServer {
    /// Starts a server that keeps nothing on disk.
    pub async fn start() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "no"]).await
    }

    /// Starts a server with further options.
    pub async fn start_with(options: &[&str]) -> Self {
        let (folder, port) = (TempDir::new().unwrap(), Port::claim());
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let process = launch(folder.path(), &port, &options);
        Self {
            process,
            folder,
            port,
            options,
            patience: None,
        }
    }

    /// Starts a server whose port speaks TLS only, with these options besides.
    pub async fn start_tls(authority: &Authority, names: &[&str], more: &[&str]) -> Self {
        let options = authority.options(names, more);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        Self::start_with(&options).await
    }

    /// The URL on the unix socket.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// The URL on TCP.
    pub fn tcp_url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port.number)
    }

    /// The URL by TLS, under this name.
    pub fn tls_url(&self, host: &str) -> String {
        format!("rediss://{host}:{}/", self.port.number)
    }

    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port.number).into()
    }

    /// Opens a handle with a fresh prefix, so that tests on one server do not meet.
    pub async fn store(&self, clock: &ManualClock) -> RedisStore {
        let builder = self.builder(&fresh_prefix());
        builder.clock(clock.clone()).open().await.unwrap()
    }

    /// Opens a handle with this prefix and the server's own clock.
    pub async fn store_with(&self, prefix: &str) -> RedisStore {
        self.builder(prefix).open().await.unwrap()
    }

    /// Begins a handle with this prefix.
    pub fn builder(&self, prefix: &str) -> RedisStoreBuilder {
        let builder = RedisStore::builder(&self.url()).prefix(prefix);
        match self.patience {
            Some(patience) => builder.timeout(patience),
            None => builder,
        }
    }

    /// Kills the server at once.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same addresses.
    pub fn restart(&mut self) {
        self.process.kill();
        self.process = launch(self.folder.path(), &self.port, &self.options);
    }

    /// Freezes the server: it accepts, but does not answer.
    pub fn pause(&self) {
        self.process.signal("STOP");
    }

    pub fn resume(&self) {
        self.process.signal("CONT");
    }

    /// A connection of the driver itself, to look at what is stored.
    pub async fn raw(&self) -> ::redis::aio::MultiplexedConnection {
        raw(&self.url()).await
    }

    /// How often the server has run a script that it knew.
    pub async fn scripts(&self) -> u64 {
        let question = ::redis::cmd("INFO").arg("commandstats").to_owned();
        let info: String = question.query_async(&mut self.raw().await).await.unwrap();
        let mut lines = info.lines();
        let line = lines.find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
        let number = line.and_then(|line| line.split(',').next());
        number.map_or(0, |number| number.parse().unwrap())
    }

    /// How many commands the server has run, those within scripts included.
    pub async fn all_commands(&self) -> u64 {
        let question = ::redis::cmd("INFO").arg("commandstats").to_owned();
        let info: String = question.query_async(&mut self.raw().await).await.unwrap();
        let calls = |line: &str| {
            let (_, rest) = line.split_once(":calls=")?;
            rest.split(',').next()?.parse::<u64>().ok()
        };
        info.lines().filter_map(calls).sum()
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }
}

/// A connection of the driver itself that waits as long as it takes: a busy machine may need more than half a second.
pub async fn raw(url: &str) -> ::redis::aio::MultiplexedConnection {
    let config = ::redis::AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    let client = ::redis::Client::open(url).unwrap();
    let connection = client.get_multiplexed_async_connection_with_config(&config);
    connection.await.unwrap()
}

fn launch(folder: &Path, port: &Port, options: &[String]) -> Process {
    let socket = folder.join("redis.sock");
    let _ = std::fs::remove_file(&socket);
    let number = port.number.to_string();
    // A server with a certificate speaks in the clear on its unix socket only.
    let (plain, tls) = match options.iter().any(|option| option == "--tls-cert-file") {
        true => ("0", Some(["--tls-port", &number])),
        false => (number.as_str(), None),
    };
    let mut arguments: Vec<String> = [
        "--unixsocket",
        &socket.display().to_string(),
        "--bind",
        "127.0.0.1",
        "--port",
        plain,
        "--dir",
        &folder.display().to_string(),
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.extend(tls.iter().flatten().map(|part| (*part).to_owned()));
    arguments.extend(options.iter().cloned());
    let mut process = Process::start(Launch {
        program: "redis-server",
        arguments,
        user: None,
        folder,
        stop: "KILL",
    });
    wait_until("redis-server answers", || {
        if let Some(words) = process.last_words() {
            panic!("redis-server ended at once: {words}");
        }
        answers(&socket)
    });
    process
}

fn answers(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else {
        return false;
    };
    let mut answer = [0; 5];
    stream.write_all(b"PING\r\n").is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && &answer == b"+PONG"
}

/// A prefix that no other test of this process uses.
pub fn fresh_prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("t{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// One server for all tests of this process that only use it (nextest gives each test a process of its own).
/// Nobody stops it: a call that waits for long met a busy machine, and not an outage.
pub async fn shared() -> &'static RedisServer {
    static SERVER: OnceCell<RedisServer> = OnceCell::const_new();
    let patient = async || RedisServer {
        patience: Some(Duration::from_secs(10)),
        ..RedisServer::start().await
    };
    SERVER.get_or_init(patient).await
}
