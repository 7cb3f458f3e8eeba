//! The handle: a connection, a prefix, a clock, a breaker, and a count of commands.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::{Cmd, Value};

use super::call::Call;
use super::connection::{Generation, Link};
use super::error::{self, Meaning};
use super::script::Script;
use crate::core::telemetry::{count, info, warn};
use crate::core::{Admission, Breaker, Clock, KeyBuilder, StoreError, StoreErrorKind, StoreFuture};

const DEFAULT_PREFIX: &str = "keep";
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(500);

/// Keeps state on a Redis server (6.2 or later, or Valkey 7.2). Clones share connection and breaker.
#[derive(Clone)]
pub struct RedisStore {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) link: Link,
    prefix: Box<str>,
    pub(super) timeout: Duration,
    clock: Option<Arc<dyn Clock>>,
    started: Instant,
    breaker: Mutex<Breaker>,
    /// What parts keep for all clones of the handle, one value per type.
    beside: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
}

impl RedisStore {
    /// Opens a handle with default settings; the server may be away, the first call connects.
    ///
    /// # Errors
    /// The URL cannot be understood.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).open().await
    }

    /// Starts a handle: `redis://[user:password@]host:port/db`, `redis+unix:///path?db=0`.
    pub fn builder(url: &str) -> RedisStoreBuilder {
        RedisStoreBuilder {
            url: url.to_owned(),
            prefix: DEFAULT_PREFIX.to_owned(),
            timeout: DEFAULT_TIMEOUT,
            clock: None,
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

    /// Returns the one `T` that all clones of this handle share, made at first use.
    pub fn beside<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut all = self.inner.beside.lock();
        let found = all
            .iter()
            .find_map(|kept| Arc::clone(kept).downcast::<T>().ok());
        found.unwrap_or_else(|| {
            let made = Arc::new(make());
            all.push(Arc::clone(&made) as Arc<dyn Any + Send + Sync>);
            made
        })
    }

    /// Returns the number of commands sent so far by this handle and its clones.
    #[must_use]
    pub fn commands(&self) -> u64 {
        self.inner.link.sent()
    }

    /// Says whether calls are being refused because the server did not answer.
    #[must_use]
    pub fn is_open_circuit(&self) -> bool {
        self.inner.breaker.lock().is_open()
    }

    /// Asks the server for a sign of life.
    ///
    /// # Errors
    /// [`StoreErrorKind::Unavailable`] or [`StoreErrorKind::TimedOut`].
    pub fn ping(&self) -> StoreFuture<()> {
        let inner = Arc::clone(&self.inner);
        StoreFuture::boxed(async move {
            let mut command = Cmd::new();
            command.arg(b"PING");
            inner
                .call(&command, inner.timeout, Cmd::new)
                .await
                .map(drop)
        })
    }
}

impl Inner {
    /// Sends a command within `timeout`, under the breaker. Only NOSCRIPT, a known outcome, is sent once more.
    pub(super) async fn call(
        &self,
        command: &Cmd,
        timeout: Duration,
        with_source: impl FnOnce() -> Cmd,
    ) -> Result<Value, StoreError> {
        let admission = self.breaker.lock().admit(self.started.elapsed());
        if let Admission::Refused(until_probe) = admission {
            return Err(StoreError::new(StoreErrorKind::Unavailable).retry_after(until_probe));
        }
        let before = self.link.current();
        let mut sent = pin!(async {
            match self.link.send(command).await {
                Err(error) if matches!(error::meaning(&error), Meaning::NoScript) => {
                    self.link.send(&with_source()).await
                }
                answer => answer,
            }
        });
        let answer = match tokio::time::timeout(timeout, sent.as_mut()).await {
            Ok(answer) => Some(answer),
            Err(_elapsed) => last_look(sent).await,
        };
        match answer {
            Some(Ok(value)) => {
                self.succeeded();
                Ok(value)
            }
            Some(Err(error)) => Err(match error::meaning(&error) {
                Meaning::Refused(kind) => {
                    self.succeeded();
                    error::with_source(kind, error)
                }
                Meaning::NoScript => error::with_source(StoreErrorKind::Failed, error),
                Meaning::Away => {
                    let retry_after = self.failed(admission, before);
                    error::with_source(StoreErrorKind::Unavailable, error).retry_after(retry_after)
                }
            }),
            None => {
                let retry_after = self.failed(admission, before);
                Err(StoreError::new(StoreErrorKind::TimedOut).retry_after(retry_after))
            }
        }
    }

    fn succeeded(&self) {
        let mut breaker = self.breaker.lock();
        if breaker.is_open() {
            info!("redis answers again");
        }
        breaker.succeeded();
    }

    /// Returns the time until the server is asked again. `before` is the connection that was there when the call began.
    fn failed(&self, admission: Admission, before: Option<Generation>) -> Duration {
        let now = self.started.elapsed();
        let mut breaker = self.breaker.lock();
        let was_open = breaker.is_open();
        breaker.failed(now);
        let until_probe = breaker.until_probe(now);
        let is_opening = breaker.is_open() && !was_open;
        drop(breaker);
        if is_opening {
            warn!("redis does not answer, calls are refused until it does");
            count!("keep_redis_breaker_opened_total", 1);
        }
        if is_opening || admission == Admission::Probe {
            // A link that is cut silently never breaks by itself: the next probe gets a new one. One that was
            // made during this call is kept: where greeting takes long, the next probe finds it ready.
            self.link.give_up(before);
        }
        until_probe
    }
}

/// Asks once more after the time is over: where this process is so busy that it woke late, the answer lies in the
/// socket already, and the server is not to blame. Costs no time where there is none.
async fn last_look<F: Future>(mut sent: Pin<&mut F>) -> Option<F::Output> {
    /// The runtime looks at its sockets, then the connection's task runs, then the answer is here.
    const TURNS: usize = 3;
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
        let polled = poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx))).await;
        if let Poll::Ready(answer) = polled {
            return Some(answer);
        }
    }
    None
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

    /// Makes the handle. The server may be away: the first call connects.
    ///
    /// # Errors
    /// [`StoreErrorKind::Failed`] if the URL or the prefix cannot be used.
    pub async fn open(self) -> Result<RedisStore, StoreError> {
        let is_plain = |byte: u8| byte.is_ascii_graphic() && !b":{}".contains(&byte);
        if self.prefix.is_empty() || !self.prefix.bytes().all(is_plain) {
            let why = "a prefix is plain ASCII without colons and braces";
            return Err(StoreError::with_source(StoreErrorKind::Failed, why));
        }
        let link = Link::new(&self.url)
            .map_err(|error| error::with_source(StoreErrorKind::Failed, error))?;
        Ok(RedisStore {
            inner: Arc::new(Inner {
                link,
                prefix: self.prefix.into_boxed_str(),
                timeout: self.timeout,
                clock: self.clock,
                started: Instant::now(),
                breaker: Mutex::default(),
                beside: Mutex::default(),
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
