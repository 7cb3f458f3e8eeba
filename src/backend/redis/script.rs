//! One Lua file: its text behind the shared prelude, its digest computed once.

use std::sync::OnceLock;

const PRELUDE: &str = include_str!("prelude.lua");

/// A script that runs as one atomic step on the server.
///
/// `ARGV[1]` is the clock; the prelude turns it into `now` (microseconds) and `now_ms`. A script's own
/// arguments begin at `ARGV[2]`. It takes key names from `KEYS` and builds none.
#[derive(Debug)]
pub struct Script {
    pub(super) name: &'static str,
    body: Body,
    loaded: OnceLock<Loaded>,
}

#[derive(Debug)]
enum Body {
    File(&'static str),
    Composed(fn() -> String),
}

#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) source: String,
    pub(super) sha: String,
}

impl Script {
    /// Makes a script from the text of its file.
    #[must_use]
    pub const fn new(body: &'static str) -> Self {
        Self::named("script", body)
    }

    /// Makes a script whose calls are measured under `name` (`keep_store_op_seconds{op}`).
    #[must_use]
    pub const fn named(name: &'static str, body: &'static str) -> Self {
        Self::of(name, Body::File(body))
    }

    /// Makes a script whose text is put together of several files, once, before its first call.
    #[must_use]
    pub const fn composed(body: fn() -> String) -> Self {
        Self::of("script", Body::Composed(body))
    }

    const fn of(name: &'static str, body: Body) -> Self {
        Self {
            name,
            body,
            loaded: OnceLock::new(),
        }
    }

    pub(super) fn loaded(&self) -> &Loaded {
        self.loaded.get_or_init(|| {
            let source = match self.body {
                Body::File(text) => format!("{PRELUDE}{text}"),
                Body::Composed(text) => format!("{PRELUDE}{}", text()),
            };
            let sha = redis::Script::new(&source).get_hash().to_owned();
            Loaded { source, sha }
        })
    }
}
