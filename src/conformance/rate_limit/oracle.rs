//! What a store must answer, worked out another way: plain lists and maps of what was charged, searched from end to end.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;
use std::time::Duration;

use crate::rate_limit::store::{Outcome, PolicyState};
use crate::rate_limit::{Algorithm, Quota};

/// A stamp farther ahead than this was made before the clock went back.
const LEAD: u64 = 1_000_000;

/// A call's wish of one policy: quota, key, effective limit, cost, and whether it can refuse.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    pub(super) policy: usize,
    pub(super) key: usize,
    pub(super) quota: Quota,
    pub(super) limit: u32,
    pub(super) cost: u32,
    pub(super) enforced: bool,
}

/// What one policy must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    outcome: Outcome,
    used: u32,
    remaining: u32,
    more_in: Option<Duration>,
    retry_in: Option<Duration>,
}

impl Answer {
    pub(super) fn of(state: &PolicyState) -> Self {
        Self {
            outcome: state.outcome,
            used: state.used,
            remaining: state.remaining,
            more_in: state.more_in(),
            retry_in: state.retry_in(),
        }
    }

    /// Whether a refusal that was known without asking agrees: it names no longer wait.
    pub(super) fn covers(&self, known: &PolicyState) -> bool {
        let wait = |wait: Option<Duration>| wait.unwrap_or(Duration::MAX);
        self.outcome != Outcome::Admitted && wait(known.retry_in()) <= wait(self.retry_in)
    }
}

/// What was charged to one policy by one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paid {
    policy: usize,
    key: usize,
    quota: Quota,
    /// Stamp, bucket, window, or the end of the stretch in parts of `1 / limit` microseconds.
    place: u128,
    born: u64,
    amount: u128,
}

#[derive(Clone, Debug)]
enum Cell {
    /// One stamp per unit.
    Log(Vec<u64>),
    /// Units by the number of their sub-bucket.
    Buckets {
        born: u64,
        units: BTreeMap<u64, u32>,
    },
    /// The moment at which all is paid, in parts of `1 / limit` microseconds.
    Gcra { born: u64, end: u128 },
    /// Units of the window that begins there.
    Fixed { born: u64, start: u64, used: u32 },
}

/// All keys of a history.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    cells: HashMap<(usize, usize), Cell>,
    blocks: HashMap<(usize, usize), u64>,
}

impl Oracle {
    /// Says whether something that counts at `later` is over at `now`: going back there would bring it to life.
    pub(super) fn ends_between(&self, earlier: u64, now: u64, quotas: &[Quota]) -> bool {
        let within = |end: u64| earlier < end && end <= now;
        self.blocks.values().any(|end| within(*end))
            || self.cells.iter().any(|((policy, _), cell)| {
                let ends = cell.ends(&quotas[*policy]);
                ends.into_iter().any(within)
            })
    }

    pub(super) fn check(&mut self, wishes: &[Wish], now: u64) -> (bool, Vec<Answer>) {
        let answers: Vec<_> = wishes.iter().map(|wish| self.decide(wish, now)).collect();
        let mut both = wishes.iter().zip(&answers);
        let admitted =
            both.all(|(wish, answer)| !wish.enforced || answer.outcome == Outcome::Admitted);
        (admitted, answers)
    }

    pub(super) fn check_and_record(
        &mut self,
        wishes: &[Wish],
        now: u64,
    ) -> (bool, Vec<Answer>, Vec<Paid>) {
        let (admitted, mut answers) = self.check(wishes, now);
        let mut paid = Vec::new();
        for (wish, answer) in wishes.iter().zip(&mut answers) {
            if admitted && answer.outcome == Outcome::Admitted {
                paid.extend(self.charge(wish, answer, now));
            }
        }
        (admitted, answers, paid)
    }

    pub(super) fn record(&mut self, wishes: &[Wish], now: u64) -> (Vec<Answer>, Vec<Paid>) {
        let (_, mut answers) = self.check(wishes, now);
        let both = wishes.iter().zip(&mut answers);
        let paid = both.filter_map(|(wish, answer)| self.charge(wish, answer, now));
        let paid = paid.collect();
        (answers, paid)
    }

    /// Returns whether anything was given back.
    pub(super) fn refund(&mut self, paid: &[Paid], now: u64) -> bool {
        let given = paid.iter().map(|paid| {
            let Some(cell) = self.cells.get_mut(&(paid.policy, paid.key)) else {
                return false;
            };
            cell.repair(&paid.quota, now);
            let given = cell.give_back(paid, now);
            if given && cell.used_at(&paid.quota, now) == 0 {
                self.cells.remove(&(paid.policy, paid.key));
            }
            given
        });
        given.fold(false, |any, given| any | given)
    }

    pub(super) fn reset(&mut self, policy: usize, key: usize) {
        self.cells.remove(&(policy, key));
        self.blocks.remove(&(policy, key));
    }

    pub(super) fn block(&mut self, policy: usize, key: usize, until: u64) {
        let end = self.blocks.entry((policy, key)).or_default();
        *end = until.max(*end);
    }

    fn decide(&mut self, wish: &Wish, now: u64) -> Answer {
        let place = (wish.policy, wish.key);
        let blocked = self.blocks.get(&place).filter(|end| **end > now).copied();
        let mut answer = Answer {
            outcome: Outcome::Admitted,
            used: 0,
            remaining: wish.limit,
            more_in: None,
            retry_in: Some(Duration::ZERO),
        };
        let mut wait = 0;
        if let Some(cell) = self.cells.get_mut(&place) {
            cell.repair(&wish.quota, now);
            if wish.cost > 0 && wish.cost <= wish.limit {
                wait = cell.first_with(&wish.quota, now, wish.limit - wish.cost) - now;
            }
            cell.tell(&mut answer, wish, now);
        }
        let denied = |outcome, wait| (outcome, Some(Duration::from_micros(wait)));
        (answer.outcome, answer.retry_in) = match blocked {
            Some(until) => denied(Outcome::Blocked, wait.max(until - now)),
            None if wish.cost > wish.limit => (Outcome::Never, None),
            None if wait > 0 => denied(Outcome::Denied, wait),
            None => denied(Outcome::Admitted, 0),
        };
        answer
    }

    fn charge(&mut self, wish: &Wish, answer: &mut Answer, now: u64) -> Option<Paid> {
        if wish.cost == 0 {
            return None;
        }
        let cell = self
            .cells
            .entry((wish.policy, wish.key))
            .or_insert_with(|| Cell::empty(&wish.quota));
        let (place, born, amount) = cell.charge(&wish.quota, now, wish.cost);
        cell.tell(answer, wish, now);
        (amount > 0).then_some(Paid {
            policy: wish.policy,
            key: wish.key,
            quota: wish.quota,
            place,
            born,
            amount,
        })
    }
}

impl Cell {
    fn empty(quota: &Quota) -> Self {
        match quota.algorithm() {
            Algorithm::Log => Self::Log(Vec::new()),
            Algorithm::Buckets => Self::Buckets {
                born: 0,
                units: BTreeMap::new(),
            },
            Algorithm::Gcra { .. } => Self::Gcra { born: 0, end: 0 },
            Algorithm::Fixed | Algorithm::Month => Self::Fixed {
                born: 0,
                start: 0,
                used: 0,
            },
        }
    }

    /// The moments at which units are over, each once or more often. GCRA has no such moments but its end.
    fn ends(&self, quota: &Quota) -> Vec<u64> {
        let (window, grain) = (quota.window_micros(), quota.window_micros() / 64);
        match self {
            Self::Log(stamps) => stamps.iter().map(|stamp| stamp + window).collect(),
            Self::Buckets { units, .. } => units
                .keys()
                .map(|bucket| (bucket + 1) * grain + window)
                .collect(),
            Self::Gcra { end, .. } => vec![end.div_ceil(u128::from(quota.limit())) as u64],
            Self::Fixed { start, used, .. } if *used > 0 => vec![window_after(quota, *start)],
            Self::Fixed { .. } => Vec::new(),
        }
    }

    fn used_at(&self, quota: &Quota, at: u64) -> u32 {
        let (window, grain) = (quota.window_micros(), quota.window_micros() / 64);
        match self {
            Self::Log(stamps) => {
                let live = stamps.iter().filter(|stamp| *stamp + window > at);
                live.count() as u32
            }
            Self::Buckets { units, .. } => {
                let live = units
                    .iter()
                    .filter(|(bucket, _)| (*bucket + 1) * grain + window > at);
                live.map(|(_, units)| units).sum()
            }
            Self::Gcra { end, .. } => {
                let debt = end.saturating_sub(u128::from(at) * u128::from(quota.limit()));
                debt.div_ceil(u128::from(window)) as u32
            }
            Self::Fixed { start, used, .. } if *used > 0 && at < window_after(quota, *start) => {
                *used
            }
            Self::Fixed { .. } => 0,
        }
    }

    /// The first moment from `now` on at which at most `units` are in use, if nobody comes.
    fn first_with(&self, quota: &Quota, now: u64, units: u32) -> u64 {
        if self.used_at(quota, now) <= units {
            return now;
        }
        if let Self::Gcra { end, .. } = self {
            let rest = u128::from(units) * u128::from(quota.window_micros());
            return (end - rest).div_ceil(u128::from(quota.limit())) as u64;
        }
        let mut ends = self.ends(quota);
        ends.sort_unstable();
        let first = ends
            .into_iter()
            .find(|end| *end > now && self.used_at(quota, *end) <= units);
        first.unwrap_or(u64::MAX)
    }

    fn tell(&self, answer: &mut Answer, wish: &Wish, now: u64) {
        answer.used = self.used_at(&wish.quota, now);
        answer.remaining = wish.limit.saturating_sub(answer.used);
        let seen = answer.used.min(wish.limit);
        answer.more_in = (seen > 0)
            .then(|| Duration::from_micros(self.first_with(&wish.quota, now, seen - 1) - now));
    }

    /// A clock that went back: what lies ahead counts from now.
    fn repair(&mut self, quota: &Quota, now: u64) {
        match self {
            Self::Log(stamps) => {
                if stamps.iter().any(|stamp| *stamp > now + LEAD) {
                    stamps.iter_mut().for_each(|stamp| *stamp = now.min(*stamp));
                }
            }
            Self::Buckets { units, .. } => {
                let current = now / (quota.window_micros() / 64);
                for bucket in units.split_off(&(current + 1)).into_values() {
                    *units.entry(current).or_default() += bucket;
                }
            }
            Self::Gcra { end, .. } => {
                let full = u128::from(quota.capacity()) * u128::from(quota.window_micros());
                *end = (*end).min(u128::from(now) * u128::from(quota.limit()) + full);
            }
            // Before it counts anything it begins nowhere.
            Self::Fixed { start, used, .. } if *used > 0 => {
                *start = (*start).min(window_of(quota, now));
            }
            Self::Fixed { .. } => {}
        }
    }

    /// Returns place, birth and amount of what was charged.
    fn charge(&mut self, quota: &Quota, now: u64, cost: u32) -> (u128, u64, u128) {
        let (was_empty, most) = (self.used_at(quota, now) == 0, quota.capacity());
        match self {
            Self::Log(stamps) => {
                let newest = stamps.iter().max().map_or(0, |newest| newest + 1);
                let (stamp, cost) = (now.max(newest), cost.min(most));
                stamps.extend((0..cost).map(|_| stamp));
                stamps.sort_unstable();
                let over = stamps.partition_point(|stamp| stamp + quota.window_micros() <= now);
                let displaced = (stamps.len() - over).saturating_sub(most as usize);
                stamps.drain(over..over + displaced);
                (u128::from(stamp), 0, u128::from(cost))
            }
            Self::Buckets { born, units } => {
                let grain = quota.window_micros() / 64;
                if was_empty {
                    *born = now;
                }
                let cost = cost.min(most);
                let live = |bucket: &u64| (bucket + 1) * grain + quota.window_micros() > now;
                let mut units_live: Vec<_> = units
                    .iter_mut()
                    .filter(|(bucket, _)| live(bucket))
                    .collect();
                let used: u32 = units_live.iter().map(|(_, held)| **held).sum();
                let mut displaced = (used + cost).saturating_sub(most);
                for (_, held) in &mut units_live {
                    let gone = displaced.min(**held);
                    **held -= gone;
                    displaced -= gone;
                }
                *units.entry(now / grain).or_default() += cost;
                (u128::from(now / grain), *born, u128::from(cost))
            }
            Self::Gcra { born, end } => {
                let (window, at) = (u128::from(quota.window_micros()), u128::from(now));
                let at = at * u128::from(quota.limit());
                let before = end.saturating_sub(at);
                if before == 0 {
                    *born = now;
                }
                let wished = before + u128::from(cost.min(most)) * window;
                let after = before.max(wished.min(u128::from(most) * window));
                *end = at + after;
                (*end, *born, after - before)
            }
            Self::Fixed { born, start, used } => {
                if was_empty {
                    (*born, *start, *used) = (now, window_of(quota, now), 0);
                }
                let after = (*used).max(most.min(used.saturating_add(cost)));
                let amount = after - *used;
                *used = after;
                (u128::from(*start), *born, u128::from(amount))
            }
        }
    }

    fn give_back(&mut self, paid: &Paid, now: u64) -> bool {
        let window = paid.quota.window_micros();
        match self {
            Self::Log(stamps) => {
                let stamp = paid.place as u64;
                let mut left = paid.amount;
                let before = stamps.len();
                if stamp + window > now {
                    stamps.retain(|held| {
                        let goes = *held == stamp && left > 0;
                        left -= u128::from(goes);
                        !goes
                    });
                }
                stamps.len() < before
            }
            Self::Buckets { born, units } => {
                let bucket = paid.place as u64;
                let counts = (bucket + 1) * (window / 64) + window > now && *born == paid.born;
                let Some(held) = units.get_mut(&bucket).filter(|_| counts) else {
                    return false;
                };
                let gone = (*held).min(paid.amount as u32);
                *held -= gone;
                gone > 0
            }
            Self::Gcra { born, end } => {
                let at = u128::from(now) * u128::from(paid.quota.limit());
                let unpaid = paid
                    .place
                    .saturating_sub(at)
                    .min(paid.amount)
                    .min(end.saturating_sub(at));
                if *born != paid.born || unpaid == 0 {
                    return false;
                }
                *end = (*end).max(at) - unpaid;
                true
            }
            Self::Fixed { born, start, used } => {
                let live = *used > 0 && now < window_after(&paid.quota, *start);
                if !live || (*born, u128::from(*start)) != (paid.born, paid.place) {
                    return false;
                }
                *used -= (*used).min(paid.amount as u32);
                true
            }
        }
    }
}

/// The start of the window, or of the calendar month.
fn window_of(quota: &Quota, now: u64) -> u64 {
    match quota.algorithm() {
        Algorithm::Month => MONTHS[MONTHS.partition_point(|start| *start <= now) - 1],
        _ => now / quota.window_micros() * quota.window_micros(),
    }
}

fn window_after(quota: &Quota, start: u64) -> u64 {
    match quota.algorithm() {
        Algorithm::Month => MONTHS[MONTHS.partition_point(|next| *next <= start)],
        _ => start + quota.window_micros(),
    }
}

/// Where months begin, counted on one by one from the first day of 2029: histories play in the years after it.
static MONTHS: LazyLock<Vec<u64>> = LazyLock::new(|| {
    let (mut days, mut starts) = (21_550, Vec::new());
    for year in 2029..2045 {
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let february = if leap { 29 } else { 28 };
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
            starts.push(days * 86_400_000_000);
            days += length;
        }
    }
    starts
});
