//! Stamps: what was invalidated when, in the store's own count, and this process's copy of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::core::telemetry;

use super::entry::{Entry, Head};
use super::target::Target;

/// A place in the order of all invalidations of one store; only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

/// What an invalidation does to the entries it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChangeKind {
    /// They are gone.
    Gone,
    /// They are stale from now on, so that stale windows still apply.
    Stale,
}

/// One target to be invalidated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Change {
    /// What it hits.
    pub target: Target,
    /// What happens to that.
    pub kind: ChangeKind,
}

/// The stamps that a process has not seen yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// The highest stamp of any target.
    pub highest: Stamp,
    /// Entries begun below this are as good as none.
    pub floor: Stamp,
    /// The targets raised since, each with its stamp.
    pub changes: Vec<(Change, Stamp)>,
}

/// Whether an entry still holds against the stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Live,
    Stale,
    Gone,
}

/// The most invalidations kept for a store that is away; beyond, everything goes.
const MOST_QUEUED: usize = 10_000;

/// This process's copy of a store's stamps, and what it could not tell the store yet.
#[derive(Debug)]
pub(super) struct Stamps {
    highest: AtomicU64,
    /// Highest stamp that this process was given for what it invalidated.
    own: AtomicU64,
    floor: AtomicU64,
    /// Highest stamp of a target that only answers name.
    highest_said: AtomicU64,
    /// Changes with every change of the copy; unique in the process, as entries may be shared by several copies.
    version: AtomicU64,
    /// When the copy was last known to be complete, in real microseconds; 0 is never.
    confirmed: AtomicU64,
    /// The store did not answer when it was last asked.
    away: AtomicBool,
    raised: RwLock<HashMap<Target, [Stamp; 2]>>,
    queued: Mutex<Queue>,
    any_queued: AtomicBool,
}

/// What the store has not heard yet, in order. What is queued twice is told twice: the first telling may lie before
/// the second change.
#[derive(Debug, Default)]
struct Queue {
    next: u64,
    changes: Vec<Queued>,
}

/// A change and its number in the queue.
pub(super) type Queued = (u64, Change);

impl Queue {
    fn push(&mut self, change: Change) {
        self.changes.push((self.next, change));
        self.next += 1;
    }
}

static NEXT_VERSION: AtomicU64 = AtomicU64::new(1);

impl Default for Stamps {
    fn default() -> Self {
        Self {
            highest: AtomicU64::default(),
            own: AtomicU64::default(),
            floor: AtomicU64::default(),
            highest_said: AtomicU64::default(),
            version: AtomicU64::new(next_version()),
            confirmed: AtomicU64::default(),
            away: AtomicBool::default(),
            raised: RwLock::default(),
            queued: Mutex::default(),
            any_queued: AtomicBool::default(),
        }
    }
}

fn next_version() -> u64 {
    NEXT_VERSION.fetch_add(1, Ordering::Relaxed)
}

impl Stamps {
    pub(super) fn highest(&self) -> Stamp {
        Stamp(self.highest.load(Ordering::Acquire))
    }

    /// The highest stamp that is known to be given out: what begins now begins after it.
    pub(super) fn issued(&self) -> Stamp {
        self.highest().max(Stamp(self.own.load(Ordering::Acquire)))
    }

    pub(super) fn floor(&self) -> Stamp {
        Stamp(self.floor.load(Ordering::Acquire))
    }

    /// Changes with every change that this process learns of.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::Acquire)
    }

    /// Records that the copy was complete at `at`, real microseconds read *before* the store was asked.
    pub(super) fn confirm(&self, at: u64) {
        self.confirmed.fetch_max(at, Ordering::AcqRel);
        if self.is_away() && self.away.swap(false, Ordering::AcqRel) {
            telemetry::info!("response cache: the store answers again");
        }
    }

    pub(super) fn is_away(&self) -> bool {
        self.away.load(Ordering::Acquire)
    }

    /// Nothing local may answer until the next confirmation.
    pub(super) fn doubt(&self) {
        self.confirmed.store(0, Ordering::Release);
        if !self.away.swap(true, Ordering::AcqRel) {
            telemetry::warn!(
                "response cache: the store does not answer; nothing is answered from copies here"
            );
        }
    }

    /// Takes in what the store said after `since`.
    pub(super) fn apply(&self, news: &Changes) {
        let mut raised = self.raised.write();
        for (change, stamp) in &news.changes {
            self.raise(&mut raised, *change, *stamp);
        }
        if news.floor > self.floor() {
            if self.highest() > Stamp::default() {
                telemetry::warn!(
                    "response cache: the store's stamps were full or lost; what is older is a miss"
                );
            }
            self.floor.store(news.floor.0, Ordering::Release);
            raised.retain(|_, stamps| stamps.iter().any(|stamp| *stamp > news.floor));
        }
        self.highest.fetch_max(news.highest.0, Ordering::AcqRel);
        self.renew();
    }

    /// Takes in what this process has just invalidated. Others' changes in between are still unknown.
    pub(super) fn apply_own(&self, changes: &[Change], stamp: Stamp) {
        let mut raised = self.raised.write();
        for change in changes {
            self.raise(&mut raised, *change, stamp);
        }
        self.own.fetch_max(stamp.0, Ordering::AcqRel);
        self.renew();
    }

    fn raise(&self, raised: &mut HashMap<Target, [Stamp; 2]>, change: Change, stamp: Stamp) {
        let own = &mut raised.entry(change.target).or_default()[change.kind as usize];
        *own = stamp.max(*own);
        if change.target.is_said_by_answers() {
            self.highest_said.fetch_max(stamp.0, Ordering::AcqRel);
        }
    }

    fn renew(&self) {
        self.version.store(next_version(), Ordering::Release);
    }

    /// Judges an entry; one atomic load where it was judged at this version before.
    pub(super) fn judge(&self, entry: &Entry) -> Verdict {
        let version = self.version.load(Ordering::Acquire);
        if entry.checked_at(version) {
            return Verdict::Live;
        }
        let verdict = self.judge_head(entry.head());
        if verdict == Verdict::Live {
            // A change that came in between has moved the version on, so that this one is not found again.
            entry.set_checked(version);
        }
        verdict
    }

    pub(super) fn judge_head(&self, head: &Head) -> Verdict {
        if self.is_quiet() {
            // Nothing was ever invalidated: the targets need not even be worked out.
            return if head.begun < self.floor() {
                Verdict::Gone
            } else {
                Verdict::Live
            };
        }
        self.judge_targets(head.begun, head.targets())
    }

    fn is_quiet(&self) -> bool {
        !self.has_queued() && self.raised.read().is_empty()
    }

    /// Judges what began at `begun` and carries `targets`.
    pub(super) fn judge_targets<'a>(
        &self,
        begun: Stamp,
        targets: impl Iterator<Item = &'a Target> + Clone,
    ) -> Verdict {
        if begun < self.floor() {
            return Verdict::Gone;
        }
        let mut verdict = Verdict::Live;
        if self.any_queued.load(Ordering::Acquire) {
            for (_, change) in &self.queued.lock().changes {
                if targets.clone().any(|target| *target == change.target) {
                    verdict = worse(verdict, change.kind);
                }
            }
        }
        let raised = self.raised.read();
        if raised.is_empty() {
            return verdict;
        }
        for target in targets {
            if let Some([gone, stale]) = raised.get(target) {
                if *gone > begun {
                    return Verdict::Gone;
                }
                if *stale > begun {
                    verdict = worse(verdict, ChangeKind::Stale);
                }
            }
        }
        verdict
    }

    /// Returns the highest stamp at which one of `targets` went; entries begun before it are gone.
    pub(super) fn not_before(&self, targets: impl FnOnce() -> Vec<Target>) -> Stamp {
        let raised = self.raised.read();
        if raised.is_empty() {
            return Stamp::default();
        }
        let targets = targets();
        let gone = targets
            .iter()
            .filter_map(|target| Some(raised.get(target)?[0]));
        gone.max().unwrap_or_default()
    }

    /// Says whether one of `targets` went or went stale after `begun`.
    fn is_raised(&self, targets: &[Target], begun: Stamp) -> bool {
        let raised = self.raised.read();
        let mut stamps = targets.iter().filter_map(|target| raised.get(target));
        stamps.any(|[gone, stale]| gone.max(stale) > &begun)
    }

    /// Says whether a fetch begun at `begun`, whose head is not known yet, may be hit by an invalidation since.
    pub(super) fn may_hit(&self, begun: Stamp, targets: &[Target]) -> bool {
        self.highest_said.load(Ordering::Acquire) > begun.0
            || self.is_raised(targets, begun)
            || self.any_queued.load(Ordering::Acquire)
    }

    /// Keeps invalidations for a store that is away; they hold in this process at once.
    pub(super) fn queue(&self, changes: &[Change]) {
        let mut queued = self.queued.lock();
        changes.iter().for_each(|change| queued.push(*change));
        if queued.changes.len() > MOST_QUEUED {
            queued.changes.clear();
            queued.push(Change {
                target: Target::everything(),
                kind: ChangeKind::Gone,
            });
        }
        self.any_queued.store(true, Ordering::Release);
        self.renew();
    }

    pub(super) fn has_queued(&self) -> bool {
        self.any_queued.load(Ordering::Acquire)
    }

    /// Returns what the store must hear before it is believed again.
    pub(super) fn queued(&self) -> Vec<Queued> {
        if self.has_queued() {
            self.queued.lock().changes.clone()
        } else {
            Vec::new()
        }
    }

    /// Forgets what the store has heard at `stamp`; what was queued since stays.
    pub(super) fn told(&self, heard: &[Queued], stamp: Stamp) {
        let changes: Vec<Change> = heard.iter().map(|(_, change)| *change).collect();
        self.apply_own(&changes, stamp);
        let mut queued = self.queued.lock();
        queued.changes.retain(|queued| !heard.contains(queued));
        self.any_queued
            .store(!queued.changes.is_empty(), Ordering::Release);
    }
}

fn worse(before: Verdict, kind: ChangeKind) -> Verdict {
    match (before, kind) {
        (Verdict::Gone, _) | (_, ChangeKind::Gone) => Verdict::Gone,
        _ => Verdict::Stale,
    }
}

/// Says whether the entry `there` still lives and was begun later than `at`.
pub(super) const fn is_superseded(there: &Head, at: u64, now: u64) -> bool {
    there.at > at && there.expires_at > now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(tag: &str, kind: ChangeKind) -> Change {
        Change {
            target: Target::tag(tag),
            kind,
        }
    }

    #[test]
    fn an_invalidation_hits_what_began_before_it_and_nothing_else() {
        let stamps = Stamps::default();
        stamps.apply(&Changes {
            highest: Stamp(10),
            floor: Stamp(0),
            changes: vec![
                (change("a", ChangeKind::Gone), Stamp(10)),
                (change("b", ChangeKind::Stale), Stamp(9)),
            ],
        });
        let judge = |begun, tag| {
            stamps.judge_head(&Head {
                begun: Stamp(begun),
                said: vec![Target::everything(), Target::tag(tag)].into(),
                ..Head::default()
            })
        };
        assert_eq!(
            [
                judge(9, "a"),
                judge(10, "a"),
                judge(8, "b"),
                judge(9, "b"),
                judge(1, "c")
            ],
            [
                Verdict::Gone,
                Verdict::Live,
                Verdict::Stale,
                Verdict::Live,
                Verdict::Live
            ]
        );
    }

    #[test]
    fn what_is_queued_holds_at_once_and_is_forgotten_once_told() {
        let stamps = Stamps::default();
        let head = Head {
            begun: Stamp(5),
            said: vec![Target::tag("a")].into(),
            ..Head::default()
        };
        stamps.queue(&[change("a", ChangeKind::Gone)]);
        assert_eq!(stamps.judge_head(&head), Verdict::Gone);
        let queued = stamps.queued();
        stamps.told(&queued, Stamp(6));
        assert!(stamps.queued().is_empty());
        assert_eq!(stamps.judge_head(&head), Verdict::Gone);
        assert_eq!(
            stamps.judge_head(&Head {
                begun: Stamp(6),
                ..head
            }),
            Verdict::Live
        );
    }

    #[test]
    fn too_many_queued_invalidations_become_everything() {
        let stamps = Stamps::default();
        let many: Vec<Change> = (0..=MOST_QUEUED)
            .map(|n| change(&n.to_string(), ChangeKind::Gone))
            .collect();
        stamps.queue(&many);
        let queued: Vec<Change> = stamps.queued().iter().map(|(_, change)| *change).collect();
        let everything = Change {
            target: Target::everything(),
            kind: ChangeKind::Gone,
        };
        assert_eq!(queued, [everything]);
    }

    #[test]
    fn what_is_queued_again_while_it_is_told_is_told_again() {
        let stamps = Stamps::default();
        stamps.queue(&[change("a", ChangeKind::Gone)]);
        let telling = stamps.queued();
        stamps.queue(&[change("a", ChangeKind::Gone)]);
        stamps.told(&telling, Stamp(6));
        let late = Head {
            begun: Stamp(7),
            said: vec![Target::tag("a")].into(),
            ..Head::default()
        };
        assert_eq!(stamps.judge_head(&late), Verdict::Gone);
        assert_eq!(stamps.queued().len(), 1);
    }
}
