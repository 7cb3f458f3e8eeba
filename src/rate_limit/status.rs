//! What a request was told by all limits it has met so far.

use smallvec::SmallVec;

use super::partition::PartitionKey;
use super::quota::Quota;
use super::rule::Rule;
use super::store::{Bucket, Charge, Mode, Outcome, PolicyState, Scope};
use crate::core::Timestamp;

/// The states that a request got from all rate limit layers so far, outermost first: an extension of the request.
#[derive(Clone, Debug, Default)]
pub struct RateLimitStatus {
    entries: Statuses,
    /// A layer shows the older fields, which speak for all.
    older: bool,
}

/// What one layer's policies are asked, and what they said. Written where it stays: each entry is made once, when its
/// policy is asked, and filled in when the store has answered.
pub(super) type Statuses = SmallVec<[PolicyStatus; 1]>;

impl RateLimitStatus {
    /// Returns the policies in the order in which they decided.
    pub fn iter(&self) -> impl Iterator<Item = &PolicyStatus> {
        self.entries.iter()
    }

    /// Returns the state of the first policy of that name.
    #[must_use]
    pub fn policy(&self, name: &str) -> Option<&PolicyStatus> {
        self.iter().find(|entry| entry.policy() == name)
    }

    pub(super) fn has_charged(&self, scope: &Scope, key: &PartitionKey) -> bool {
        self.iter()
            .any(|entry| entry.state.entry.is_some() && entry.key == *key && entry.scope == *scope)
    }

    pub(super) fn of(entries: Statuses, older: bool) -> Self {
        Self { entries, older }
    }

    pub(super) fn extend(&mut self, later: Statuses, older: bool) {
        self.entries.extend(later);
        self.older |= older;
    }

    pub(super) fn shows_older(&self) -> bool {
        self.older
    }
}

/// What one policy said to a request.
#[derive(Clone, Debug)]
pub struct PolicyStatus {
    pub(super) scope: Scope,
    pub(super) key: PartitionKey,
    /// The limit that was asked for; `None` is the declared one.
    pub(super) limit: Option<u32>,
    pub(super) cost: u32,
    pub(super) state: PolicyState,
    pub(super) mode: Mode,
    /// The place of the policy in its own layer.
    pub(super) rule: usize,
    /// At the declared quota of the shared store.
    pub(super) declared: bool,
    pub(super) now: u64,
}

impl PolicyStatus {
    /// What is asked of the policy at place `index`: one unit at its declared limit, of a key that is still empty.
    pub(super) fn asked(index: usize, rule: &Rule) -> Self {
        Self {
            scope: rule.scope.clone(),
            key: PartitionKey::empty(),
            limit: None,
            cost: 1,
            state: PolicyState::decided(Outcome::NotAsked, 0, 0),
            mode: rule.policy.mode,
            rule: index,
            declared: true,
            now: 0,
        }
    }

    /// Returns the group.
    #[must_use]
    pub fn group(&self) -> &str {
        self.scope.group()
    }

    /// Returns the name of the policy.
    #[must_use]
    pub fn policy(&self) -> &str {
        self.scope.policy()
    }

    /// Returns the quota.
    #[must_use]
    pub fn quota(&self) -> &Quota {
        self.scope.quota()
    }

    /// Returns what the policy said, at admission.
    #[must_use]
    pub fn state(&self) -> &PolicyState {
        &self.state
    }

    /// Returns when more remains; `None` when nothing is used.
    #[must_use]
    pub fn reset_time(&self) -> Option<Timestamp> {
        let more_in = self.state.more_in_micros();
        (more_in > 0)
            .then(|| Timestamp::from_millis(self.now.saturating_add(more_in).div_ceil(1_000)))
    }

    /// The charge that this state answers, as a receipt needs it.
    pub(super) fn charge(&self) -> Charge<'_> {
        Charge {
            bucket: Bucket {
                scope: &self.scope,
                key: &self.key,
            },
            limit: self.state.limit,
            cost: 0,
            mode: self.mode,
        }
    }

    /// Whether the limit is the declared one.
    pub(super) fn is_at_its_quota(&self) -> bool {
        self.state.limit == self.quota().capacity()
    }

    pub(super) fn decided_at(&self) -> u64 {
        self.now
    }

    pub(super) fn is_violated(&self) -> bool {
        self.is_enforced() && self.state.outcome != Outcome::Admitted
    }

    /// Whole seconds until there is more, rounded up; 0 where nothing is used.
    pub(super) fn more_in_secs(&self) -> u64 {
        self.state.more_in_micros().div_ceil(1_000_000)
    }

    pub(super) fn is_enforced(&self) -> bool {
        self.mode == Mode::Enforced
    }

    pub(super) fn is_declared(&self) -> bool {
        self.declared
    }
}
