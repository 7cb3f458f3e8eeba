//! What is known of one key: until when it refuses, and whom.

use smallvec::SmallVec;

use super::super::Charge;
use crate::backend::memory::Entry;

/// The most waits of one key beside that of a single unit.
const MOST_WAITS: usize = 4;

/// What is known of a state or of a block.
pub(super) struct Known {
    pub(super) what: What,
    pub(super) epoch: u64,
    /// It is believed from the moment at which it was asked for (a clock that was set back believes nothing)...
    pub(super) since: u64,
    /// ...until this one.
    pub(super) until: u64,
}

#[derive(Clone)]
pub(super) enum What {
    Full(Full),
    Blocked(Until),
}

/// When it ends, by our clock and never too early: counted from the moment at which we heard of it.
#[derive(Clone, Copy)]
pub(super) struct Until {
    pub(super) at: u64,
    /// The server's clock minus ours.
    pub(super) ahead: i64,
}

/// A state without a unit left.
#[derive(Clone)]
pub(super) struct Full {
    pub(super) limit: u32,
    pub(super) used: u32,
    /// When one unit is free.
    pub(super) until: Until,
    /// The waits of larger costs and lower limits that were asked for.
    pub(super) waits: SmallVec<[(Wish, Until); 1]>,
}

/// A cost at a limit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) cost: u32,
    pub(super) limit: u32,
}

impl Entry for Known {
    fn weight(&self) -> usize {
        let heap = match &self.what {
            What::Full(full) if full.waits.spilled() => {
                full.waits.capacity() * size_of::<(Wish, Until)>()
            }
            _ => 0,
        };
        size_of::<Self>() + heap
    }

    /// Anything may be forgotten; what ends first goes first.
    fn eviction_rank(&self, _now: u64) -> Option<u64> {
        Some(u64::MAX - self.until)
    }
}

impl Known {
    pub(super) fn is_believed(&self, epoch: u64, now: u64) -> bool {
        self.epoch == epoch && (self.since..self.until).contains(&now)
    }

    /// Joins a reply with an earlier one about the same key that still holds.
    pub(super) fn after(self, before: &Self) -> Self {
        let (What::Full(later), What::Full(earlier)) = (&self.what, &before.what) else {
            return self;
        };
        if later.limit > earlier.limit {
            return self;
        }
        let full = earlier.clone().join(later);
        Self {
            what: What::Full(full),
            since: before.since,
            until: before.until,
            ..self
        }
    }
}

impl Wish {
    pub(super) fn of(charge: &Charge<'_>) -> Self {
        Self {
            cost: charge.cost,
            limit: charge.limit,
        }
    }
}

impl Full {
    /// Returns the wait of a wish that is refused; `None` where the server has to be asked for it.
    ///
    /// Who asks for more different costs than are kept is told the wait of one unit: it shall not be a way to the server.
    pub(super) fn wait(&self, wish: Wish) -> Option<Until> {
        // A cost above the limit is refused for another reason, and for good.
        if !(1..=wish.limit).contains(&wish.cost) || wish.limit > self.limit {
            return None;
        }
        if wish.cost == 1 && wish.limit == self.limit {
            return Some(self.until);
        }
        let known = self.waits.iter().find(|(known, _)| *known == wish);
        match known {
            Some((_, until)) => Some(*until),
            None => (self.waits.len() >= MOST_WAITS).then_some(self.until),
        }
    }

    /// The higher limit stands, and all waits.
    fn join(mut self, later: &Self) -> Self {
        let one = Wish {
            cost: 1,
            limit: self.limit,
        };
        for (wish, until) in later.waits.iter().filter(|(wish, _)| *wish != one) {
            self.waits.retain(|(known, _)| known != wish);
            if self.waits.len() < MOST_WAITS {
                self.waits.push((*wish, *until));
            }
        }
        self.used = later.used;
        self
    }
}
