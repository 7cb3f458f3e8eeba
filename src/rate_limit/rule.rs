//! One policy ready for use.

use super::config::{Policy, Settings};
use super::meters::PolicyMeters;
use super::partition::PartitionKey;
use super::store::{Bucket, Scope, Source, Tag};
use crate::core::telemetry::Once;

/// One policy, ready for use.
pub(super) struct Rule {
    pub(super) policy: Policy,
    pub(super) scope: Scope,
    /// The same, as this process alone counts it while the store is away.
    pub(super) local: Scope,
    /// What begins this policy's member of the `RateLimit` field.
    pub(super) member: Box<[u8]>,
    pub(super) meters: PolicyMeters,
    pub(super) capped: Once,
    pub(super) repeated: Once,
    pub(super) anonymous: Once,
    pub(super) unkeyed: Once,
}

impl Rule {
    pub(super) fn of(policy: Policy, tag: Tag, settings: &Settings) -> Self {
        let scope = |quota| {
            let mut scope = Scope::new(&settings.group, tag, &policy.name, quota);
            if policy.partition.is_global() {
                scope = scope.pinned();
            }
            if policy.limit_by.is_some() {
                scope = scope.varied();
            }
            scope
        };
        Self {
            scope: scope(policy.quota),
            local: scope(policy.quota.share_of(settings.processes)),
            member: format!("\"{}\";r=", policy.name).into_bytes().into(),
            meters: PolicyMeters::new(&settings.group, &policy.name),
            capped: Once::new(),
            repeated: Once::new(),
            anonymous: Once::new(),
            unkeyed: Once::new(),
            policy,
        }
    }

    pub(super) fn scope_of(&self, source: Source) -> &Scope {
        match source {
            Source::Store | Source::DenyCache => &self.scope,
            Source::Local => &self.local,
        }
    }

    pub(super) fn bucket<'a>(&'a self, key: &'a PartitionKey, source: Source) -> Bucket<'a> {
        Bucket {
            scope: self.scope_of(source),
            key,
        }
    }

    /// The cost as `source` counts it at `capacity`: where a process has only its share, what fits into the whole limit but not
    /// into that takes all of it. Refused for good is only what the shared store would refuse so.
    pub(super) fn cost(
        &self,
        (cost, limit): (u32, Option<u32>),
        capacity: u32,
        source: Source,
    ) -> u32 {
        let is_share = source == Source::Local && (1..cost).contains(&capacity);
        match is_share && cost <= self.capacity(limit, Source::Store, 1) {
            true => capacity,
            false => cost,
        }
    }

    pub(super) fn capacity(&self, limit: Option<u32>, source: Source, processes: u32) -> u32 {
        let quota = self.scope_of(source).quota();
        match (limit, source) {
            (None, _) => quota.capacity(),
            (Some(limit), Source::Store | Source::DenyCache) => quota.capacity_at(limit),
            (Some(0), Source::Local) => 0,
            (Some(limit), Source::Local) => quota.capacity_at((limit / processes.max(1)).max(1)),
        }
    }
}
