//! A group of caches: one channel, one sight, one list of what the store has yet to be told.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, OnceCell};

use super::handle::Cache;
use super::sight::{IsOld, Sight};
use super::store::{CacheStore, LeaseToken};
use super::target::{CacheKey, Hit, Target};
use crate::core::telemetry::{count, info, warn};
use crate::core::ttl::Lifetime;
use crate::core::{
    NotAServiceName, Notice, Raised, ServiceName, StoreError, Subscription, base64url,
};

/// Targets kept back in an outage; beyond, the whole group.
const MOST_PENDING: usize = 10_000;
/// The most keys, items or targets of one call.
pub(super) const AT_ONCE: usize = 512;
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Caches that are invalidated together: tags, prefixes and `clear` reach all of them in one step.
#[derive(Clone)]
#[must_use]
pub struct CacheGroup {
    pub(super) shared: Arc<Shared>,
}

/// What became of an invalidation. In this process the next read is new in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidateOutcome {
    /// The store has it.
    Done,
    /// The store is away, or takes no write: it is told before the next shared read, or as soon as it takes it; until then
    /// nothing that was hit is served here.
    Queued,
}

pub(super) struct Shared {
    pub(super) store: Arc<dyn CacheStore>,
    pub(super) name: ServiceName,
    pub(super) sender: String,
    /// What this process's tokens begin with, and how many were drawn.
    tokens: ([u8; 8], AtomicU64),
    pub(super) sight: Sight,
    /// Notices arrive: local copies may be believed.
    is_live: AtomicBool,
    subscription: OnceCell<Subscription>,
    waiters: Mutex<HashMap<String, Weak<Notify>>>,
    pending: Mutex<Pending>,
    has_pending: AtomicBool,
    /// The store has refused what is pending: it is asked again behind the readers, and they go round that.
    is_refused: AtomicBool,
    /// A task tells the store what is kept back.
    is_working: Arc<AtomicBool>,
    flushing: tokio::sync::Mutex<()>,
}

impl CacheGroup {
    /// Makes a group.
    ///
    /// # Panics
    /// If `name` is not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    pub fn new(store: impl CacheStore, name: &str) -> Self {
        Self::of(Arc::new(store), ServiceName::new(name))
    }

    /// Like [`CacheGroup::new`], for a name that is known only at run time.
    ///
    /// # Errors
    /// The name is not 1 to 64 of `a-z 0-9 . _ -`.
    pub fn try_new(store: impl CacheStore, name: &str) -> Result<Self, NotAServiceName> {
        Ok(Self::of(Arc::new(store), ServiceName::try_new(name)?))
    }

    fn of(store: Arc<dyn CacheStore>, name: ServiceName) -> Self {
        let (mut sender, mut tokens) = ([0; 16], [0; 8]);
        // Without random bits a sender hears its own notices: its local copies end early, no more. And no lease is told
        // from another process's: fills may then be refused.
        let drawn = getrandom::fill(&mut sender).and_then(|()| getrandom::fill(&mut tokens));
        let sender = match drawn {
            Ok(()) => base64url(&sender),
            Err(_) => "-".to_owned(),
        };
        Self {
            shared: Arc::new(Shared {
                store,
                name,
                sender,
                tokens: (tokens, AtomicU64::new(0)),
                sight: Sight::default(),
                is_live: AtomicBool::new(false),
                subscription: OnceCell::new(),
                waiters: Mutex::default(),
                pending: Mutex::default(),
                has_pending: AtomicBool::new(false),
                is_working: Arc::default(),
                is_refused: AtomicBool::new(false),
                flushing: tokio::sync::Mutex::default(),
            }),
        }
    }

    /// Makes the cache `entity` of this group.
    ///
    /// # Panics
    /// If `entity` is not 1 to 64 of `a-z 0-9 . _ -`.
    #[track_caller]
    pub fn cache<K, V>(&self, entity: &str, life: impl Into<Lifetime>) -> Cache<K, V>
    where
        V: Serialize + DeserializeOwned + Send + Sync + 'static,
    {
        Cache::of(self.clone(), ServiceName::new(entity), life.into())
    }

    /// Invalidates; after the commit of what changed. Never fails, and runs on if the future is dropped.
    pub async fn invalidate(&self, targets: impl IntoIterator<Item = Target>) -> InvalidateOutcome {
        let targets: Vec<Target> = targets.into_iter().collect();
        let shared = Arc::clone(&self.shared);
        // A task of its own: a caller that goes away leaves no copy behind.
        let task = tokio::spawn(async move { shared.invalidate(targets).await });
        task.await.unwrap_or(InvalidateOutcome::Queued)
    }

    /// Invalidates all caches of the group.
    pub async fn clear(&self) -> InvalidateOutcome {
        self.invalidate([Target::all()]).await
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.name.as_str()
    }
}

impl Shared {
    pub(super) async fn invalidate(self: &Arc<Self>, targets: Vec<Target>) -> InvalidateOutcome {
        let mut outcome = InvalidateOutcome::Done;
        for part in targets.chunks(AT_ONCE) {
            // Before the call: loads that run are left alone. After it: so are reads that began meanwhile.
            self.hit(part);
            let group = self.name.shared();
            let told = self.store.invalidate(&group, part.to_vec(), &self.sender);
            if let Err(error) = told.await {
                let _ = &error;
                warn!(cache = self.name.as_str(), %error, "an invalidation is queued");
                self.keep_back(part.iter().cloned());
                outcome = InvalidateOutcome::Queued;
            }
            self.hit(part);
        }
        let result = match outcome {
            InvalidateOutcome::Done => "done",
            InvalidateOutcome::Queued => "queued",
        };
        for kind in ["key", "tag", "prefix", "all"] {
            let number = targets
                .iter()
                .filter(|target| target.kind() == kind)
                .count();
            if number > 0 {
                count!("keep_cache_invalidations_total", number as u64, "group" => self.name.as_str().to_owned(), "kind" => kind, "result" => result);
            }
        }
        let _ = result;
        outcome
    }

    /// Names an attempt to load, as no other is named.
    pub(super) fn draw(&self) -> LeaseToken {
        let mut bits = [0; 16];
        bits[..8].copy_from_slice(&self.tokens.0);
        bits[8..].copy_from_slice(&self.count().to_be_bytes());
        LeaseToken(bits)
    }

    /// A number for jitter: evenly spread, and no secret.
    pub(super) fn any(&self) -> u64 {
        // SplitMix64 (Steele, Lea, Flood 2014).
        let step = self.count().wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut any = u64::from_be_bytes(self.tokens.0).wrapping_add(step);
        any = (any ^ (any >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        any = (any ^ (any >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        any ^ (any >> 31)
    }

    fn count(&self) -> u64 {
        self.tokens.1.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn hit(&self, targets: &[Target]) {
        let members: Vec<String> = targets.iter().map(Target::member).collect();
        self.told(&members);
    }

    fn told(&self, members: &[String]) {
        // Which tags a value has, and for a load by alias which key, is known only when it is loaded: one tag leaves all
        // loads of the group alone, one key those that know no key.
        let kinds = [ANY_TAG, ANY_KEY, ANY_PREFIX];
        let any = kinds
            .into_iter()
            .filter(|kind| members.iter().any(|member| member.starts_with(kind)));
        let names = members.iter().map(String::as_str).chain(any);
        self.sight.hit(names);
        self.wake(members.iter().map(String::as_str));
    }

    fn wake<'a>(&self, members: impl Iterator<Item = &'a str>) {
        let mut waiters = self.waiters.lock();
        for member in members {
            if let Some(waiter) = waiters.remove(member).and_then(|waiter| waiter.upgrade()) {
                waiter.notify_waiters();
                waiter.notify_one();
            }
        }
    }

    /// Returns what is rung when another process has filled or dropped `member`.
    pub(super) fn waiter(&self, member: String) -> Arc<Notify> {
        let mut waiters = self.waiters.lock();
        if let Some(waiter) = waiters.get(&member).and_then(Weak::upgrade) {
            return waiter;
        }
        // Only when it would grow, and then by as much again: so many misses at once cost no walk each.
        if waiters.len() == waiters.capacity() {
            waiters.retain(|_, waiter| waiter.strong_count() > 0);
            let left = waiters.len();
            waiters.reserve(left + 1);
        }
        let waiter = Arc::new(Notify::new());
        waiters.insert(member, Arc::downgrade(&waiter));
        waiter
    }

    pub(super) fn is_live(&self) -> bool {
        self.is_live.load(Ordering::SeqCst)
    }

    /// Listens for what others invalidate, from the first use on.
    pub(super) async fn listen(self: &Arc<Self>) {
        if self.subscription.initialized() {
            return;
        }
        let listening = self.subscription.get_or_try_init(|| {
            let weak = Arc::downgrade(self);
            let callback = Arc::new(move |notice| {
                if let Some(shared) = weak.upgrade() {
                    shared.notice(notice);
                }
            });
            self.store.subscribe(&self.name.shared(), callback)
        });
        // Without a subscription local copies are not believed.
        let _ = listening.await;
    }

    fn notice(&self, notice: Notice) {
        match notice {
            Notice::Lost => {
                count!("keep_cache_link_lost_total", 1, "group" => self.name.as_str().to_owned());
                self.is_live.store(false, Ordering::SeqCst);
            }
            Notice::Restored => {
                self.sight.hit([""]);
                self.is_live.store(true, Ordering::SeqCst);
            }
            Notice::Payload(payload) => {
                let Ok(text) = std::str::from_utf8(&payload) else {
                    return;
                };
                let Some((sender, rest)) = text.split_once('\n') else {
                    return;
                };
                let members: Vec<String> = rest.split('\n').map(str::to_owned).collect();
                match members.first().and_then(|first| first.strip_prefix('f')) {
                    Some(filled) => self.wake(std::iter::once(filled)),
                    None if sender == self.sender => {}
                    None => self.told(&members),
                }
            }
        }
    }

    /// Keeps targets until the store takes them.
    pub(super) fn keep_back(self: &Arc<Self>, targets: impl IntoIterator<Item = Target>) {
        self.pending.lock().extend(targets);
        self.has_pending.store(true, Ordering::SeqCst);
        self.work();
    }

    /// Tells the store what is kept back as soon as it takes it, also where nobody reads. One task at a time does; where
    /// its runtime ends before, whoever comes next begins another.
    fn work(self: &Arc<Self>) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        let Some(working) = Raised::raise(&self.is_working) else {
            return;
        };
        let this = Arc::downgrade(self);
        drop(runtime.spawn(async move {
            loop {
                tokio::time::sleep(TRY_AGAIN).await;
                match this.upgrade() {
                    Some(shared) if !matches!(shared.tell(true).await, Ok(CaughtUp::All)) => {}
                    _ => break,
                }
            }
            let shared = this.upgrade();
            drop(working);
            // Kept back after the last look: whoever did it found somebody at work.
            if let Some(shared) = shared.filter(|shared| shared.has_pending.load(Ordering::SeqCst))
            {
                shared.work();
            }
        }));
    }

    /// Tells the store what it could not take; to be called before each shared read.
    pub(super) async fn catch_up(self: &Arc<Self>) -> Result<CaughtUp, StoreError> {
        if !self.has_pending.load(Ordering::SeqCst) {
            return Ok(CaughtUp::All);
        }
        self.work();
        self.tell(false).await
    }

    /// `again`: also where it has refused.
    async fn tell(&self, again: bool) -> Result<CaughtUp, StoreError> {
        if !again && self.is_refused.load(Ordering::SeqCst) {
            return Ok(CaughtUp::Refused);
        }
        let _one_at_a_time = self.flushing.lock().await;
        if !again && self.is_refused.load(Ordering::SeqCst) {
            return Ok(CaughtUp::Refused);
        }
        loop {
            let part = self.pending.lock().part();
            if part.is_empty() {
                self.is_refused.store(false, Ordering::SeqCst);
                // Under the lock, so that what is kept back meanwhile is not overlooked.
                let pending = self.pending.lock();
                if pending.targets.is_empty() {
                    self.has_pending.store(false, Ordering::SeqCst);
                    return Ok(CaughtUp::All);
                }
                continue;
            }
            let targets: Vec<Target> = part.iter().map(|(target, _)| target.clone()).collect();
            let group = self.name.shared();
            let told = self.store.invalidate(&group, targets.clone(), &self.sender);
            if let Err(error) = told.await {
                let is_refused = !error.is_unknown();
                let was_refused = self.is_refused.swap(is_refused, Ordering::SeqCst);
                if !is_refused {
                    return Err(error);
                }
                if !was_refused {
                    warn!(cache = self.name.as_str(), %error, "an invalidation is refused");
                }
                return Ok(CaughtUp::Refused);
            }
            info!(
                cache = self.name.as_str(),
                targets = targets.len(),
                "invalidations are replayed"
            );
            // First hit, then forgotten: a read that began before sees one or the other.
            self.hit(&targets);
            self.pending.lock().remove(&part);
        }
    }

    /// Says whether a record that was read after `noted` is to be believed although the store was not told everything.
    pub(super) fn is_good(&self, key: &CacheKey, tags: &[String], noted: u64) -> bool {
        let names = |is_old: IsOld<'_>| key.all_names(is_old) && tags.iter().all(|tag| is_old(tag));
        let stands = {
            let pending = self.pending.lock();
            let is_old = |name: &str| !pending.targets.contains_key(name);
            !is_old("") || !names(&is_old)
        };
        !stands && self.sight.is_good(noted, names)
    }
}

/// What the store has yet to be told, by name, each with a number of its own.
#[derive(Default)]
struct Pending {
    targets: HashMap<String, (Target, u64)>,
    last: u64,
}

impl Pending {
    fn extend(&mut self, targets: impl IntoIterator<Item = Target>) {
        for target in targets {
            self.last += 1;
            self.targets.insert(target.member(), (target, self.last));
        }
        if self.targets.len() > MOST_PENDING {
            self.targets.clear();
            self.targets
                .insert(String::new(), (Target(Hit::All), self.last));
        }
    }

    fn part(&self) -> Vec<(Target, u64)> {
        self.targets.values().take(AT_ONCE).cloned().collect()
    }

    /// Forgets what was told, but for what was kept back again meanwhile.
    fn remove(&mut self, told: &[(Target, u64)]) {
        for (target, number) in told {
            let member = target.member();
            if self
                .targets
                .get(&member)
                .is_some_and(|kept| kept.1 == *number)
            {
                self.targets.remove(&member);
            }
        }
    }
}

/// Whether the store was told everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CaughtUp {
    All,
    /// It has refused; what it was not told stands.
    Refused,
}

/// Hit by every tag; loads that run are told by it.
pub(super) const ANY_TAG: &str = "t";
/// Hit by every key and every prefix; loads that do not know their key are told by them.
pub(super) const ANY_KEY: &str = "k";
pub(super) const ANY_PREFIX: &str = "p";

impl fmt::Debug for CacheGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheGroup")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}
