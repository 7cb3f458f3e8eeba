//! A primary, a replica, and three sentinels that watch over them under the name `main`.

use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::authority::Authority;
use super::launch::{Launch, Port, Process, wait_until};
use super::redis::{RedisServer, raw};
use super::redis_cluster::info;

/// In the clear, for the tests' own questions.
const SOCKET: &str = "sentinel.sock";

/// The set; all processes are killed on drop.
#[derive(Debug)]
pub struct RedisSentinels {
    pub servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
    scheme: &'static str,
}

#[derive(Debug)]
struct Sentinel {
    process: Process,
    port: Port,
    folder: TempDir,
}

impl RedisSentinels {
    pub async fn start() -> Self {
        Self::start_with(&[], "redis+sentinel").await
    }

    /// Starts a set that speaks TLS only, with clients and among themselves.
    pub async fn start_tls(authority: &Authority) -> Self {
        let mut settings = authority.settings(&["127.0.0.1"]);
        settings.push(["tls-replication", "yes"].map(str::to_owned));
        Self::start_with(&settings, "rediss+sentinel").await
    }

    /// `settings` are for the servers and for the sentinels.
    async fn start_with(settings: &[[String; 2]], scheme: &'static str) -> Self {
        let mut options: Vec<String> = ["--save", "", "--repl-diskless-sync-delay", "0"]
            .map(str::to_owned)
            .to_vec();
        for [name, value] in settings {
            options.extend([format!("--{name}"), value.clone()]);
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let primary = RedisServer::start_with(&options).await;
        let port = primary.address().port().to_string();
        let following = [&options[..], &["--replicaof", "127.0.0.1", &port]].concat();
        let replica = RedisServer::start_with(&following).await;
        let started = Instant::now();
        while !info(&mut replica.raw().await, "replication")
            .await
            .contains("master_link_status:up")
        {
            assert!(started.elapsed() < Duration::from_secs(30), "a replica");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let sentinels = (0..3).map(|_| Sentinel::start(&port, settings)).collect();
        let set = Self {
            servers: vec![primary, replica],
            sentinels,
            scheme,
        };
        for sentinel in &set.sentinels {
            sentinel.until_it_knows_the_others().await;
        }
        set
    }

    pub fn url(&self) -> String {
        let places: Vec<String> = self
            .sentinels
            .iter()
            .map(|sentinel| format!("127.0.0.1:{}", sentinel.port.number))
            .collect();
        format!("{}://{}/main", self.scheme, places.join(","))
    }

    /// Kills the sentinel that the URL names first.
    pub fn kill_first_sentinel(&mut self) {
        self.sentinels[0].process.kill();
    }

    /// Freezes the sentinel that the URL names first: it accepts, but does not answer.
    pub fn pause_first_sentinel(&self) {
        self.sentinels[0].process.signal("STOP");
    }
}

impl Sentinel {
    fn start(primary: &str, more: &[[String; 2]]) -> Self {
        let (folder, port) = (TempDir::new().unwrap(), Port::claim());
        let settings = folder.path().join("sentinel.conf");
        let listens = match more {
            [] => "port",
            _tls => "port 0\ntls-port",
        };
        let mut text = format!(
            "{listens} {}\nunixsocket {}\nbind 127.0.0.1\ndir {}\nsentinel monitor main 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds main 400\nsentinel failover-timeout main 2000\n",
            port.number,
            folder.path().join(SOCKET).display(),
            folder.path().display(),
        );
        for [name, value] in more {
            text.push_str(&format!("{name} {value}\n"));
        }
        std::fs::write(&settings, text).unwrap();
        let mut process = Process::start(Launch {
            program: "redis-server",
            arguments: vec![settings.display().to_string(), "--sentinel".to_owned()],
            user: None,
            folder: folder.path(),
            stop: "KILL",
        });
        wait_until("a sentinel listens", || {
            if let Some(words) = process.last_words() {
                panic!("a sentinel ended at once: {words}");
            }
            std::net::TcpStream::connect(("127.0.0.1", port.number)).is_ok()
        });
        Self {
            process,
            port,
            folder,
        }
    }

    async fn until_it_knows_the_others(&self) {
        let socket = self.folder.path().join(SOCKET);
        let mut raw = raw(&format!("redis+unix://{}", socket.display())).await;
        let started = Instant::now();
        loop {
            let told = info(&mut raw, "sentinel").await;
            if told.contains("slaves=1,sentinels=3") {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(30), "{told}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
