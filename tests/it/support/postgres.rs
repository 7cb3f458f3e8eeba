//! A Postgres of one's own: from a template folder made once, on a unix socket and a free port.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use tempfile::TempDir;

use super::launch::{Process, find, free_port, wait_until};

/// A private server; killed and its folder removed on drop.
#[derive(Debug)]
pub struct PostgresServer {
    process: Process,
    folder: TempDir,
    port: u16,
    durable: bool,
}

impl PostgresServer {
    /// Starts a server that does not wait for the disk.
    pub async fn start() -> Self {
        Self::start_with(false)
    }

    /// Starts a server that survives `kill -9` with every commit it acknowledged.
    pub async fn start_durable() -> Self {
        Self::start_with(true)
    }

    fn start_with(durable: bool) -> Self {
        let folder = TempDir::new().unwrap();
        copy_template(folder.path());
        let port = free_port();
        let process = launch(folder.path(), port, durable);
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
        let made = run_as_owner(
            &find("createdb"),
            &[
                "-h",
                &self.socket_folder(),
                "-p",
                &self.port.to_string(),
                "-U",
                "postgres",
                &name,
            ],
        );
        assert!(made, "createdb failed");
        self.url_of(&name)
    }

    /// The URL of a database on the unix socket.
    pub fn url_of(&self, database: &str) -> String {
        let host = self.socket_folder().replace('/', "%2F");
        format!("postgres://postgres@{host}:{}/{database}", self.port)
    }

    /// The URL of a database on TCP.
    pub fn tcp_url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    pub fn address(&self) -> std::net::SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Kills the server and its children at once, as a power cut would.
    pub fn kill(&mut self) {
        kill_children(self.process.id());
        self.process.kill();
    }

    /// Starts it again on the same folder and addresses.
    pub fn restart(&mut self) {
        self.kill();
        let _ = fs::remove_file(self.folder.path().join("data/postmaster.pid"));
        self.process = launch(self.folder.path(), self.port, self.durable);
    }

    fn socket_folder(&self) -> String {
        self.folder.path().display().to_string()
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launch(folder: &Path, port: u16, durable: bool) -> Process {
    let sync = if durable { "on" } else { "off" };
    let mut arguments = vec!["-D".to_owned(), folder.join("data").display().to_string()];
    arguments.extend([
        "-k".to_owned(),
        folder.display().to_string(),
        "-p".to_owned(),
        port.to_string(),
    ]);
    arguments.extend(["-c".to_owned(), "listen_addresses=127.0.0.1".to_owned()]);
    arguments.extend([
        "-c".to_owned(),
        format!("fsync={sync}"),
        "-c".to_owned(),
        format!("synchronous_commit={sync}"),
    ]);
    arguments.extend(["-c".to_owned(), "max_connections=200".to_owned()]);
    let mut process = Process::start("postgres", &arguments, owner());
    let port = port.to_string();
    let ready = find("pg_isready");
    wait_until("postgres answers", || {
        assert!(!process.has_ended(), "postgres ended at once");
        let asked = Command::new(&ready)
            .args(["-q", "-h", &folder.display().to_string(), "-p", &port])
            .status();
        asked.is_ok_and(|status| status.success())
    });
    process
}

/// Copies a cluster made by initdb once per machine user; a file lock keeps parallel tests apart.
fn copy_template(folder: &Path) {
    let template = template();
    let copied = Command::new("cp")
        .args(["-a", &template.display().to_string()])
        .arg(folder.join("data"))
        .status();
    assert!(
        copied.unwrap().success(),
        "cannot copy the template cluster"
    );
    if let Some(user) = owner() {
        let owned = Command::new("chown")
            .args([user, &folder.display().to_string()])
            .status();
        assert!(owned.unwrap().success());
    }
}

fn template() -> PathBuf {
    let home =
        std::env::temp_dir().join(format!("keep-test-postgres-{}", owner().unwrap_or("own")));
    fs::create_dir_all(&home).unwrap();
    let lock = File::create(home.join("lock")).unwrap();
    lock.lock().unwrap();
    let (template, finished) = (home.join("template"), home.join("finished"));
    if !finished.exists() {
        let _ = fs::remove_dir_all(&template);
        fs::create_dir_all(&template).unwrap();
        if let Some(user) = owner() {
            let folders = [home.display().to_string(), template.display().to_string()];
            assert!(
                Command::new("chown")
                    .arg(user)
                    .args(folders)
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let arguments = [
            "-D",
            &template.display().to_string(),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-N",
            "-E",
            "UTF8",
            "--locale=C",
        ];
        assert!(run_as_owner(&find("initdb"), &arguments), "initdb failed");
        File::create(finished).unwrap();
    }
    template
}

/// Postgres refuses to run as root.
fn owner() -> Option<&'static str> {
    let is_root =
        fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let has_postgres = passwd.lines().any(|line| line.starts_with("postgres:"));
    match (is_root, has_postgres) {
        (false, _) => None,
        (true, true) => Some("postgres"),
        (true, false) => Some("nobody"),
    }
}

fn run_as_owner(program: &Path, arguments: &[&str]) -> bool {
    let mut command = match owner() {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command
                .args([&format!("--reuid={user}"), "--clear-groups", "--"])
                .arg(program);
            command
        }
        None => Command::new(program),
    };
    let output = command.args(arguments).current_dir("/").output().unwrap();
    if !output.status.success() {
        eprintln!("{}", String::from_utf8_lossy(&output.stderr));
    }
    output.status.success()
}

fn kill_children(parent: u32) {
    let _ = Command::new("pkill")
        .args(["-KILL", "-P", &parent.to_string()])
        .status();
}
