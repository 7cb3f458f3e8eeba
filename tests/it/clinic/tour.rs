//! The README's tour, line by line in a shell: what it promises is what happens.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::support::{Program, RedisServer};

const TOUR: &str = include_str!("../../../examples/clinic/README.md");

/// The lines of all blocks to be typed, between two headings.
fn lines(from: &str, to: &str) -> Vec<&'static str> {
    let start = TOUR.find(from).unwrap();
    let end = TOUR[start..].find(to).unwrap() + start;
    let blocks = TOUR[start..end].split("```").skip(1).step_by(2);
    let typed = blocks.filter_map(|block| block.strip_prefix("sh\n"));
    typed.flat_map(str::lines).collect()
}

/// A shell that somebody types into.
struct Shell {
    _child: Child,
    keys: ChildStdin,
    screen: BufReader<ChildStdout>,
}

impl Shell {
    fn start(folder: &std::path::Path) -> Self {
        let mut command = Command::new("bash");
        command.arg("-s").current_dir(folder).kill_on_drop(true);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Self {
            keys: child.stdin.take().unwrap(),
            screen: BufReader::new(child.stdout.take().unwrap()),
            _child: child,
        }
    }

    /// Types a line and returns what it printed.
    async fn run(&mut self, line: &str) -> String {
        let typed = format!("{line}\necho; echo --done--\n");
        self.keys.write_all(typed.as_bytes()).await.unwrap();
        let mut printed = String::new();
        while !printed.ends_with("\n--done--\n") {
            let read = self.screen.read_line(&mut printed).await.unwrap();
            assert!(read > 0, "the shell ended at {line:?}: {printed}");
        }
        printed
    }

    /// Types a line; every answer it got has the status that its comment promises.
    async fn check(&mut self, line: &str) -> String {
        let printed = self.run(line).await;
        let statuses = printed
            .lines()
            .filter_map(|line| line.strip_prefix("HTTP/1.1 "));
        let statuses: Vec<&str> = statuses.map(|status| &status[..3]).collect();
        let promised = line.rsplit_once(" # ").map(|(_, comment)| comment.trim());
        match promised {
            Some(promised) => {
                assert!(!statuses.is_empty(), "{line}: {printed}");
                assert!(
                    statuses.iter().all(|status| *status == promised),
                    "{line}: {printed}"
                );
            }
            None => assert!(statuses.is_empty(), "{line}: {printed}"),
        }
        printed
    }
}

#[tokio::test]
async fn the_tour_of_the_readme_is_true_line_by_line() {
    let clinic = Program::start("clinic", &["--listen", "127.0.0.1:0"]);
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(folder.path());
    let here = |line: &str, clinic: &Program| {
        line.replace("localhost:8080", &clinic.address().to_string())
    };
    let mut printed = Vec::new();
    for line in lines("## Six things to try", "**Pull the store.**") {
        printed.push(shell.check(&here(line, &clinic)).await);
    }
    let printed = printed.concat();
    for promised in [
        "cache-status: clinic;hit",
        "idempotency-replayed: true",
        "SLOT_TEMPORARILY_RESERVED",
        "booked",
    ] {
        assert!(printed.contains(promised), "no {promised} in {printed}");
    }

    let mut redis = RedisServer::start().await;
    let store = redis.tcp_url();
    let clinic = Program::start("clinic", &["--listen", "127.0.0.1:0", "--store", &store]);
    // The functions of the first part know where the first clinic was.
    for line in lines("**Hold.**", "**Retry")
        .iter()
        .filter(|line| line.starts_with("pay()"))
    {
        shell.run(&here(line, &clinic)).await;
    }
    let mut printed = Vec::new();
    for line in lines("Then, with the functions from above", "## Read it") {
        if line.starts_with("redis-cli") {
            redis.kill();
        } else {
            printed.push(shell.check(&here(line, &clinic)).await);
        }
    }
    assert!(printed.concat().contains("\"degraded\""), "{printed:?}");
}

#[test]
fn every_file_that_the_tour_names_is_there_and_opens_with_a_line_to_try() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clinic");
    let named = TOUR.split('`').filter(|word| word.ends_with(".rs"));
    for name in named {
        let text = std::fs::read_to_string(folder.join(name)).unwrap_or_else(|_| panic!("{name}"));
        assert!(text.starts_with("//! "), "{name}");
    }
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let length = text.lines().count();
            assert!(length <= 320, "{} has {length} lines", path.display());
        }
    }
}
