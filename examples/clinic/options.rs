//! The command line: every option, its variable and its default.
//!
//! Try it: `cargo run --example clinic -- --help`
//!
//! Proof: `options_that_cannot_be_are_refused_with_exit_2_and_help_is_told`

mod given;

use std::net::SocketAddr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use self::given::{DATABASES, Given, STORES, random_secret};

/// What `--help` prints.
pub const USAGE: &str = "\
A small practice that takes paid bookings: every layer of tower-keep in one program.

Usage: cargo run --example clinic -- [options]

  --listen ADDR:PORT    CLINIC_LISTEN          where to listen, port 0 takes a free one [127.0.0.1:8080]
  --store URL           KEEP_STORE             memory: or redis://host:port/db [memory:]
  --db URL              DATABASE_URL           sqlite::memory:, sqlite:file.db or postgres://… [sqlite::memory:]
  --trusted-hops N      CLINIC_TRUSTED_HOPS    proxies before us that append to X-Forwarded-For [0]
  --secret S            CLINIC_SECRET          signs guest ids; the processes of one clinic share it [random]
  --webhook-secret S    CLINIC_WEBHOOK_SECRET  signs payment events [random; whsec_test with hooks]
  --cron-secret S       CLINIC_CRON_SECRET     opens the cron route [random; cron_test with hooks]
  --limit-timeout-ms N  CLINIC_LIMIT_TIMEOUT_MS  how long a quota may take to be asked [50]
  --provider-seconds N  CLINIC_PROVIDER_SECONDS  how long the payment provider may take [60]
  --health-seconds N    CLINIC_HEALTH_SECONDS  how long health holds failed calls against a store [60]
  --test-hooks                                 opens /_test/*, on a loopback address only
  --help                                       prints this
";

/// The options after parsing; wrong ones never get here.
#[derive(Clone, Debug)]
pub struct Options {
    pub listen: SocketAddr,
    pub store: String,
    pub db: String,
    pub trusted_hops: u8,
    pub secret: String,
    pub webhook_secret: String,
    pub cron_secret: String,
    pub limit_timeout: Duration,
    pub provider_patience: Duration,
    pub health_window: Duration,
    pub test_hooks: bool,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Wish {
    Run(Box<Options>),
    Help,
}

/// Reads the arguments, then the variables, then the defaults.
///
/// # Errors
/// One sentence about the first option that cannot be understood.
pub fn parse(
    arguments: impl Iterator<Item = String>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Wish, String> {
    let mut given = Given {
        arguments: Vec::new(),
        variable: &variable,
    };
    let (mut test_hooks, mut arguments) = (false, arguments);
    while let Some(argument) = arguments.next() {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        match name.as_str() {
            "--help" | "--test-hooks" if value.is_some() => {
                return Err(format!("{name} takes no value"));
            }
            "--help" => return Ok(Wish::Help),
            "--test-hooks" => test_hooks = true,
            name if NAMES.contains(&name) => {
                let value = value
                    .or_else(|| arguments.next())
                    .ok_or(format!("{name} needs a value"))?;
                given.arguments.push((name.to_owned(), value));
            }
            name => return Err(format!("unknown option {name}")),
        }
    }
    let listen = given.or("--listen", "CLINIC_LISTEN", || "127.0.0.1:8080".to_owned());
    let listen: SocketAddr = listen
        .parse()
        .map_err(|_| format!("--listen wants ADDR:PORT, not {listen}"))?;
    if test_hooks && !listen.ip().is_loopback() {
        return Err("--test-hooks wants a loopback address to listen on".to_owned());
    }
    let store = given.or("--store", "KEEP_STORE", || "memory:".to_owned());
    let db = given.or("--db", "DATABASE_URL", || "sqlite::memory:".to_owned());
    // What it names is not repeated: it may carry a password.
    if store != "memory" && !STORES.iter().any(|scheme| store.starts_with(scheme)) {
        return Err("--store wants memory: or a redis URL".to_owned());
    }
    if !DATABASES.iter().any(|scheme| db.starts_with(scheme)) {
        return Err("--db wants sqlite::memory:, sqlite:FILE or postgres://…".to_owned());
    }
    let hops = given.or("--trusted-hops", "CLINIC_TRUSTED_HOPS", || "0".to_owned());
    let secret_or = |fixed: &str| {
        if test_hooks {
            fixed.to_owned()
        } else {
            random_secret()
        }
    };
    Ok(Wish::Run(Box::new(Options {
        listen,
        store,
        db,
        limit_timeout: Duration::from_millis(given.number("--limit-timeout-ms", 50, 500)?),
        provider_patience: Duration::from_secs(given.number("--provider-seconds", 60, 86_400)?),
        health_window: Duration::from_secs(given.number("--health-seconds", 60, 3_600)?),
        trusted_hops: hops
            .parse()
            .map_err(|_| format!("--trusted-hops wants a small number, not {hops}"))?,
        secret: given.secret("--secret", random_secret)?,
        webhook_secret: given.secret("--webhook-secret", || secret_or("whsec_test"))?,
        cron_secret: given.secret("--cron-secret", || secret_or("cron_test"))?,
        test_hooks,
    })))
}

const NAMES: [&str; 10] = [
    "--listen",
    "--store",
    "--db",
    "--trusted-hops",
    "--secret",
    "--webhook-secret",
    "--cron-secret",
    "--limit-timeout-ms",
    "--provider-seconds",
    "--health-seconds",
];

impl Options {
    /// The secret of idempotency records, the same in all processes of one clinic.
    pub fn key_secret(&self) -> [u8; 32] {
        Sha256::digest(format!("idempotency:{}", self.secret)).into()
    }
}
