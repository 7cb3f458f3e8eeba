//! Random histories against an oracle that colours the minutes of a calendar.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use crate::core::{ManualClock, Timestamp};
use crate::reservation::{
    HoldId, ReservationError, ReservationGuard, ReservationLayer, ReservationStore, Reservations,
    Settled, Slot,
};

const MINUTE: Duration = Duration::from_secs(60);
/// Minutes of the calendar that are fought over.
const DAY: u32 = 24;

/// Plays `steps` random steps drawn from `seed` and compares each answer with the oracle's.
///
/// # Panics
/// At the first answer that differs.
pub async fn model(store: Arc<dyn ReservationStore>, clock: &ManualClock, seed: u64, steps: u32) {
    let own = ReservationLayer::new(store).reservations();
    let mut random = Random(seed.wrapping_mul(2).wrapping_add(1));
    let mut oracle = Oracle {
        day: Timestamp::of(clock).plus(MINUTE * 10_000_000),
        holds: Vec::new(),
    };
    for step in 0..steps {
        let what = draw(&mut random, oracle.holds.len());
        let now = Timestamp::of(clock);
        let (answer, expected) = play(&own, &mut oracle, clock, &what, now).await;
        assert_eq!(answer, expected, "seed {seed}, step {step}: {what:?}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Hold(Wish),
    Undone(Wish),
    Confirm(usize),
    Release(usize),
    Cancel(usize),
    Extend(usize, u32),
    Pass(u32),
    Sweep,
}

#[derive(Clone, Debug, PartialEq)]
struct Wish {
    holder: u32,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
struct Part {
    lane: u32,
    from: u32,
    to: u32,
    /// Units of a capacity of 3; `None` is exclusive.
    units: Option<u32>,
}

fn draw(random: &mut Random, known: usize) -> Step {
    let of_known = |random: &mut Random| random.below(known as u32) as usize;
    match random.below(20) {
        0..8 => Step::Hold(wish(random)),
        8 => Step::Undone(wish(random)),
        9..12 => Step::Pass(random.below(5)),
        12 => Step::Sweep,
        _ if known == 0 => Step::Pass(1),
        13 | 14 => Step::Confirm(of_known(random)),
        15 | 16 => Step::Release(of_known(random)),
        17 => Step::Cancel(of_known(random)),
        _ => Step::Extend(of_known(random), random.below(20)),
    }
}

fn wish(random: &mut Random) -> Wish {
    let holder = random.below(3);
    let mut parts: Vec<Part> = Vec::new();
    for _ in 0..1 + random.below(2) {
        let from = random.below(DAY - 6);
        let part = Part {
            lane: random.below(2),
            from,
            to: from + 1 + random.below(6),
            units: (random.below(3) == 0).then(|| 1 + random.below(2)),
        };
        if parts.iter().all(|other| other.lane != part.lane) {
            parts.push(part);
        }
    }
    parts.sort_by_key(|part| part.lane);
    Wish { holder, parts }
}

struct Known {
    id: HoldId,
    wish: Wish,
    state: &'static str,
    created: Timestamp,
    end: Timestamp,
}

impl Known {
    fn state_at(&self, now: Timestamp) -> &'static str {
        if self.state == "held" && self.end <= now {
            "expired"
        } else {
            self.state
        }
    }

    fn blocks(&self, now: Timestamp) -> bool {
        matches!(self.state_at(now), "held" | "confirmed")
    }
}

struct Oracle {
    day: Timestamp,
    holds: Vec<Known>,
}

impl Oracle {
    fn slots(&self, wish: &Wish) -> Vec<Slot> {
        let slot = |part: &Part| {
            let at = |minute| self.day.plus(MINUTE * minute);
            let slot = Slot::new(format!("lane {}", part.lane), at(part.from)..at(part.to));
            match part.units {
                Some(units) => slot.units(units).of(3),
                None => slot,
            }
        };
        wish.parts.iter().map(slot).collect()
    }

    /// Looks at every minute of every part, except what `skip` blocks.
    fn verdict(&self, wish: &Wish, now: Timestamp, skip: Option<usize>) -> &'static str {
        let others = || {
            let all = self.holds.iter().enumerate();
            all.filter(move |(at, known)| Some(*at) != skip && known.blocks(now))
                .map(|(_, known)| known)
        };
        let (mut in_the_way, mut full): (Vec<&Known>, bool) = (Vec::new(), false);
        for part in &wish.parts {
            for minute in part.from..part.to {
                let mut units = 0;
                for known in others() {
                    let here = known.wish.parts.iter().find(|other| {
                        other.lane == part.lane && (other.from..other.to).contains(&minute)
                    });
                    match (here.map(|other| other.units), part.units) {
                        (None, _) => {}
                        (Some(Some(theirs)), Some(_)) => units += theirs,
                        (Some(_), _) => in_the_way.push(known),
                    }
                }
                full |= part.units.is_some_and(|own| own + units > 3);
            }
        }
        let booked = |known: &&&Known| known.state == "confirmed";
        let mine = |known: &&&Known| known.wish.holder == wish.holder;
        if in_the_way
            .iter()
            .any(|known| booked(&known) && mine(&known))
        {
            "ALREADY_BOOKED_BY_YOU"
        } else if in_the_way.iter().any(|known| booked(&known)) {
            "SLOT_ALREADY_BOOKED"
        } else if !in_the_way.is_empty() {
            "SLOT_TEMPORARILY_RESERVED"
        } else if full {
            "CAPACITY_EXCEEDED"
        } else {
            "created"
        }
    }

    fn hold(&self, wish: &Wish, now: Timestamp) -> &'static str {
        let twin = self
            .holds
            .iter()
            .any(|known| known.wish == *wish && known.state_at(now) == "held");
        if twin {
            "reused"
        } else {
            self.verdict(wish, now, None)
        }
    }

    fn confirm(&mut self, at: usize, now: Timestamp) -> &'static str {
        let free = self.verdict(&self.holds[at].wish, now, Some(at)) == "created";
        let known = &mut self.holds[at];
        let (state, answer) = match known.state_at(now) {
            "held" => ("confirmed", "confirmed"),
            "confirmed" => ("confirmed", "already"),
            "cancelled" => ("cancelled", "already"),
            "late" => ("late", "late"),
            _ if free => ("confirmed", "confirmed"),
            _ => ("late", "late"),
        };
        known.state = state;
        answer
    }

    fn leave(&mut self, at: usize, now: Timestamp, from: &str, to: &'static str) -> &'static str {
        let known = &mut self.holds[at];
        let state = known.state_at(now);
        if state == from {
            known.state = to;
            "ok"
        } else if state == to || (to == "released" && state == "expired") {
            "ok"
        } else {
            "HOLD_STATE"
        }
    }

    fn extend(&mut self, at: usize, now: Timestamp, minutes: u32) -> &'static str {
        let known = &mut self.holds[at];
        match known.state_at(now) {
            "held" => {
                let latest = known.created.plus(MINUTE * 24 * 60);
                let wanted = now.plus(MINUTE * minutes).min(latest);
                known.end = known.end.max(wanted);
                "ok"
            }
            "expired" => "HOLD_EXPIRED",
            _ => "HOLD_STATE",
        }
    }
}

async fn play(
    own: &Reservations,
    oracle: &mut Oracle,
    clock: &ManualClock,
    step: &Step,
    now: Timestamp,
) -> (&'static str, &'static str) {
    match step {
        Step::Hold(wish) => {
            let expected = oracle.hold(wish, now);
            let holder = format!("holder {}", wish.holder);
            let done = own.hold(oracle.slots(wish), &holder).await;
            (kept(oracle, done, wish, now), expected)
        }
        Step::Undone(wish) => {
            let expected = oracle.hold(wish, now);
            let (slots, holder) = (&oracle.slots(wish), &format!("holder {}", wish.holder));
            let mut answer = "";
            let seen = &mut answer;
            let undone = own.run(move |mut guard: ReservationGuard| {
                let slots = slots.clone();
                async move {
                    let done = guard.hold(slots, holder).await;
                    Err::<(), _>(Undone(outcome(&done)))
                }
            });
            if let Err(Undone(answered)) = undone.await {
                *seen = answered;
            }
            (answer, expected)
        }
        Step::Confirm(at) => {
            let id = oracle.holds[*at].id;
            let done =
                own.run(|mut guard: ReservationGuard| async move { guard.confirm(id).await });
            let answer = match done.await {
                Ok(Settled::Confirmed(_)) => "confirmed",
                Ok(Settled::AlreadyConfirmed(_)) => "already",
                Ok(Settled::LateConflict(_)) => "late",
                Ok(Settled::DuplicatePayment(_)) => "duplicate",
                Err(error) => error.code(),
            };
            (answer, oracle.confirm(*at, now))
        }
        Step::Release(at) => {
            let (id, holder) = named(oracle, *at);
            let holder = holder.as_str();
            let done = own
                .run(|mut guard: ReservationGuard| async move { guard.release(id, holder).await });
            let answer = super::code(done.await);
            (answer, oracle.leave(*at, now, "held", "released"))
        }
        Step::Cancel(at) => {
            let (id, holder) = named(oracle, *at);
            let holder = holder.as_str();
            let done = own
                .run(|mut guard: ReservationGuard| async move { guard.cancel(id, holder).await });
            let answer = super::code(done.await);
            (answer, oracle.leave(*at, now, "confirmed", "cancelled"))
        }
        Step::Extend(at, minutes) => {
            let (id, holder) = named(oracle, *at);
            let (holder, by) = (holder.as_str(), MINUTE * *minutes);
            let done =
                own.run(
                    |mut guard: ReservationGuard| async move { guard.extend(id, holder, by).await },
                );
            (super::code(done.await), oracle.extend(*at, now, *minutes))
        }
        Step::Pass(minutes) => {
            clock.advance(MINUTE * *minutes);
            ("", "")
        }
        Step::Sweep => {
            assert!(own.sweep().await.is_ok());
            ("", "")
        }
    }
}

/// The answer of a run that is always rolled back.
struct Undone(&'static str);

impl From<ReservationError> for Undone {
    fn from(error: ReservationError) -> Self {
        Self(error.code())
    }
}

impl crate::reservation::Retryable for Undone {
    fn is_worth_again(&self) -> bool {
        false
    }
}

fn named(oracle: &Oracle, at: usize) -> (HoldId, String) {
    let known = &oracle.holds[at];
    (known.id, format!("holder {}", known.wish.holder))
}

fn outcome(done: &Result<crate::reservation::Hold, ReservationError>) -> &'static str {
    match done {
        Ok(hold) if hold.outcome() == crate::reservation::HoldOutcome::Reused => "reused",
        Ok(_) => "created",
        Err(error) => error.code(),
    }
}

fn kept(
    oracle: &mut Oracle,
    done: Result<crate::reservation::Hold, ReservationError>,
    wish: &Wish,
    now: Timestamp,
) -> &'static str {
    let answer = outcome(&done);
    if let (Ok(hold), "created") = (done, answer) {
        oracle.holds.push(Known {
            id: hold.id(),
            wish: wish.clone(),
            state: "held",
            created: now,
            end: now.plus(MINUTE * 10),
        });
    }
    answer
}

/// Small and repeatable: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        u32::try_from(drawn % u64::from(n.max(1))).unwrap_or(0)
    }
}
