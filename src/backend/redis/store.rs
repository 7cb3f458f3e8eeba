//! The handle: a link, a prefix, a clock, and what parts keep beside it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::call::Call;
use super::command::Command;
use super::error;
use super::link::Link;
use super::look::{Look, Looks};
use super::node::Words;
use super::notices::listen_again;
use super::reply::Reply;
use super::script::Script;
use super::slots::Slot;
use super::tls::{Tls, Trust};
use crate::backend::beside::Beside;
use crate::backend::health::{Probed, StoreMode, StoreStats};
use crate::core::{Clock, KeyBuilder, StoreError, StoreErrorKind, StoreFuture, base64url};

static PROBE: Script = Script::new(include_str!("probe.lua"));
const DEFAULT_PREFIX: &str = "keep";
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(500);

/// Keeps state on a Redis server (6.2 or later, or Valkey; the README says which were tried). Clones share connections and breakers.
#[derive(Clone)]
pub struct RedisStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) link: Link,
    prefix: Box<str>,
    pub(super) timeout: Duration,
    clock: Option<Arc<dyn Clock>>,
    /// The task that hears notices is gone with its runtime: the next call starts another.
    pub(super) is_deaf: AtomicBool,
    /// Whether reads may look before they ask a script.
    pub(super) looks: Looks,
    /// What parts keep for all clones of the handle, one value per type.
    beside: Beside,
}

impl RedisStore {
    /// Opens a handle with default settings; the server may be away, the first call connects.
    ///
    /// # Errors
    /// The URL cannot be understood.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).open().await
    }

    /// Starts a handle:
    ///
    /// - `redis://[user:password@]host:port/db`, `redis+unix:///path?db=0`: one server;
    /// - `redis+sentinel://[user:password@]host:port,host:port/NAME[/db]`: the primary that these sentinels know by
    ///   that name, asked for at each connection (`?sentinel_username=…&sentinel_password=…` where they have a door
    ///   of their own);
    /// - `redis+cluster://[user:password@]host:port,host:port`: a cluster that these nodes belong to. Steps whose keys
    ///   lie on several nodes are refused (`Failed`): see each part for what it does there.
    ///
    /// With the feature `redis-tls`, `rediss://…`, `rediss+sentinel://…` and `rediss+cluster://…` reach every server by
    /// TLS: see [the module's page](crate::backend::redis#tls).
    pub fn builder(url: &str) -> RedisStoreBuilder {
        RedisStoreBuilder {
            url: url.to_owned(),
            prefix: DEFAULT_PREFIX.to_owned(),
            timeout: DEFAULT_TIMEOUT,
            clock: None,
            trust: Trust::default(),
        }
    }

    /// Starts a key of a part, behind the handle's prefix.
    pub fn key(&self, part: &str) -> KeyBuilder {
        KeyBuilder::new(&self.inner.prefix, part)
    }

    /// Starts a call of `script` on `keys`.
    pub fn script(&self, script: &'static Script, keys: &[impl AsRef<[u8]>]) -> Call {
        let clock = self
            .inner
            .clock
            .as_ref()
            .map(|clock| clock.now_micros().to_string())
            .unwrap_or_default();
        Call::new(
            Arc::clone(&self.inner),
            script,
            keys,
            &clock,
            self.inner.timeout,
        )
    }

    /// Starts a look at `key`, and others in its slot; `name` is its label in `keep_store_op_seconds`.
    pub fn look(&self, name: &'static str, key: &str) -> Look {
        let now = self.inner.clock.as_ref().map(|clock| clock.now_micros());
        Look::new(Arc::clone(&self.inner), name, key.as_bytes(), now)
    }

    /// Returns the clock that was passed, if one was; else the server's TIME rules.
    #[must_use]
    pub fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.inner.clock.clone()
    }

    /// Returns how long a call waits for its answer unless it says otherwise.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    /// Returns the lowest slot of the node behind the one that has `slot`, in the order of their lowest slots, as far
    /// as the nodes are known; `None` behind the last, and on a single server.
    #[must_use]
    pub fn next_node(&self, slot: u16) -> Option<u16> {
        self.inner.link.next_node(slot)
    }

    /// Returns the one `T` that all clones of this handle share, made at first use.
    pub fn beside<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        self.inner.beside.one(make)
    }

    /// Returns the number of commands sent so far by this handle and its clones; a [`Look`] counts as one.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.inner.link.sent()
    }

    /// Says whether the URL names a cluster: keys of one script then lie on one node, others on others.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        self.inner.link.is_cluster()
    }

    /// Says whether calls are being refused because the server, or a node of the cluster, did not answer, or not soon
    /// enough for those that wait less than the handle.
    #[must_use]
    pub fn is_open_circuit(&self) -> bool {
        self.inner.link.refuses_some()
    }

    /// Says whether every call is being refused.
    pub(in crate::backend) fn is_away(&self) -> bool {
        self.inner.link.is_shut()
    }

    /// Returns what this handle and its clones have done so far, and how the server is.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let meter = self.inner.link.meter();
        let (breaker_open, last_error) = (self.is_open_circuit(), meter.last_error());
        let gone = [StoreErrorKind::Unavailable, StoreErrorKind::TimedOut];
        StoreStats {
            engine: "redis",
            mode: StoreMode::Redis,
            reachable: !breaker_open && last_error.is_none_or(|kind| !gone.contains(&kind)),
            last_error,
            commands: meter.commands(),
            errors: meter.errors(),
            timeouts: meter.timeouts(),
            fallbacks: meter.refusals(),
            breaker_open,
            entries: None,
            bytes: None,
            evicted: None,
            latency: meter.latency(),
        }
    }

    /// Writes, reads and removes a value in one step, and asks how the server keeps its memory; on a cluster one node.
    ///
    /// # Errors
    /// The server cannot be reached, or takes no writes.
    pub fn probe(&self) -> StoreFuture<Probed> {
        let mut bits = [0; 8];
        // Without random bits it is always the same node of a cluster.
        let _ = getrandom::fill(&mut bits);
        let key = self.key("probe").tag([base64url(&bits)]).finish();
        self.script(&PROBE, &[key])
            .arg("here")
            .num(10_000)
            .run(|reply| {
                let mut parts = reply.array()?.into_iter();
                let mut next = || parts.next().map_or(Ok(None), Reply::opt_bytes);
                let (read, info) = (next()?, next()?);
                if read.as_deref() != Some(b"here") {
                    let why = "a value that was written is not there";
                    return Err(StoreError::with_source(StoreErrorKind::Failed, why));
                }
                Ok(probed(&info.unwrap_or_default()))
            })
    }

    /// Asks the server for a sign of life.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unavailable`] or [`StoreErrorKind::TimedOut`].
    pub fn ping(&self) -> StoreFuture<()> {
        let inner = Arc::clone(&self.inner);
        StoreFuture::boxed(async move {
            let command = Command::new("PING");
            let words = Words::Command(&command);
            inner.call(words, None, inner.timeout).await.map(drop)
        })
    }
}

/// Reads `INFO memory`; what is not there, or not allowed to be read, is unknown.
fn probed(info: &[u8]) -> Probed {
    let text = String::from_utf8_lossy(info);
    let find = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|rest| rest.strip_prefix(':')).map(str::trim)
    };
    let number = |name: &str| find(name).and_then(|text| text.parse::<f64>().ok());
    let most = number("maxmemory").filter(|most| *most > 0.0);
    let policy = find("maxmemory_policy");
    Probed {
        memory: most.and_then(|most| Some(number("used_memory")? / most)),
        may_evict: most.is_some() && policy.is_some_and(|policy| policy != "noeviction"),
    }
}

impl Inner {
    /// Sends `words` within `timeout`, on a cluster to the node that has `slot`.
    pub(super) async fn call(
        self: &Arc<Self>,
        words: Words<'_>,
        slot: Option<Slot>,
        timeout: Duration,
    ) -> Result<Reply, StoreError> {
        self.call_within(words, slot, timeout, timeout).await
    }

    /// Sends `words` within `rest`, what is left of the caller's `timeout`.
    pub(super) async fn call_within(
        self: &Arc<Self>,
        words: Words<'_>,
        slot: Option<Slot>,
        timeout: Duration,
        rest: Duration,
    ) -> Result<Reply, StoreError> {
        if self.is_deaf.load(Ordering::Relaxed) {
            listen_again(self);
        }
        self.link.call(words, slot, timeout, rest).await
    }
}

impl fmt::Debug for RedisStore {
    /// The address is left out: it may carry a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("prefix", &self.inner.prefix)
            .finish_non_exhaustive()
    }
}

/// Sets up a [`RedisStore`].
#[derive(Clone)]
#[must_use]
pub struct RedisStoreBuilder {
    url: String,
    prefix: String,
    timeout: Duration,
    clock: Option<Arc<dyn Clock>>,
    trust: Trust,
}

impl RedisStoreBuilder {
    /// Puts all keys behind `prefix` (`keep`), plain ASCII without `:` `{` `}`.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = prefix.to_owned();
        self
    }

    /// Waits no longer than `timeout` for an answer (500 ms), connecting included.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Uses `clock` for every expiry, window and age, also in scripts; without it the server's TIME.
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Trusts the servers that show a certificate by one of these roots (PEM, one or several), and no others: the
    /// platform's roots are left out. Called again, it trusts those as well.
    #[cfg(feature = "redis-tls")]
    pub fn root_certificates(mut self, pem: impl AsRef<[u8]>) -> Self {
        self.trust.root_certificates(pem.as_ref());
        self
    }

    /// Shows this certificate to servers that ask for one: the chain, its own certificate first, and the private key
    /// (PKCS#8, PKCS#1 or SEC1, without a password), both PEM.
    #[cfg(feature = "redis-tls")]
    pub fn client_certificate(
        mut self,
        chain_pem: impl AsRef<[u8]>,
        key_pem: impl AsRef<[u8]>,
    ) -> Self {
        self.trust
            .client_certificate(chain_pem.as_ref(), key_pem.as_ref());
        self
    }

    #[cfg(feature = "redis-tls")]
    pub(crate) fn trust(mut self, trust: Trust) -> Self {
        self.trust = trust;
        self
    }

    /// Makes the handle. The server may be away: the first call connects.
    ///
    /// # Errors
    /// [`StoreErrorKind::Failed`] if the URL, the prefix or a certificate cannot be used, or certificates are given for
    /// a URL that asks for no TLS.
    pub async fn open(self) -> Result<RedisStore, StoreError> {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b":{}".contains(&byte);
        if self.prefix.is_empty() || !self.prefix.bytes().all(is_plain) {
            let why = "a prefix is plain ASCII without colons and braces";
            return Err(StoreError::with_source(StoreErrorKind::Failed, why));
        }
        let unusable = |error| error::with_source(StoreErrorKind::Failed, error);
        let tls = Tls::of(&self.url, self.trust).await.map_err(unusable)?;
        let link = Link::new(&self.url, tls.as_ref(), self.timeout).map_err(unusable)?;
        Ok(RedisStore {
            inner: Arc::new(Inner {
                link,
                prefix: self.prefix.into_boxed_str(),
                timeout: self.timeout,
                clock: self.clock,
                is_deaf: AtomicBool::new(false),
                looks: Looks::default(),
                beside: Beside::default(),
            }),
        })
    }
}

impl fmt::Debug for RedisStoreBuilder {
    /// The address is left out: it may carry a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStoreBuilder")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
