//! Where limits are counted: one trait, and the values that go in and out.

#[cfg(feature = "redis")]
mod deny_cache;
mod fallback;
#[cfg(feature = "conformance")]
mod fault;
mod groups;
mod memory;
mod receipt;
#[cfg(feature = "redis")]
mod redis;

use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::partition::PartitionKey;
use super::quota::Quota;
use crate::core::StoreFuture;

pub use receipt::{Receipt, ReceiptPart, Refunded};

/// Counts units per bucket, any number of buckets in one atomic step.
///
/// The buckets of one charging call share a hash tag ([`Bucket::shares_tag`]); the layer and the limiter see to that.
///
/// # Behaviour
/// - A call decides and charges all its buckets in one step: concurrent calls never admit more than a limit.
/// - Nothing is charged unless every enforced charge is admitted; a refused call leaves every state as it was,
///   but for the repair of states that a clock which went back left in the future.
/// - At exactly the moment a unit expires it no longer counts.
/// - A state that cannot be decoded counts as empty and is overwritten by the next charge.
/// - A charge is never sent again after an unknown outcome.
pub trait RateLimitStore: fmt::Debug + Send + Sync + 'static {
    /// Decides about `charges` and, if every enforced one admits, charges all that admit.
    ///
    /// # Errors
    /// The store's; on an unknown outcome the units may have been charged, and age out within a window.
    fn check_and_record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict>;

    /// Decides about `charges` without charging anything.
    ///
    /// # Errors
    /// The store's.
    fn check(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict>;

    /// Charges always and never refuses: units beyond a declared limit displace the oldest (sliding) or are not
    /// counted (GCRA, fixed). Blocks are reported but do not stop the charge.
    ///
    /// # Errors
    /// The store's; on an unknown outcome the units may have been charged.
    fn record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict>;

    /// Takes back what still counts of a receipt's charges, at most once.
    ///
    /// # Behaviour
    /// - It never creates a state, never makes one negative, and never lifts what remains above the limit.
    /// - In a state that was reset or emptied since, it does nothing.
    ///
    /// # Errors
    /// The store's; at worst the units age out.
    fn refund(&self, receipt: &Receipt) -> StoreFuture<Refunded>;

    /// Forgets what is counted in `buckets` and lifts their blocks, in one step by hash tag: a group's, or one tagged key's.
    ///
    /// # Errors
    /// The store's.
    fn reset(&self, buckets: &[Bucket<'_>]) -> StoreFuture<()>;

    /// Refuses every cost in `bucket`, also 0, for `duration` from now. The later end of several blocks stands.
    ///
    /// A block belongs to group, policy and key: it outlives a change of the declared quota.
    ///
    /// # Errors
    /// The store's.
    fn block(&self, bucket: &Bucket<'_>, duration: Duration) -> StoreFuture<()>;

    /// Returns a handle of the same store whose calls give up after `timeout`; `None` where calls never wait.
    fn within(&self, timeout: Duration) -> Option<Arc<dyn RateLimitStore>> {
        let _ = timeout;
        None
    }

    /// Hears that a layer's policies of `group` lie under `tag`, and says whether another layer on this handle uses the
    /// same group under the other tag: the two share nothing.
    fn splits(&self, group: &str, tag: Tag) -> bool {
        let _ = (group, tag);
        false
    }

    /// Returns the store that decides inside this process while this one cannot answer, if it names one.
    fn local(&self) -> Option<Arc<dyn RateLimitStore>> {
        None
    }
}

impl<T: ?Sized + RateLimitStore> RateLimitStore for Arc<T> {
    fn check_and_record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        (**self).check_and_record(charges)
    }

    fn check(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        (**self).check(charges)
    }

    fn record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        (**self).record(charges)
    }

    fn refund(&self, receipt: &Receipt) -> StoreFuture<Refunded> {
        (**self).refund(receipt)
    }

    fn reset(&self, buckets: &[Bucket<'_>]) -> StoreFuture<()> {
        (**self).reset(buckets)
    }

    fn block(&self, bucket: &Bucket<'_>, duration: Duration) -> StoreFuture<()> {
        (**self).block(bucket, duration)
    }

    fn within(&self, timeout: Duration) -> Option<Arc<dyn RateLimitStore>> {
        (**self).within(timeout)
    }

    fn splits(&self, group: &str, tag: Tag) -> bool {
        (**self).splits(group, tag)
    }

    fn local(&self) -> Option<Arc<dyn RateLimitStore>> {
        (**self).local()
    }
}

/// What a Redis Cluster hashes, so where a group's keys lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tag {
    /// All keys of the group together: its policies partition by different things.
    Group,
    /// Each partition key on its own: all policies of the group partition by the same thing.
    Key,
}

/// What the buckets of one policy have in common: group, tag, policy name and declared quota. Cheap to clone.
#[derive(Clone)]
pub struct Scope {
    inner: Arc<ScopeInner>,
}

struct ScopeInner {
    group: Arc<str>,
    tag: Tag,
    policy: Arc<str>,
    quota: Quota,
    quota_text: String,
    pinned: bool,
    varied: bool,
    /// What a refusal at the declared quota says before its numbers, rendered once.
    refusal: OnceLock<Box<[u8]>>,
    /// Digests of the above, for states and (without the quota) for blocks.
    state_id: u64,
    block_id: u64,
}

impl Scope {
    /// Names the buckets of a policy. Names are 1 to 64 characters of `a-z 0-9 . _ -`; the layer checks them.
    #[must_use]
    pub fn new(group: &str, tag: Tag, policy: &str, quota: Quota) -> Self {
        let quota_text = quota.key_text();
        let id = |kind: &str| {
            let text = format!("{kind}:{group}:{tag:?}:{policy}");
            let digest = Sha256::digest(text);
            digest
                .iter()
                .take(8)
                .fold(0, |id, byte| id << 8 | u64::from(*byte))
        };
        let inner = ScopeInner {
            state_id: id(&quota_text),
            block_id: id("block"),
            group: Arc::from(group),
            policy: Arc::from(policy),
            tag,
            quota,
            quota_text,
            pinned: false,
            varied: false,
            refusal: OnceLock::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Marks the buckets as never to be evicted: what all requests share.
    #[must_use]
    pub fn pinned(self) -> Self {
        self.marked(|inner| inner.pinned = true)
    }

    /// Marks the buckets as charged at limits that differ from request to request.
    #[must_use]
    pub fn varied(self) -> Self {
        self.marked(|inner| inner.varied = true)
    }

    fn marked(self, mark: impl FnOnce(&mut ScopeInner)) -> Self {
        let old = &*self.inner;
        let mut inner = ScopeInner {
            group: Arc::clone(&old.group),
            policy: Arc::clone(&old.policy),
            quota_text: old.quota_text.clone(),
            refusal: OnceLock::new(),
            ..*old
        };
        mark(&mut inner);
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Returns the group.
    #[must_use]
    pub fn group(&self) -> &str {
        &self.inner.group
    }

    /// Returns what a Redis Cluster hashes.
    #[must_use]
    pub fn tag(&self) -> Tag {
        self.inner.tag
    }

    /// Returns the name of the policy.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.inner.policy
    }

    /// Returns the declared quota.
    #[must_use]
    pub fn quota(&self) -> &Quota {
        &self.inner.quota
    }

    /// Returns the quota as it names states in a shared store.
    #[must_use]
    pub fn quota_text(&self) -> &str {
        &self.inner.quota_text
    }

    /// Says whether the buckets may never be evicted.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.inner.pinned
    }

    /// Says whether the limit differs from request to request.
    #[must_use]
    pub fn is_varied(&self) -> bool {
        self.inner.varied
    }

    /// Returns the text that was rendered at its first use.
    pub(super) fn refusal(&self, render: impl FnOnce() -> Box<[u8]>) -> &[u8] {
        self.inner.refusal.get_or_init(render)
    }

    /// A number for states of this scope, and one for its blocks.
    pub(super) fn ids(&self) -> (u64, u64) {
        (self.inner.state_id, self.inner.block_id)
    }
}

impl PartialEq for Scope {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
            || (self.ids() == other.ids()
                && self.group() == other.group()
                && self.policy() == other.policy()
                && (self.tag(), self.quota()) == (other.tag(), other.quota()))
    }
}

impl Eq for Scope {}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("group", &self.group())
            .field("tag", &self.tag())
            .field("policy", &self.policy())
            .field("quota", self.quota())
            .finish()
    }
}

/// One state: a scope, and a key in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket<'a> {
    /// Group, tag, policy and declared quota.
    pub scope: &'a Scope,
    /// Whose.
    pub key: &'a PartitionKey,
}

impl Bucket<'_> {
    /// Says whether both lie under one hash tag, so that one step can reach both.
    #[must_use]
    pub fn shares_tag(&self, other: &Bucket<'_>) -> bool {
        self.scope.group() == other.scope.group()
            && self.scope.tag() == other.scope.tag()
            && (self.scope.tag() == Tag::Group || self.key == other.key)
    }
}

/// What a call wants of one bucket.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'a> {
    /// Where.
    pub bucket: Bucket<'a>,
    /// The units that may be in use at once: the effective limit, for GCRA the effective burst.
    pub limit: u32,
    /// The units to charge.
    pub cost: u32,
    /// Whether it can refuse.
    pub mode: Mode,
}

/// Whether a policy can refuse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// It refuses.
    #[default]
    Enforced,
    /// It counts, and says what it would have refused.
    Shadow,
}

/// What a store decided.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Whether every enforced charge was admitted (always, for `record`).
    pub admitted: bool,
    /// One state per charge, in their order.
    pub states: SmallVec<[PolicyState; 1]>,
    /// The moment of the decision by the store's clock, in microseconds since the Unix epoch.
    pub now: u64,
    /// Who decided.
    pub source: Source,
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// The store that the layer was given.
    Store,
    /// The store inside this process that stands in for it.
    Local,
    /// What this process knows from an earlier answer of the store; the store was not asked.
    DenyCache,
}

/// What one policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyState {
    /// Its decision.
    pub outcome: Outcome,
    /// The units that may be in use at once.
    pub limit: u32,
    /// The units in use, after the charge if there was one.
    pub used: u32,
    /// `limit - used`, never below 0.
    pub remaining: u32,
    /// Microseconds until `remaining` grows; 0 is never.
    more_in: u64,
    /// Microseconds until this cost is admitted; `u64::MAX` is never.
    retry_in: u64,
    /// What was charged, for a refund; `None` where nothing was.
    pub entry: Option<Entry>,
}

impl PolicyState {
    /// Makes a state: an outcome with its wait (`None` is never), what is in use, and when the first of it is free.
    #[must_use]
    pub fn new(
        (outcome, retry_in): (Outcome, Option<Duration>),
        limit: u32,
        (used, more_in): (u32, Option<Duration>),
        entry: Option<Entry>,
    ) -> Self {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self {
            outcome,
            limit,
            used,
            remaining: limit.saturating_sub(used),
            more_in: more_in.map_or(0, micros),
            retry_in: retry_in.map_or(u64::MAX, micros),
            entry,
        }
    }

    /// Returns the time until `remaining` grows; `None` when nothing is used.
    #[must_use]
    pub const fn more_in(&self) -> Option<Duration> {
        match self.more_in {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// Returns the time until this cost is admitted, if nobody else comes; `None` is never.
    #[must_use]
    pub const fn retry_in(&self) -> Option<Duration> {
        match self.retry_in {
            u64::MAX => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    pub(super) const fn more_in_micros(&self) -> u64 {
        self.more_in
    }

    #[cfg(feature = "redis")]
    pub(super) const fn retry_in_micros(&self) -> u64 {
        self.retry_in
    }

    pub(super) const fn decided(outcome: Outcome, limit: u32, retry_in: u64) -> Self {
        Self {
            outcome,
            limit,
            used: 0,
            remaining: limit,
            more_in: 0,
            retry_in,
            entry: None,
        }
    }

    pub(super) const fn measured(&mut self, used: u32, more_in: u64) {
        self.used = used;
        self.remaining = self.limit.saturating_sub(used);
        self.more_in = more_in;
    }
}

/// A policy's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The cost fits.
    Admitted,
    /// The cost does not fit now.
    Denied,
    /// The key is blocked.
    Blocked,
    /// The cost is above the limit and will never fit.
    Never,
    /// Nothing is known: another policy was known to refuse, so the store was not asked.
    NotAsked,
}

/// Names a charge within its bucket: opaque to all but the store that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) c: u64,
    pub(crate) amount: NonZeroU64,
}

impl Entry {
    /// Makes one of the numbers by which a store finds the charge again, and the amount charged: `None` if that is nothing.
    #[must_use]
    pub const fn new(a: u64, b: u64, c: u64, amount: u64) -> Option<Self> {
        match NonZeroU64::new(amount) {
            Some(amount) => Some(Self { a, b, c, amount }),
            None => None,
        }
    }

    /// Returns the numbers and the amount.
    #[must_use]
    pub const fn numbers(&self) -> [u64; 4] {
        [self.a, self.b, self.c, self.amount.get()]
    }
}
