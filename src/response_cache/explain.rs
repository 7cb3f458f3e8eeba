//! What the cache would do with a request, and why: for people who look into it.

use std::fmt;
use std::sync::Arc;

use http::header::{AUTHORIZATION, COOKIE, HeaderMap};
use http::{HeaderName, Request};

use crate::core::{Principal, Visitor};

use super::ask::Ask;
use super::consider::{self, Signals};
use super::entry::Entry;
use super::freshness::MICROS;
use super::layer::ResponseCacheLayer;
use super::policy::Use;
use super::store::Want;
use super::target;

/// What the cache would do with a request, in words ([`Display`](fmt::Display)). It shows no cookies, credentials,
/// principals or stored values; keep it from the public all the same.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Explanation {
    lines: Vec<(&'static str, String)>,
}

impl Explanation {
    fn say(&mut self, what: &'static str, text: impl Into<String>) {
        self.lines.push((what, text.into()));
    }

    fn then(mut self, what_happens: &'static str) -> Self {
        self.say("then", what_happens);
        self
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (what, text)) in self.lines.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{what}: {text}")?;
        }
        Ok(())
    }
}

impl ResponseCacheLayer {
    /// Says what this route would do with `request` now. It asks the store, runs nothing, and changes nothing.
    ///
    /// ```
    /// # use tower_keep::{MINUTE, backend::memory::MemoryStore, response_cache::ResponseCacheLayer};
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let route = ResponseCacheLayer::new(MemoryStore::new()).ttl(MINUTE);
    /// let request = http::Request::get("/experts?sort=name").body(()).unwrap();
    /// let why = route.explain(&request).await;
    /// assert_eq!(why.to_string(), "host: \ntarget: /experts?sort=name\nentry: none\nthen: fetched");
    /// # }
    /// ```
    pub async fn explain<B>(&self, request: &Request<B>) -> Explanation {
        let (setup, mut why) = (self.setup(), Explanation::default());
        let signals = Signals::scan(request.headers());
        let (method, uri, fields) = (request.method(), request.uri(), request.headers());
        if let Err(bypass) = consider::consider(method, uri, fields, &signals, true) {
            why.say("passed", bypass.as_str());
            return why.then("the handler answers, and nothing is stored");
        }
        let mut own = Request::new(());
        *own.method_mut() = method.clone();
        *own.uri_mut() = uri.clone();
        *own.headers_mut() = fields.clone();
        *own.extensions_mut() = request.extensions().clone();
        let principal = if setup.config.private() {
            match principal_of(&own).await {
                None => return why.then("passed: a private route, and nobody is known to ask"),
                digest => digest,
            }
        } else {
            None
        };
        let Some(mut ask) = Ask::of(&setup.config, &mut own, signals, principal) else {
            return why.then("passed: its key is too long");
        };
        key_parts(&mut why, &ask, own.headers(), setup.config.key.own());
        let looked = setup.cache.look(&mut ask, own.headers(), Want::Entry);
        let Ok(looked) = looked.await else {
            return why.then("fetched without being stored: the store is away");
        };
        for name in ask.names.iter() {
            why.say("varies on", shown(name, own.headers()));
        }
        if looked.marked {
            why.say("entry", "none, and known as uncacheable");
            return why.then("the handler answers each request by itself");
        }
        let Some((entry, usable, _)) = looked.entry else {
            why.say("entry", "none");
            let only = ask.demands.only_if_cached;
            return why.then(if only { "refused with 504" } else { "fetched" });
        };
        why.say("entry", described(&entry, looked.now));
        why.then(match usable {
            Use::Fresh => "answered from the store",
            Use::Due | Use::StaleWhileRevalidate => {
                "answered from the store, and refreshed behind it"
            }
            Use::MaxStale => "answered from the store, since the client takes it stale",
            Use::Validate | Use::Gone => "validated with the handler",
        })
    }
}

async fn principal_of(request: &Request<()>) -> Option<[u8; 16]> {
    let extensions = request.extensions();
    let named = extensions.get::<Principal>().cloned();
    let principal = match (named, extensions.get::<Visitor>().cloned()) {
        (Some(named), _) => Some(named),
        (None, Some(visitor)) => visitor.principal().await.ok().flatten(),
        (None, None) => None,
    };
    principal.map(|own| target::principal_digest(own.id()))
}

fn key_parts(
    why: &mut Explanation,
    ask: &Ask,
    fields: &HeaderMap,
    (headers, cookies, functions): (&[HeaderName], &[String], usize),
) {
    why.say("host", ask.key.host());
    why.say("target", ask.key.target());
    for name in headers {
        why.say("key", shown(name.as_str(), fields));
    }
    for name in cookies {
        why.say("key", format!("cookie {name}"));
    }
    if functions > 0 {
        why.say("key", format!("{functions} of the route's own functions"));
    }
    if ask.signals.poison {
        why.say("key", "forwarding fields that no Vary names");
    }
    if ask.private {
        why.say("key", "the principal");
    }
}

/// A field's name and value, without what is secret.
fn shown(name: &str, fields: &HeaderMap) -> String {
    let values: Vec<String> = fields
        .get_all(name)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .collect();
    let is_secret = name == COOKIE.as_str() || name == AUTHORIZATION.as_str();
    match values.is_empty() {
        true => format!("{name} (absent)"),
        false if is_secret => format!("{name} (not shown)"),
        false => format!("{name} {}", values.join(", ")),
    }
}

fn described(entry: &Arc<Entry>, now: u64) -> String {
    let head = entry.head();
    let window = |name: &str, length: u64| match length / MICROS {
        0 => String::new(),
        seconds => format!(", {name} {seconds} s"),
    };
    format!(
        "status {}, {} bytes, age {} s of {} s{}{}, {} tags and groups",
        head.status.as_u16(),
        entry.body_bytes(),
        head.age(now) / MICROS,
        head.lifetime / MICROS,
        window("stale while revalidated", head.stale_while_revalidate),
        window("in place of errors", head.stale_if_error.unwrap_or(0)),
        head.said.len(),
    )
}
