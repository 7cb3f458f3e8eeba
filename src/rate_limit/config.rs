//! What a layer is told, all defaults in one place, and what is worked out of it once.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, request, response};
use ipnet::IpNet;
use smallvec::SmallVec;

use super::headers;
use super::meters::LayerMeters;
use super::name::{NameError, checked_name};
use super::partition::Partition;
use super::quota::Quota;
use super::refuse;
use super::rejection::RateLimitRejection;
use super::repeated::Repeated;
use super::rule::Rule;
use super::status::PolicyStatus;
use super::store::{Charge, Mode, RateLimitStore, Source, Tag};
use crate::backend::memory::MemoryStore;
use crate::core::telemetry::{Once, warn};
use crate::core::{StoreFailure, TrustedProxies};

/// The most policies of one layer.
const MOST_POLICIES: usize = 16;
/// The most entries of the store that stands in, where the shared store names none.
const LOCAL_ENTRIES: usize = 100_000;

/// One rule: a quota, by what it counts, and what a request costs.
#[derive(Clone)]
#[must_use]
pub struct Policy {
    pub(super) name: Arc<str>,
    pub(super) quota: Quota,
    pub(super) partition: Partition,
    pub(super) limit_by: Option<LimitBy>,
    pub(super) cost: Option<Cost>,
    pub(super) refund_when: Option<RefundWhen>,
    pub(super) mode: Mode,
}

pub(super) type LimitBy = Arc<dyn Fn(&request::Parts) -> Option<u32> + Send + Sync>;
pub(super) type Cost = Arc<dyn Fn(&request::Parts) -> u32 + Send + Sync>;
pub(super) type RefundWhen = Arc<dyn Fn(&response::Parts) -> bool + Send + Sync>;
pub(super) type Exempt = Arc<dyn Fn(&request::Parts) -> bool + Send + Sync>;
pub(super) type Hook = Arc<dyn Fn(&RateLimitRejection, &mut Response<Bytes>) + Send + Sync>;

impl Policy {
    /// Names a rule.
    ///
    /// # Panics
    /// If the name is not 1 to 64 characters of `a-z 0-9 . _ -`.
    #[allow(clippy::panic)]
    pub fn new(name: impl AsRef<str>, quota: Quota, partition: Partition) -> Self {
        match Self::try_new(name, quota, partition) {
            Ok(policy) => policy,
            Err(error) => panic!("{error}"),
        }
    }

    /// Names a rule whose name is known at run time only.
    ///
    /// # Errors
    /// Where [`Policy::new`] panics.
    pub fn try_new(
        name: impl AsRef<str>,
        quota: Quota,
        partition: Partition,
    ) -> Result<Self, NameError> {
        Ok(Self {
            name: checked_name(name.as_ref())?,
            quota,
            partition,
            limit_by: None,
            cost: None,
            refund_when: None,
            mode: Mode::Enforced,
        })
    }

    /// Sets the limit of each request, from 0 (refused) to the declared limit; `None` is the declared limit.
    ///
    /// Window and algorithm stay, and so does what was consumed: a key has one state, whatever its limit.
    ///
    /// Set it wherever the policy is declared, also where only a limiter is made: on Redis a refund by one that does not know
    /// of lower limits is heard by processes that keep such a key as full five seconds later.
    pub fn limit_by(
        mut self,
        limit: impl Fn(&request::Parts) -> Option<u32> + Send + Sync + 'static,
    ) -> Self {
        self.limit_by = Some(Arc::new(limit));
        self
    }

    /// Sets the units that each request costs, 1 unless set. A cost of 0 is admitted and charges nothing.
    pub fn cost(mut self, cost: impl Fn(&request::Parts) -> u32 + Send + Sync + 'static) -> Self {
        self.cost = Some(Arc::new(cost));
        self
    }

    /// Gives the units back when the head of the response says so.
    ///
    /// The refund is settled before the response goes on. An inner error or a request that the client
    /// dropped keeps its charge: aborting is no way to free attempts.
    pub fn refund_when(
        mut self,
        refund: impl Fn(&response::Parts) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.refund_when = Some(Arc::new(refund));
        self
    }

    /// Only counts: never refuses and is in no field; what it would have refused is measured.
    pub fn shadow(mut self) -> Self {
        self.mode = Mode::Shadow;
        self
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn reads_parts(&self) -> bool {
        self.limit_by.is_some() || self.cost.is_some() || self.partition.reads_parts()
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("name", &self.name)
            .field("quota", &self.quota)
            .field("partition", &self.partition)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// What the setters say.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) store: Arc<dyn RateLimitStore>,
    pub(super) group: Arc<str>,
    pub(super) policies: Vec<Policy>,
    pub(super) proxies: TrustedProxies,
    pub(super) allow: Vec<IpNet>,
    pub(super) deny: Vec<IpNet>,
    pub(super) exempt: Vec<Exempt>,
    pub(super) failure: StoreFailure,
    pub(super) processes: u32,
    pub(super) timeout: Duration,
    pub(super) fields: Fields,
    pub(super) hook: Option<Hook>,
}

/// Which fields a response gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    pub(super) standard: bool,
    pub(super) legacy: bool,
}

impl Settings {
    pub(super) fn new(store: impl RateLimitStore) -> Self {
        Self {
            store: Arc::new(store),
            group: Arc::from("default"),
            policies: Vec::new(),
            proxies: TrustedProxies::none(),
            allow: Vec::new(),
            deny: Vec::new(),
            exempt: Vec::new(),
            failure: StoreFailure::Local,
            processes: 1,
            timeout: Duration::from_millis(50),
            fields: Fields {
                standard: true,
                legacy: false,
            },
            hook: None,
        }
    }

    #[allow(clippy::panic)]
    pub(super) fn set_group(&mut self, name: &str) {
        match checked_name(name) {
            Ok(name) => self.group = name,
            Err(error) => panic!("{error}"),
        }
    }

    #[allow(clippy::panic)]
    pub(super) fn add(&mut self, policy: Policy) {
        if self.policies.iter().any(|other| other.name == policy.name) {
            panic!("two policies of one layer are named {:?}", policy.name);
        }
        if self.policies.len() == MOST_POLICIES {
            panic!("a layer takes at most {MOST_POLICIES} policies");
        }
        self.policies.push(policy);
    }

    #[allow(clippy::panic)]
    pub(super) fn set_processes(&mut self, processes: u32) {
        if processes == 0 {
            panic!("there is at least one process");
        }
        self.processes = processes;
    }

    #[allow(clippy::panic)]
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        if timeout < Duration::from_millis(1) || timeout > Duration::from_secs(5) {
            panic!("a timeout must lie within 1 ms and 5 s");
        }
        self.timeout = timeout;
    }

    /// All policies partition by the same thing: each key can lie on a shard of its own.
    pub(super) fn tag(&self) -> Tag {
        let same = self
            .policies
            .windows(2)
            .all(|pair| pair[0].partition.is_same(&pair[1].partition));
        if same { Tag::Key } else { Tag::Group }
    }
}

/// Settings, and the configuration that is made of them at first use. Clones of a layer share it.
pub(super) struct Shared {
    pub(super) settings: Settings,
    config: OnceLock<Arc<Config>>,
}

impl Shared {
    pub(super) fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            config: OnceLock::new(),
        })
    }

    /// Changes a setting, in a copy if other layers share this one.
    pub(super) fn set(self: Arc<Self>, change: impl FnOnce(&mut Settings)) -> Arc<Self> {
        let mut settings = match Arc::try_unwrap(self) {
            Ok(own) => own.settings,
            Err(shared) => shared.settings.clone(),
        };
        change(&mut settings);
        Self::new(settings)
    }

    pub(super) fn config(&self) -> &Arc<Config> {
        self.config
            .get_or_init(|| Arc::new(Config::of(self.settings.clone())))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("group", &self.settings.group)
            .field("tag", &self.settings.tag())
            .field("policies", &self.settings.policies)
            .field("on_store_failure", &self.settings.failure)
            .field("store", &self.settings.store)
            .finish_non_exhaustive()
    }
}

/// What layer, service and limiter work with.
pub(super) struct Config {
    pub(super) settings: Settings,
    pub(super) rules: Vec<Rule>,
    pub(super) store: Arc<dyn RateLimitStore>,
    local: OnceLock<Arc<dyn RateLimitStore>>,
    /// The `RateLimit-Policy` value while every policy applies at its declared limit.
    pub(super) policy_line: Option<HeaderValue>,
    /// The fields of a refusal, but for its numbers.
    pub(super) refusal_fields: HeaderMap,
    pub(super) repeated: Repeated,
    pub(super) asks_principal: bool,
    /// How many policies are in the fields.
    pub(super) enforced: usize,
    /// A closure wants the `Parts` of the request.
    pub(super) reads_parts: bool,
    /// An enforced policy counts by the principal.
    pub(super) principal_binds: bool,
    pub(super) refunds: bool,
    pub(super) meters: LayerMeters,
    /// How often the store did not answer since it last did.
    pub(super) failures: AtomicU32,
    /// The store answered that it cannot.
    pub(super) refused_by_store: Once,
    /// A layer that only counts never refuses, whatever happens to its store.
    pub(super) only_shadow: bool,
}

impl Config {
    fn of(settings: Settings) -> Self {
        if settings.policies.is_empty() {
            warn!(
                group = &*settings.group,
                "a rate limit without a policy lets everything pass"
            );
        }
        let tag = settings.tag();
        if !settings.policies.is_empty() && settings.store.splits(&settings.group, tag) {
            warn!(
                group = &*settings.group,
                "one layer of this group partitions by one thing, another by several: they share no state"
            );
        }
        let rules: Vec<Rule> = settings
            .policies
            .iter()
            .map(|policy| Rule::of(policy.clone(), tag, &settings))
            .collect();
        let store = settings
            .store
            .within(settings.timeout)
            .unwrap_or_else(|| Arc::clone(&settings.store));
        let policy_line = headers::fixed_policy_line(&rules);
        let standard = settings.fields.standard;
        Self {
            store,
            local: OnceLock::new(),
            refusal_fields: refuse::prepared(standard, policy_line.as_ref()),
            repeated: Repeated::default(),
            policy_line,
            asks_principal: settings
                .policies
                .iter()
                .any(|policy| policy.partition.asks_principal()),
            enforced: rules
                .iter()
                .filter(|rule| rule.policy.mode == Mode::Enforced)
                .count(),
            reads_parts: !settings.exempt.is_empty()
                || settings.policies.iter().any(Policy::reads_parts),
            principal_binds: settings
                .policies
                .iter()
                .any(|policy| policy.mode == Mode::Enforced && policy.partition.asks_principal()),
            refunds: settings
                .policies
                .iter()
                .any(|policy| policy.refund_when.is_some()),
            meters: LayerMeters::new(&settings.group),
            failures: AtomicU32::new(0),
            refused_by_store: Once::new(),
            only_shadow: rules.iter().all(|rule| rule.policy.mode == Mode::Shadow),
            rules,
            settings,
        }
    }

    /// What is done while the store cannot answer.
    pub(super) fn failure(&self) -> StoreFailure {
        match self.settings.failure {
            StoreFailure::Closed if self.only_shadow => StoreFailure::Open,
            mode => mode,
        }
    }

    /// The store that decides inside this process while the shared one cannot answer.
    pub(super) fn local(&self) -> &Arc<dyn RateLimitStore> {
        self.local.get_or_init(|| {
            self.settings.store.local().unwrap_or_else(|| {
                Arc::new(MemoryStore::builder().max_entries(LOCAL_ENTRIES).build())
            })
        })
    }

    pub(super) fn store_of(&self, source: Source) -> &Arc<dyn RateLimitStore> {
        match source {
            Source::Store | Source::DenyCache => &self.store,
            Source::Local => self.local(),
        }
    }

    /// Makes the charges of one store call.
    pub(super) fn charges<'a>(
        &'a self,
        asks: &'a [PolicyStatus],
        source: Source,
    ) -> SmallVec<[Charge<'a>; 4]> {
        let mut charges = SmallVec::new();
        // Pushed one by one: collecting is dearer, and this is done for every request.
        for ask in asks {
            let rule = &self.rules[ask.rule];
            let limit = rule.capacity(ask.limit, source, self.settings.processes);
            charges.push(Charge {
                bucket: rule.bucket(&ask.key, source),
                limit,
                cost: rule.cost((ask.cost, ask.limit), limit, source),
                mode: rule.policy.mode,
            });
        }
        charges
    }
}
