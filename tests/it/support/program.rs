//! An example program, built by cargo beside the tests, started with options of its own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::launch::signal;

/// What an example logs where its log is read.
const LOGGED: &str = "info,tower_keep=trace,clinic=trace";

/// A running example; killed on drop.
#[derive(Debug)]
pub struct Program {
    child: Child,
    address: SocketAddr,
}

impl Program {
    /// Starts `example` and waits for the line that tells its address.
    pub fn start(example: &str, arguments: &[&str]) -> Self {
        Self::begin(command(example, arguments), example)
    }

    /// Starts `example` as it is shipped: no more patient than it is by itself.
    pub fn start_as_shipped(example: &str, arguments: &[&str]) -> Self {
        let mut command = command(example, arguments);
        command.env_remove("CLINIC_LIMIT_TIMEOUT_MS");
        Self::begin(command, example)
    }

    /// Starts `example` with so many descriptors and no more.
    pub fn start_with_descriptors(example: &str, arguments: &[&str], most: u32) -> Self {
        let own = command(example, arguments);
        let mut command = Command::new("sh");
        let limit = format!("ulimit -n {most}; exec \"$0\" \"$@\"");
        command.args(["-c", &limit]).arg(own.get_program());
        command.args(own.get_args()).stdin(Stdio::null());
        Self::begin(command, example)
    }

    /// Starts `example` with a variable of its environment set.
    pub fn start_with(example: &str, arguments: &[&str], variable: (&str, &OsStr)) -> Self {
        let mut command = command(example, arguments);
        command.env(variable.0, variable.1);
        Self::begin(command, example)
    }

    /// Starts `example` with its log in a file, as talkative as it can be of its own affairs.
    pub fn start_logging(example: &str, arguments: &[&str], log: std::fs::File) -> Self {
        let mut command = command(example, arguments);
        command.env("RUST_LOG", LOGGED).stderr(log);
        Self::begin(command, example)
    }

    fn begin(mut command: Command, example: &str) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("{example} ended before it listened"))
            .unwrap();
        let address = line
            .rsplit("http://")
            .next()
            .and_then(|text| text.trim().parse().ok());
        let address =
            address.unwrap_or_else(|| panic!("{example} said {line:?}, not where it listens"));
        // Whatever comes later is read, so that the pipe never fills.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Memory that it has in use, in KiB.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Sends a signal by name, such as `TERM`.
    pub fn signal(&self, name: &str) {
        signal(name, &[self.child.id().to_string()]);
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs an example to its end: exit code, standard output, standard error.
pub fn run(example: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = command(example, arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Runs an example whose standard output nobody reads any more: exit code, standard error.
pub fn run_unread(example: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = command(example, arguments)
        .stdout(writer)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), error)
}

/// A command that runs an example.
pub fn command(example: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(path(example));
    command.args(arguments).stdin(Stdio::null());
    for name in [
        "CLINIC_LISTEN",
        "KEEP_STORE",
        "DATABASE_URL",
        "CLINIC_TRUSTED_HOPS",
        "CLINIC_SECRET",
        "CLINIC_WEBHOOK_SECRET",
        "CLINIC_CRON_SECRET",
        "CLINIC_HEALTH_SECONDS",
    ] {
        command.env_remove(name);
    }
    // A machine that builds and tests beside is busy, and its Redis is not slow for that.
    command.env("CLINIC_LIMIT_TIMEOUT_MS", "500");
    command
}

fn path(example: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests
        .parent()
        .and_then(|deps| deps.parent())
        .unwrap()
        .join("examples")
        .join(example);
    assert!(
        path.exists(),
        "build it first: cargo build --example {example}"
    );
    path
}
