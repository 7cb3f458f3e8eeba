//! The README's tour, line by line in a shell: what it promises is what happens.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
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

/// All files below a folder whose names end so.
fn files(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap();
    let all = entries.flat_map(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, kind)
        } else {
            vec![path]
        }
    });
    all.filter(|path| path.extension().is_some_and(|own| own == kind))
        .collect()
}

#[test]
fn no_module_reaches_into_anothers_tables() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clinic");
    let schema = std::fs::read_to_string(folder.join("schema.sql")).unwrap();
    let tables = schema.split("create table if not exists ").skip(1);
    let tables: Vec<&str> = tables
        .map(|rest| rest.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(tables.len(), 7, "{tables:?}");
    for table in tables {
        let mut modules = BTreeSet::new();
        for path in files(&folder, "rs") {
            let name = path.strip_prefix(&folder).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            // A test that begins anew empties whatever there is.
            let emptied = format!("\"delete from {table}\"");
            let text = match name.to_str() {
                Some("hooks/world.rs") => text.replace(&emptied, ""),
                _ => text,
            };
            if text.contains(table) {
                let owner = name.with_extension("");
                modules.extend(owner.iter().next().map(|part| part.to_owned()));
            }
        }
        assert_eq!(modules.len(), 1, "{table} in {modules:?}");
    }
}

#[test]
fn html_is_in_pages_and_there_is_no_macro_and_one_type_parameter_at_most() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clinic");
    for path in files(&folder, "rs") {
        let (name, text) = (path.display(), std::fs::read_to_string(&path).unwrap());
        for line in text.lines().filter(|line| !line.trim().starts_with("//")) {
            assert!(!line.contains("macro_rules!"), "{name}: {line}");
            let tag = line
                .split("\"<")
                .nth(1)
                .and_then(|rest| rest.chars().next());
            let is_tag = tag.is_some_and(|first| first.is_ascii_alphabetic() || first == '!');
            assert!(!is_tag && !line.contains("</"), "{name}: {line}");
        }
        for item in ["fn ", "struct ", "enum ", "trait ", "impl<", "type "] {
            for (_, rest) in text
                .match_indices(item)
                .map(|(at, _)| text[at..].split_at(item.len()))
            {
                let rest = match item {
                    "impl<" => rest,
                    _ => rest
                        .trim_start_matches(|one: char| one.is_alphanumeric() || one == '_')
                        .strip_prefix('<')
                        .unwrap_or(">"),
                };
                let parameters = rest
                    .split_once('>')
                    .map_or("", |(parameters, _)| parameters);
                let types = parameters
                    .split(',')
                    .filter(|one| !one.trim().is_empty() && !one.trim().starts_with('\''));
                assert!(types.count() <= 1, "{name}: {item}{parameters}");
            }
        }
    }
}

#[test]
fn every_file_is_short_and_opens_with_a_line_to_try_and_a_test_that_proves_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("examples/clinic");
    let tests = files(&root.join("tests/it"), "rs");
    let tests: String = tests
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    for name in TOUR.split('`').filter(|word| word.ends_with(".rs")) {
        assert!(folder.join(name).exists(), "{name}");
    }
    for path in files(&folder, "rs") {
        let (name, text) = (path.display(), std::fs::read_to_string(&path).unwrap());
        let most = if path.ends_with("main.rs") { 85 } else { 170 };
        let length = text.lines().count();
        assert!(length <= most, "{name} has {length} lines");
        let head: Vec<&str> = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .collect();
        assert!(
            head.iter().any(|line| line.starts_with("//! Try it: ")),
            "{name}"
        );
        let proof = head
            .iter()
            .find_map(|line| line.strip_prefix("//! Proof: `")?.strip_suffix('`'));
        let proof = proof.unwrap_or_else(|| panic!("{name} has no proof"));
        assert!(tests.contains(&format!("fn {proof}(")), "{name}: {proof}");
    }
}

/// What would keep, lock or time something.
const OWN_MEANS: [&str; 4] = [
    "HashMap HashSet BTreeMap BTreeSet VecDeque BinaryHeap LinkedList DashMap",
    "Mutex RwLock Semaphore Condvar",
    "OnceLock LazyLock OnceCell LazyCell thread_local static",
    "sleep sleep_until interval interval_at timeout timeout_at Instant SystemTime",
];

/// The files that have something of their own all the same, each with its words, and what for.
const OWN_BY_RIGHT: [(&str, &str, &str); 13] = [
    (
        "bookings.rs",
        "BTreeMap",
        "sorts the customers of one answer",
    ),
    (
        "deliveries.rs",
        "interval",
        "what was left undone is looked for",
    ),
    (
        "health.rs",
        "OnceLock static",
        "the process has one recorder of metrics",
    ),
    (
        "health.rs",
        "interval Instant",
        "metrics are put away, and a check takes time",
    ),
    ("hooks/line.rs", "sleep", "a test orders delays"),
    (
        "hooks/world.rs",
        "RwLock",
        "a test begins the practice anew",
    ),
    ("hooks/world.rs", "timeout", "a stop waits only so long"),
    (
        "limits.rs",
        "timeout",
        "a quota is asked for in time or not at all",
    ),
    ("pages.rs", "LazyLock static", "templates are read once"),
    ("patience.rs", "sleep", "a body comes in time or not at all"),
    (
        "provider.rs",
        "timeout",
        "a provider answers in time or is away",
    ),
    (
        "serve.rs",
        "Instant timeout sleep",
        "a stop waits only so long",
    ),
    (
        "serve/connections.rs",
        "sleep",
        "a moment without descriptors passes",
    ),
];

#[test]
fn what_is_kept_locked_or_timed_is_left_to_the_crate() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clinic");
    let mut found = BTreeSet::new();
    for path in files(&folder, "rs") {
        let name = path.strip_prefix(&folder).unwrap().to_str().unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        for line in text.lines().filter(|line| !line.trim().starts_with("//")) {
            // What stands in quotes is said, and `'static` is no place to keep anything.
            let said: String = line.split('"').step_by(2).collect();
            let said = said.replace("'static", "");
            let words = said.split(|one: char| !(one.is_alphanumeric() || "_-".contains(one)));
            let means = || OWN_MEANS.iter().flat_map(|means| means.split(' '));
            let own = words.filter(|word| means().any(|means| means == *word));
            found.extend(own.map(|word| (name.to_owned(), word.to_owned())));
        }
    }
    let allowed = OWN_BY_RIGHT.iter().flat_map(|(file, words, _)| {
        words
            .split(' ')
            .map(|word| ((*file).to_owned(), word.to_owned()))
    });
    // An entry that no longer applies fails, too.
    assert_eq!(found, allowed.collect::<BTreeSet<_>>());
}
