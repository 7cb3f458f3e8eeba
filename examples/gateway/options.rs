//! The command line: the gateway's own options, and those of each layer.
//!
//! Try it: `cargo run --example gateway -- --help`

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use http::HeaderName;
use http::uri::{Authority, Uri};
use tower_keep::idempotency::Preset;
use tower_keep::rate_limit::Quota;

use crate::setting::{Given, field, seconds};
use crate::{cache, idempotency, limits};

const OWN: [(&str, &str, &str); 10] = [
    (
        "--listen",
        "ADDR:PORT",
        "where to listen, port 0 takes a free one [127.0.0.1:8080]",
    ),
    ("--upstream", "URL", "where requests go: http://host:port"),
    (
        "--store",
        "URL",
        "memory:, redis://…, redis+sentinel://… or redis+cluster://…, by TLS rediss… [memory:]",
    ),
    (
        "--store-timeout",
        "S",
        "how long Redis has for an answer [0.5]",
    ),
    (
        "--upstream-timeout",
        "S",
        "how long the upstream has for its head [60]",
    ),
    (
        "--trusted-hops",
        "N",
        "proxies before us that append to X-Forwarded-For [0]",
    ),
    (
        "--principal-header",
        "NAME",
        "who is asking, from a field that a proxy before us sets; clients must not be able to",
    ),
    ("--cache", "", "with the response cache"),
    (
        "--idempotency",
        "PRESET",
        "with idempotency: payments, api, form or webhook",
    ),
    (
        "--rate-limit",
        "N/WINDOW",
        "with a rate limit per client, such as 100/60s",
    ),
];

/// The options after parsing; wrong ones never get here, but for the values of a layer's own.
#[derive(Debug)]
pub struct Options {
    pub listen: SocketAddr,
    pub upstream: Authority,
    pub store: String,
    pub store_timeout: Duration,
    pub upstream_timeout: Duration,
    pub trusted_hops: u8,
    pub principal_header: Option<HeaderName>,
    pub cache: bool,
    pub cache_settings: Vec<Given>,
    pub idempotency: Option<Preset>,
    pub idempotency_settings: Vec<Given>,
    pub rate_limit: Option<Quota>,
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Wish {
    Run(Box<Options>),
    Help,
}

/// Reads the arguments; of an option given twice the last counts, where it is not repeatable.
///
/// # Errors
/// One sentence about the first option that cannot be understood.
pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Wish, String> {
    let (mut own, mut of_cache, mut of_idempotency) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(argument) = arguments.next() {
        if argument == "--help" {
            return Ok(Wish::Help);
        }
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let (list, takes) = if let Some((_, takes, _)) = OWN.iter().find(|own| own.0 == name) {
            (&mut own, takes)
        } else if let Some(known) = cache::SETTINGS.iter().find(|known| known.name == name) {
            (&mut of_cache, &known.value)
        } else if let Some(known) = idempotency::SETTINGS
            .iter()
            .find(|known| known.name == name)
        {
            (&mut of_idempotency, &known.value)
        } else {
            return Err(format!("unknown option {name}"));
        };
        let value = match (takes.is_empty(), value) {
            (true, None) => String::new(),
            (true, Some(_)) => return Err(format!("{name} takes no value")),
            (false, Some(value)) => value,
            (false, None) => arguments.next().ok_or(format!("{name} needs a value"))?,
        };
        list.push((name, value));
    }
    let options = Options::of(&own, of_cache, of_idempotency)?;
    Ok(Wish::Run(Box::new(options)))
}

impl Options {
    fn of(own: &[Given], of_cache: Vec<Given>, of_idempotency: Vec<Given>) -> Result<Self, String> {
        let said = |name: &str| {
            own.iter()
                .rfind(|(own, _)| own == name)
                .map(|(_, value)| &value[..])
        };
        let listen = said("--listen").unwrap_or("127.0.0.1:8080");
        let upstream = said("--upstream").ok_or("--upstream URL is missing")?;
        let hops = said("--trusted-hops").unwrap_or("0");
        let options = Self {
            listen: listen
                .parse()
                .map_err(|_| format!("--listen wants ADDR:PORT, not {listen}"))?,
            upstream: authority(upstream)
                .ok_or_else(|| format!("--upstream wants http://host:port, not {upstream}"))?,
            store: said("--store").unwrap_or("memory:").to_owned(),
            store_timeout: seconds(said("--store-timeout").unwrap_or("0.5"))
                .map_err(|why| format!("--store-timeout {why}"))?,
            upstream_timeout: seconds(said("--upstream-timeout").unwrap_or("60"))
                .map_err(|why| format!("--upstream-timeout {why}"))?,
            trusted_hops: hops
                .parse()
                .map_err(|_| format!("--trusted-hops wants a small number, not {hops}"))?,
            principal_header: said("--principal-header")
                .map(field)
                .transpose()
                .map_err(|why| format!("--principal-header {why}"))?,
            cache: said("--cache").is_some(),
            cache_settings: of_cache,
            idempotency: said("--idempotency").map(idempotency::preset).transpose()?,
            idempotency_settings: of_idempotency,
            rate_limit: said("--rate-limit").map(limits::quota).transpose()?,
        };
        if let (false, [(name, _), ..]) = (options.cache, &options.cache_settings[..]) {
            return Err(format!("{name} needs --cache"));
        }
        if let (None, [(name, _), ..]) = (options.idempotency, &options.idempotency_settings[..]) {
            return Err(format!("{name} needs --idempotency"));
        }
        Ok(options)
    }
}

fn authority(url: &str) -> Option<Authority> {
    let uri: Uri = url.parse().ok()?;
    let plain =
        uri.scheme_str() == Some("http") && matches!(uri.path(), "" | "/") && uri.query().is_none();
    uri.authority()
        .filter(|host| plain && !host.as_str().contains('@'))
        .cloned()
}

/// What `--help` prints.
pub fn usage() -> String {
    let mut text = "A small reverse proxy with the layers of tower-keep, each only where its option is given.\n\n\
                    Usage: cargo run --example gateway -- --upstream URL [options]\n\n"
        .to_owned();
    let own = OWN.iter().copied();
    put(&mut text, own);
    text.push_str("\nOf the cache:\n");
    put(
        &mut text,
        cache::SETTINGS
            .iter()
            .map(|setting| (setting.name, setting.value, setting.help)),
    );
    text.push_str("\nOf idempotency, beside its preset:\n");
    put(
        &mut text,
        idempotency::SETTINGS
            .iter()
            .map(|setting| (setting.name, setting.value, setting.help)),
    );
    text
}

fn put<'a>(text: &mut String, options: impl Iterator<Item = (&'a str, &'a str, &'a str)>) {
    for (name, value, help) in options {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "  {:<44} {help}", format!("{name} {value}"));
    }
}
