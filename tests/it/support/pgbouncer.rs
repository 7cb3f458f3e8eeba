//! A pgbouncer of one's own before a Postgres, with few sessions for many clients.

use std::net::{SocketAddr, TcpStream};

use tempfile::TempDir;

use super::PostgresServer;
use super::launch::{Launch, Port, Process, wait_until};
use super::postgres::{folder_of_owner, owner};

/// Stopped and its folder removed on drop.
#[derive(Debug)]
pub struct PgBouncer {
    _process: Process,
    _folder: TempDir,
    port: Port,
}

impl PgBouncer {
    /// Starts one that lends a session for a `mode`: `transaction` or `session`.
    pub fn before(server: &PostgresServer, mode: &str, sessions: u32) -> Self {
        let (folder, port) = (folder_of_owner(), Port::claim());
        let settings = folder.path().join("pgbouncer.ini");
        let (to, on) = (server.address(), port.number);
        // The session last lent is lent last, so that each transaction meets another one.
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={} user=postgres\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {on}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = {mode}\ndefault_pool_size = {sessions}\nserver_round_robin = 1\n\
             ignore_startup_parameters = extra_float_digits\n",
            to.port()
        );
        std::fs::write(&settings, text).unwrap();
        let mut process = Process::start(Launch {
            program: "pgbouncer",
            arguments: vec![settings.display().to_string()],
            user: owner(),
            folder: folder.path(),
            stop: "KILL",
        });
        let address = SocketAddr::from(([127, 0, 0, 1], on));
        wait_until("pgbouncer listens", || {
            if let Some(words) = process.last_words() {
                panic!("pgbouncer ended at once: {words}");
            }
            TcpStream::connect(address).is_ok()
        });
        Self {
            _process: process,
            _folder: folder,
            port,
        }
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port.number).into()
    }

    /// The URL of the database that `direct` names, by way of it.
    pub fn url_of(&self, direct: &str) -> String {
        let database = direct.rsplit('/').next().unwrap();
        format!("postgres://postgres@{}/{database}", self.address())
    }
}
