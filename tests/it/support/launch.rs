//! Starting and stopping a server process that belongs to one test, and leaving nothing behind.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Waits for the end of its input. A line means that all is in order; an end without one means that the
/// test process is gone (killed, or done without dropping its shared server): the server follows it.
const REAPER: &str = r#"read -r line || {
  kill -s CONT "$1"; kill -s "$2" "$1"
  [ "$2" = KILL ] || { sleep 1; kill -s KILL "$1"; }
  rm -rf "$3"
}"#;

/// A server process in a folder of its own; both go on drop, and also when the test process is killed.
#[derive(Debug)]
pub struct Process {
    server: Child,
    reaper: Child,
    log: PathBuf,
    stop: &'static str,
}

/// What to start.
#[derive(Debug)]
pub struct Launch<'a> {
    pub program: &'a str,
    pub arguments: Vec<String>,
    /// Another user, where the program refuses to run as root.
    pub user: Option<&'static str>,
    /// Where the program keeps its files; removed with the test process.
    pub folder: &'a Path,
    /// The signal that ends it at once, and lets it give back what the kernel would keep.
    pub stop: &'static str,
}

impl Process {
    pub fn start(launch: Launch<'_>) -> Self {
        let log = launch.folder.join("log");
        let output = File::create(&log).unwrap();
        let server = command(&find(launch.program), launch.user)
            .args(launch.arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", launch.program));
        let reaper = Command::new("sh")
            .args(["-c", REAPER, "reaper"])
            .args([&server.id().to_string(), launch.stop])
            .arg(launch.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self {
            server,
            reaper,
            log,
            stop: launch.stop,
        }
    }

    /// Sends a signal by name, such as `STOP`, to the server and its children.
    pub fn signal(&self, name: &str) {
        let id = self.server.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
        let children = children.unwrap_or_default();
        let children = children.split_whitespace().map(str::to_owned);
        signal(
            name,
            &std::iter::once(id.to_string())
                .chain(children)
                .collect::<Vec<_>>(),
        );
    }

    /// Kills the process and its children at once and waits for its end.
    pub fn kill(&mut self) {
        self.end("KILL");
    }

    /// Says what the server wrote, once it has ended.
    pub fn last_words(&mut self) -> Option<String> {
        self.server.try_wait().unwrap()?;
        Some(fs::read_to_string(&self.log).unwrap_or_default())
    }

    fn end(&mut self, signal: &str) {
        // The reaper goes first: once the server is waited for, its number may belong to another process.
        if let Some(mut input) = self.reaper.stdin.take() {
            let _ = std::io::Write::write_all(&mut input, b"\n");
        }
        let _ = self.reaper.wait();
        if let Ok(None) = self.server.try_wait() {
            self.signal(signal);
            self.signal("CONT");
        }
        let _ = self.server.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(self.stop);
    }
}

/// Sends a signal by name, such as `TERM`; a process that has gone is no fault.
pub fn signal(name: &str, processes: &[String]) {
    // The shell's own kill: a program of that name is not on every machine.
    let mut command = Command::new("sh");
    command.args(["-c", r#"kill -s "$@""#, "kill", name]);
    command.args(processes).stderr(Stdio::null());
    command.status().unwrap();
}

/// A command that runs `program` as `user`.
pub fn command(program: &Path, user: Option<&str>) -> Command {
    let Some(user) = user else {
        return Command::new(program);
    };
    let mut command = Command::new("setpriv");
    command
        .args([&format!("--reuid={user}"), "--clear-groups", "--regid"])
        .args([group_of(user), "--".to_owned()])
        .arg(program);
    command
}

fn group_of(user: &str) -> String {
    let output = Command::new("id").args(["-g", user]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The number of the user who runs the tests; 0 is root.
pub fn user_id() -> u32 {
    fs::metadata("/proc/self").map_or(u32::MAX, |own| own.uid())
}

/// Finds a program where the environment says, where Debian keeps Postgres, or in PATH. `KEEP_REDIS_SERVER` is a
/// redis-server or valkey-server of another version, `KEEP_POSTGRES_BIN` a folder of another Postgres' programs.
pub fn find(program: &str) -> PathBuf {
    if let Some(other) = wished(program) {
        return other;
    }
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let number = |entry: &fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    versions
        .filter(|entry| entry.path().join("bin").join(program).exists())
        .max_by_key(number)
        .map(|newest| newest.path().join("bin").join(program))
        .or_else(|| in_path(program))
        .unwrap_or_else(|| {
            panic!("{program} is not installed: run scripts/test, which installs it")
        })
}

fn wished(program: &str) -> Option<PathBuf> {
    if program == "redis-server" {
        return std::env::var_os("KEEP_REDIS_SERVER").map(PathBuf::from);
    }
    // Some packages bring the server only: its clients get on with any.
    let wished = PathBuf::from(std::env::var_os("KEEP_POSTGRES_BIN")?).join(program);
    wished.exists().then_some(wished)
}

fn in_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(program))
        .find(|path| path.exists())
}

/// Asks `ready` again and again, a millisecond apart, until it says yes.
#[track_caller]
pub fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let started = Instant::now();
    while !ready() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{what}: not within 30 s"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A TCP port that no other test takes while this lives.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _claim: File,
}

impl Port {
    /// Claims a port below the range that the kernel hands out by itself, so that nobody else comes upon it
    /// between now and the server's start, or while the server is down.
    pub fn claim() -> Self {
        let claims = std::env::temp_dir().join(format!("tower-keep-ports-{}", user_id()));
        fs::create_dir_all(&claims).unwrap();
        let start = std::process::id() % 10_000;
        (0..10_000)
            .map(|step| 20_000 + ((start + step) % 10_000) as u16)
            .find_map(|number| {
                let claim = File::create(claims.join(number.to_string())).ok()?;
                claim.try_lock().ok()?;
                TcpListener::bind(("127.0.0.1", number)).ok()?;
                Some(Self {
                    number,
                    _claim: claim,
                })
            })
            .expect("a free port from 20000 to 29999")
    }
}
