//! The laws of the house (ARCHITECTURE.md) that a program can check, each a test of its own.
//!

//! What stands in an allow-list is known and wants to leave: an entry that no longer applies fails too.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const LAYERS: [&str; 5] = [
    "rate_limit",
    "idempotency",
    "session",
    "response_cache",
    "reservation",
];
const SERVICES: [&str; 7] = [
    "data/cache",
    "data/counter",
    "data/health",
    "data/lock",
    "data/once",
    "data/queue",
    "data/topic",
];
const ENGINES: [&str; 5] = ["memory", "redis", "sql", "fallback", "fault"];

/// A source file: its path below `src`, and its code without comments, strings' contents kept, tests cut off.
struct Source {
    path: String,
    text: String,
    code: Vec<(usize, String)>,
}

impl Source {
    fn room(&self) -> &str {
        self.path.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_in(&self, place: &str) -> bool {
        self.path.starts_with(place)
    }

    fn find<'a>(&'a self, words: &'a [&str]) -> impl Iterator<Item = String> + 'a {
        self.code
            .iter()
            .filter(|(_, line)| words.iter().any(|word| line.contains(word)))
            .map(|(number, line)| format!("{}:{number}: {}", self.path, line.trim()))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            files_below(&path, ending, found);
        } else if path.extension().is_some_and(|own| own == ending) {
            found.push(path);
        }
    }
}

fn sources() -> Vec<Source> {
    let (src, mut found) = (root().join("src"), Vec::new());
    files_below(&src, "rs", &mut found);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let path = path
            .strip_prefix(&src)
            .unwrap()
            .to_string_lossy()
            .replace('\\', "/");
        let code = code_of(&text);
        Source { path, text, code }
    };
    found
        .into_iter()
        .map(read)
        .filter(|source| !is_test_file(&source.path))
        .collect()
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Lines of code with their numbers: no comments, nothing from the test module on.
fn code_of(text: &str) -> Vec<(usize, String)> {
    let before_tests = text.find("#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..before_tests]
        .lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(number, line)| {
            (
                number,
                line.split(" // ").next().unwrap_or_default().to_owned(),
            )
        })
        .collect()
}

/// Fails with every offence that is not allowed, and with every allowance that nobody needs.
#[track_caller]
fn check(offences: impl IntoIterator<Item = String>, allowed: &[&str]) {
    let (mut bad, mut needed) = (Vec::new(), BTreeSet::new());
    for offence in offences {
        match allowed
            .iter()
            .find(|allowed| offence.starts_with(**allowed))
        {
            Some(allowance) => drop(needed.insert(*allowance)),
            None => bad.push(offence),
        }
    }
    assert!(
        bad.is_empty(),
        "against the house rules:\n{}",
        bad.join("\n")
    );
    let idle: Vec<_> = allowed
        .iter()
        .filter(|allowed| !needed.contains(**allowed))
        .collect();
    assert!(
        idle.is_empty(),
        "no longer needed, take them off the allow-list: {idle:?}"
    );
}

#[test]
fn every_file_says_in_its_first_line_what_lives_there() {
    check(
        sources()
            .iter()
            .filter(|source| !source.text.starts_with("//! "))
            .map(|source| source.path.clone()),
        &[],
    );
}

#[test]
fn imports_run_downward_only() {
    let mut offences = Vec::new();
    for source in sources() {
        let room = source.room();
        let upward: Vec<String> = match room {
            "core" => [&LAYERS[..], &["backend", "conformance", "data", "store"]]
                .concat()
                .iter()
                .map(|room| format!("crate::{room}"))
                .collect(),
            "backend" => {
                let own = source
                    .path
                    .split('/')
                    .nth(1)
                    .unwrap_or_default()
                    .trim_end_matches(".rs");
                let siblings = ENGINES
                    .iter()
                    .filter(|engine| **engine != own && own != "mod")
                    .map(|engine| format!("backend::{engine}"));
                LAYERS
                    .iter()
                    .chain(&["conformance", "data", "store"])
                    .map(|room| format!("crate::{room}"))
                    .chain(siblings)
                    .collect()
            }
            layer if LAYERS.contains(&layer) => {
                let siblings = LAYERS.iter().filter(|other| **other != layer);
                siblings
                    .chain(&["conformance", "data", "store"])
                    .map(|room| format!("crate::{room}"))
                    .collect()
            }
            "data" => {
                let siblings = SERVICES.iter().filter(|other| !source.is_in(other));
                let siblings = siblings.map(|other| format!("{}::", other.replace('/', "::")));
                LAYERS
                    .iter()
                    .chain(&["conformance", "store"])
                    .map(|room| (*room).to_owned())
                    .chain(siblings)
                    .map(|room| format!("crate::{room}"))
                    .collect()
            }
            _ => Vec::new(),
        };
        let words: Vec<&str> = upward.iter().map(String::as_str).collect();
        offences.extend(source.find(&words));
    }
    check(offences, &[]);
}

#[test]
fn each_engine_is_named_only_where_it_lives() {
    let mut offences = Vec::new();
    for source in sources() {
        let in_test_suite = source.is_in("conformance");
        if !source.is_in("backend/redis") {
            offences.extend(source.find(&[
                "use redis::",
                " ::redis::",
                "redis::aio",
                "redis::cmd",
                "redis::Client",
            ]));
        }
        let sql = source.is_in("backend/sql")
            || source.path.contains("/store/sql")
            || source.path == "reservation/guard.rs";
        if !sql && !in_test_suite {
            offences.extend(source.find(&["sqlx::"]));
        }
        let axum = source.path.ends_with("extract.rs")
            || source.is_in("core/client_ip")
            || source.path == "reservation/guard.rs";
        if !axum {
            offences.extend(source.find(&["axum::", "axum_core::"]));
        }
    }
    check(offences, &[]);
}

#[test]
fn only_the_clock_reads_the_time_but_for_timeouts_and_the_breaker() {
    let mut offences = Vec::new();
    for source in sources()
        .iter()
        .filter(|source| source.path != "core/clock.rs")
    {
        offences.extend(source.find(&["SystemTime::now"]));
        if !source.is_in("backend/") {
            offences.extend(source.find(&["Instant::now"]));
        }
    }
    // The time budget of retries is a timeout.
    check(offences, &["reservation/reservations.rs"]);
}

#[test]
fn policies_are_pure() {
    let policies = sources()
        .into_iter()
        .filter(|source| source.path.ends_with("policy.rs") || source.path.contains("/policy/"));
    let words = [
        "async ",
        ".await",
        "Clock",
        "now_micros",
        "StoreFuture",
        "Mutex",
        "tokio::",
    ];
    check(
        policies.flat_map(|source| source.find(&words).collect::<Vec<_>>()),
        &[],
    );
}

#[test]
fn each_layer_has_the_same_anatomy() {
    let files = [
        "mod.rs",
        "layer.rs",
        "config.rs",
        "service.rs",
        "future.rs",
        "policy.rs",
        "rejection.rs",
        "extract.rs",
        "store/mod.rs",
        "store/memory.rs",
    ];
    let missing = LAYERS
        .iter()
        .flat_map(|layer| files.iter().map(move |file| format!("src/{layer}/{file}")));
    check(missing.filter(|path| !root().join(path).exists()), &[]);
}

#[test]
fn module_pages_have_docs_and_exports_but_no_logic() {
    let pages = sources().into_iter().filter(|source| {
        source.path.ends_with("mod.rs")
            && LAYERS.contains(&source.room())
            && !source.path.contains("store")
    });
    check(
        pages.flat_map(|source| source.find(&["fn ", "impl "]).collect::<Vec<_>>()),
        &[],
    );
}

/// An operator's order to forget a caller is the one thing that looks at every key, and serves no request.
const ALLOWED_WALKS: [&str; 1] = ["src/idempotency/store/purge.lua: SCAN"];

#[test]
fn no_script_and_no_command_walks_the_keyspace() {
    let (mut scripts, mut offences) = (Vec::new(), Vec::new());
    files_below(&root().join("src"), "lua", &mut scripts);
    assert!(scripts.len() > 30, "{} scripts", scripts.len());
    for path in scripts {
        let text = std::fs::read_to_string(&path).unwrap();
        for word in ["'KEYS'", "\"KEYS\"", "SCAN", "FLUSH", "RANDOMKEY"] {
            if text.contains(word) {
                let path = path.strip_prefix(root()).unwrap();
                offences.push(format!("{}: {word}", path.display()));
            }
        }
    }
    for source in sources() {
        offences.extend(source.find(&["\"KEYS\"", "SCAN\"", "\"FLUSH", "\"RANDOMKEY\""]));
    }
    check(offences, &ALLOWED_WALKS);
}

#[test]
fn one_store_method_is_one_lua_file() {
    let mut offences = Vec::new();
    for layer in LAYERS.iter().chain(&SERVICES) {
        let store = root().join("src").join(layer).join("store");
        if !store.join("redis.rs").exists() && !store.join("redis").exists() {
            continue;
        }
        let methods = trait_methods(&fs::read_to_string(store.join("mod.rs")).unwrap());
        let mut scripts = Vec::new();
        files_below(&store, "lua", &mut scripts);
        let scripts: BTreeSet<String> = scripts
            .iter()
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        offences.extend(
            methods
                .difference(&scripts)
                .map(|method| format!("{layer}: method {method} has no script")),
        );
        offences.extend(
            scripts
                .difference(&methods)
                .map(|script| format!("{layer}: script {script} has no method")),
        );
    }
    check(offences, &ALLOWED_SCRIPTS);
}

/// Redis 7.2.0 to 7.2.4 and Valkey 7.2.5 write a number's last eight zeros as an exponent, which no time to live may have.
#[test]
fn scripts_give_times_to_live_as_text() {
    let mut scripts = Vec::new();
    files_below(&root().join("src"), "lua", &mut scripts);
    let mut offences = Vec::new();
    for path in &scripts {
        let text = fs::read_to_string(path).unwrap();
        for line in text.lines() {
            let after_px = line.split("'PX', ").skip(1);
            let after_key = line
                .split("'PEXPIRE', ")
                .skip(1)
                .filter_map(|rest| Some(rest.split_once(", ")?.1));
            for given in after_px.chain(after_key) {
                let is_text = ["string.format(", "text(", "ARGV["];
                let number = given.split(')').next().unwrap();
                let is_short = number.ends_with("REMEMBERED")
                    || number.bytes().all(|byte| byte.is_ascii_digit())
                        && !number.ends_with("00000000");
                let is_named = text.contains(&format!("local {number} = string.format("));
                let is_text = is_text.iter().any(|start| given.starts_with(start));
                if !is_text && !is_named && !is_short {
                    offences.push(format!("{}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    assert!(scripts.len() > 40);
    check(offences, &[]);
}

/// What a script has done is done, though the user may not tell a channel of it: an error would be asked again.
#[test]
fn no_script_fails_because_it_may_tell_nobody() {
    let (mut scripts, mut told) = (Vec::new(), 0);
    files_below(&root().join("src"), "lua", &mut scripts);
    let mut offences = Vec::new();
    for path in scripts {
        let text = fs::read_to_string(&path).unwrap();
        told += text.matches("redis.pcall('PUBLISH'").count();
        if text.contains("redis.call('PUBLISH'") {
            offences.push(path.display().to_string());
        }
    }
    assert!(told > 10, "{told} notices");
    check(offences, &[]);
}

/// Methods that touch no state, and so need no script; and what stands before several scripts, as the prelude does.
const ALLOWED_SCRIPTS: [&str; 21] = [
    "data/cache: method subscribe has no script",
    "data/lock: method subscribe has no script",
    "data/queue: method subscribe has no script",
    "data/queue: script add has no method",
    "data/queue: script commit has no method",
    "data/queue: script follow has no method",
    "data/queue: script moves has no method",
    "data/queue: script order has no method",
    "data/queue: script promise has no method",
    "data/queue: script queue has no method",
    "data/queue: script room has no method",
    "data/queue: script stage has no method",
    "data/queue: script unfold has no method",
    "data/queue: script weigh has no method",
    "data/queue: script whole has no method",
    "data/topic: method subscribe has no script",
    "data/topic: script topic has no method",
    "idempotency: script over has no method",
    "session: script record has no method",
    "session: script usual has no method",
    "response_cache: method subscribe has no script",
];

/// The methods of the first `pub trait …Store` in `text` that return a `StoreFuture`.
fn trait_methods(text: &str) -> BTreeSet<String> {
    let Some(start) = text.find("Store: fmt::Debug") else {
        return BTreeSet::new();
    };
    let body = &text[start..];
    let body = &body[..body.find("\n}").unwrap_or(body.len())];
    let declarations = body.split("\n    fn ").skip(1).filter(|rest| {
        rest.split(';')
            .next()
            .unwrap_or_default()
            .contains("StoreFuture")
    });
    declarations
        .filter_map(|rest| rest.split('(').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn nothing_in_src_panics_or_prints() {
    let words = [
        ".unwrap()",
        ".expect(",
        "panic!(",
        "println!(",
        "todo!(",
        "unimplemented!(",
        "dbg!(",
        "unreachable!(",
    ];
    let speakers = sources()
        .into_iter()
        .filter(|source| !source.is_in("conformance"));
    check(
        speakers.flat_map(|source| source.find(&words).collect::<Vec<_>>()),
        &ALLOWED_PANICS,
    );
}

/// Builders whose documented `# Panics` catches a misconfiguration where it is written.
const ALLOWED_PANICS: [&str; 8] = [
    "data/topic/handle.rs:",
    "core/service_name.rs:",
    "backend/sql/builder.rs:",
    "reservation/layer.rs:",
    "reservation/slot.rs:",
    "rate_limit/config.rs:",
    "rate_limit/partition.rs:",
    "rate_limit/quota.rs:",
];

#[test]
fn a_file_can_be_read_in_one_sitting() {
    let long = |source: &Source| {
        (source.code.len() > 450 && !source.is_in("conformance"))
            .then(|| format!("{}: {} lines", source.path, source.code.len()))
    };
    check(sources().iter().filter_map(long), &[]);
}

#[test]
fn a_function_fits_a_screen() {
    check(
        sources()
            .iter()
            .filter(|source| !source.is_in("conformance"))
            .flat_map(long_functions),
        &[],
    );
}

fn long_functions(source: &Source) -> Vec<String> {
    let (mut open, mut found) = (None::<(usize, usize, String)>, Vec::new());
    for (number, line) in &source.code {
        let (text, indent) = (line.trim(), line.len() - line.trim_start().len());
        match &open {
            None if is_function(text) && !text.ends_with(';') => {
                open = Some((indent, *number, text.to_owned()))
            }
            // The end of a declaration without a body, in a trait.
            Some((start, ..)) if indent == *start && text.ends_with(';') => open = None,
            Some((start, first, name)) if indent == *start && text == "}" => {
                if number - first > 70 {
                    found.push(format!(
                        "{}: {name} ({} lines)",
                        source.path,
                        number - first
                    ));
                }
                open = None;
            }
            _ => {}
        }
    }
    found
}

fn is_function(text: &str) -> bool {
    let words = [
        "pub",
        "pub(crate)",
        "pub(super)",
        "const",
        "async",
        "unsafe",
    ];
    text.split(' ').find(|word| !words.contains(word)) == Some("fn")
}

#[test]
fn no_vague_names() {
    let vague = ["Manager", "Helper", "Util", "Common", "Processor"];
    let names = sources().into_iter().flat_map(|source| {
        let types = ["struct ", "enum ", "trait ", "type "];
        source
            .code
            .iter()
            .filter(|(_, line)| {
                types.iter().any(|word| {
                    line.trim_start()
                        .trim_start_matches("pub ")
                        .trim_start_matches("pub(crate) ")
                        .trim_start_matches("pub(super) ")
                        .starts_with(word)
                }) && vague.iter().any(|word| {
                    line.split(['{', '<', '('])
                        .next()
                        .unwrap_or_default()
                        .contains(word)
                })
            })
            .map(|(number, line)| format!("{}:{number}: {line}", source.path))
            .collect::<Vec<_>>()
    });
    check(names, &[]);
}

#[test]
fn the_docs_name_the_version_of_the_crate() {
    let version = env!("CARGO_PKG_VERSION").rsplit_once('.').unwrap().0;
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(
        readme.contains(&format!("tower-keep = \"{version}")),
        "README.md must say tower-keep = \"{version}\""
    );
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(
        changelog.contains(env!("CARGO_PKG_VERSION")),
        "CHANGELOG.md does not know this version"
    );
}

#[test]
fn every_code_of_a_problem_document_is_on_the_page_that_documents_point_to() {
    let page = fs::read_to_string(root().join("src/problem_codes.md")).unwrap();
    let speakers = sources().into_iter().filter(|source| {
        ["rejection.rs", "error.rs", "problem.rs"]
            .iter()
            .any(|name| source.path.ends_with(name))
    });
    let missing = speakers.flat_map(|source| {
        let path = source.path.clone();
        let texts: Vec<String> = source
            .code
            .iter()
            .flat_map(|(_, line)| {
                line.split('"')
                    .skip(1)
                    .step_by(2)
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .collect();
        texts
            .into_iter()
            .filter(|text| is_code(text))
            .filter(|code| !page.contains(&format!("`{code}`")))
            .map(move |code| format!("{path}: {code}"))
            .collect::<Vec<_>>()
    });
    check(missing, &[]);
}

/// UPPER_SNAKE of at least two words, or the one-word codes.
fn is_code(text: &str) -> bool {
    let upper = text
        .bytes()
        .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
        && !text.is_empty();
    upper
        && (text.contains('_') && !text.starts_with('_') && !text.ends_with('_')
            || ["CONTENTION", "INTERNAL", "MISCONFIGURED"].contains(&text))
}
