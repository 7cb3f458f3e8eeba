//! A Postgres of one's own: from a template folder made once, on a unix socket and a port.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::launch::{Launch, Port, Process, command, find, user_id};

/// A private server; stopped and its folder removed on drop.
#[derive(Debug)]
pub struct PostgresServer {
    process: Process,
    folder: TempDir,
    port: Port,
    durable: bool,
}

impl PostgresServer {
    /// Starts a server that does not wait for the disk.
    pub async fn start() -> Self {
        Self::start_with(false)
    }

    /// Starts a server that survives a power cut with every commit it acknowledged.
    pub async fn start_durable() -> Self {
        Self::start_with(true)
    }

    fn start_with(durable: bool) -> Self {
        let folder = folder_of_owner();
        check(Command::new("cp").arg("-a").args([
            template().as_os_str(),
            folder.path().join("data").as_os_str(),
        ]));
        let port = Port::claim();
        let process = launch(folder.path(), &port, durable);
        Self {
            process,
            folder,
            port,
            durable,
        }
    }

    /// Makes a fresh database and returns its URL on the unix socket.
    pub async fn database(&self) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("d{}", NEXT.fetch_add(1, Ordering::Relaxed));
        check(asking("createdb", self.folder.path(), &self.port).args(["-U", "postgres", &name]));
        self.url_of(&name)
    }

    /// The URL of a database on the unix socket.
    pub fn url_of(&self, database: &str) -> String {
        let host = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{host}:{}/{database}", self.port.number)
    }

    /// The URL of a database on TCP.
    pub fn tcp_url_of(&self, database: &str) -> String {
        format!("postgres://postgres@{}/{database}", self.address())
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port.number).into()
    }

    /// Kills the server and its children at once, as a power cut would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same folder and addresses.
    pub fn restart(&mut self) {
        self.kill();
        self.process = launch(self.folder.path(), &self.port, self.durable);
    }

    /// Freezes the server and its children: they accept, but do not answer.
    pub fn pause(&self) {
        self.process.signal("STOP");
    }

    pub fn resume(&self) {
        self.process.signal("CONT");
    }
}

/// One server for all tests of this process that only use it (nextest gives each test a process of its own).
pub async fn shared() -> &'static PostgresServer {
    static SERVER: OnceCell<PostgresServer> = OnceCell::const_new();
    SERVER.get_or_init(PostgresServer::start).await
}

fn launch(folder: &Path, port: &Port, durable: bool) -> Process {
    let give_up = Instant::now() + Duration::from_secs(30);
    let mut process = start(folder, port, durable);
    loop {
        let ready = asking("pg_isready", folder, port).arg("-q").status();
        if ready.unwrap().success() {
            return process;
        }
        if let Some(words) = process.last_words() {
            // After a kill the last children may still be going; the memory they share bars the successor.
            assert!(
                words.contains("shared memory block") && Instant::now() < give_up,
                "postgres ended at once: {words}"
            );
            process = start(folder, port, durable);
        }
        assert!(
            Instant::now() < give_up,
            "postgres does not answer within 30 s"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn start(folder: &Path, port: &Port, durable: bool) -> Process {
    let sync = if durable { "on" } else { "off" };
    let settings = [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={}", port.number),
        format!("unix_socket_directories={}", folder.display()),
        format!("fsync={sync}"),
        format!("synchronous_commit={sync}"),
        format!("full_page_writes={sync}"),
        "max_connections=200".to_owned(),
        "shared_buffers=16MB".to_owned(),
        // In the folder, where a killed server leaves nothing behind.
        "dynamic_shared_memory_type=mmap".to_owned(),
    ];
    let mut arguments = vec!["-D".to_owned(), folder.join("data").display().to_string()];
    arguments.extend(
        settings
            .into_iter()
            .flat_map(|setting| ["-c".to_owned(), setting]),
    );
    Process::start(Launch {
        program: "postgres",
        arguments,
        user: owner(),
        folder,
        stop: "QUIT",
    })
}

/// A client program of Postgres, speaking to the server in `folder`.
fn asking(program: &str, folder: &Path, port: &Port) -> Command {
    let mut command = Command::new(find(program));
    command
        .arg("-h")
        .arg(folder)
        .args(["-p", &port.number.to_string()]);
    command
}

/// A cluster made by initdb once per version and owner; a file lock keeps parallel tests apart.
fn template() -> PathBuf {
    let version = check(Command::new(find("postgres")).arg("--version")).stdout;
    let version = String::from_utf8(version).unwrap();
    let version = version.split_whitespace().nth(2).unwrap();
    let home = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let template = home.join(format!("postgres-{version}-{}", owner().unwrap_or("own")));
    let lock = File::create(template.with_added_extension("lock")).unwrap();
    lock.lock().unwrap();
    if !template.exists() {
        // The owner may not reach into our target folder: made elsewhere, then brought in, then named.
        let (made, unnamed) = (
            folder_of_owner(),
            template.with_added_extension("unfinished"),
        );
        let _ = fs::remove_dir_all(&unnamed);
        let data = made.path().join("data");
        check(
            command(&find("initdb"), owner())
                .args(["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"])
                .args(["--locale=C", "--wal-segsize=1", "-D"])
                .arg(&data)
                .current_dir("/"),
        );
        check(Command::new("cp").arg("-a").args([&data, &unnamed]));
        fs::rename(unnamed, &template).unwrap();
    }
    template
}

pub fn folder_of_owner() -> TempDir {
    let folder = TempDir::new().unwrap();
    if let Some(user) = owner() {
        check(Command::new("chown").arg(user).arg(folder.path()));
    }
    folder
}

/// Postgres refuses to run as root.
pub fn owner() -> Option<&'static str> {
    let passwd = || fs::read_to_string("/etc/passwd").unwrap_or_default();
    match user_id() {
        0 if passwd().lines().any(|line| line.starts_with("postgres:")) => Some("postgres"),
        0 => Some("nobody"),
        _ => None,
    }
}

#[track_caller]
fn check(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {words}");
    output
}

#[tokio::test]
async fn a_killed_server_comes_back_with_what_was_committed() {
    let mut server = PostgresServer::start_durable().await;
    let url = server.database().await;
    run(&url, "create table kept (n int)").await;
    run(&url, "insert into kept values (1)").await;
    for _ in 0..2 {
        server.kill();
        server.restart();
        assert_eq!(run(&url, "update kept set n = n + 1").await, 1);
    }
}

#[tokio::test]
async fn databases_are_apart() {
    let server = shared().await;
    for _ in 0..2 {
        run(&server.database().await, "create table here (n int)").await;
    }
    run(&server.tcp_url_of("postgres"), "select 1").await;
}

async fn run(url: &str, statement: &'static str) -> u64 {
    use sqlx::{Connection, Executor};
    let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
    let done = connection.execute(sqlx::raw_sql(statement)).await;
    done.unwrap().rows_affected()
}
