//! Starting and stopping a server process that belongs to one test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server process; killed on drop, and by the kernel should the test process die first.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `program`; as another user where `user` says so (Postgres refuses to run as root).
    pub fn start(program: &str, arguments: &[String], user: Option<&str>) -> Self {
        let path = find(program);
        let mut command = match launcher() {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]);
                if let Some(user) = user {
                    command.args([
                        &format!("--reuid={user}"),
                        &format!("--regid={user}"),
                        "--clear-groups",
                    ]);
                }
                command.arg("--").arg(path);
                command
            }
            None => Command::new(path),
        };
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
        Self { child }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by name, such as `STOP`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success(), "kill -{name} {} failed", self.id());
    }

    /// Kills the process at once and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn launcher() -> Option<PathBuf> {
    in_path("setpriv")
}

/// Finds a program in PATH, or where Debian keeps Postgres.
pub fn find(program: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut debian: Vec<_> = versions
        .map(|entry| entry.path().join("bin").join(program))
        .collect();
    debian.sort();
    debian
        .into_iter()
        .rev()
        .find(|path| path.exists())
        .or_else(|| in_path(program))
        .unwrap_or_else(|| {
            panic!("{program} is not installed: run scripts/test, which installs it")
        })
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

/// Takes a TCP port that is free at this moment.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
