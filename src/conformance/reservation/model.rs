//! Random histories against an oracle that colours the minutes of a calendar.
#![allow(clippy::panic, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{ManualClock, Timestamp};
use crate::reservation::store::Delivery;
use crate::reservation::{
    EventKind, HoldId, HoldRef, Payment, ReservationError, ReservationGuard, ReservationLayer,
    ReservationStore, Reservations, Settled, Slot,
};

const MINUTE: Duration = Duration::from_secs(60);
/// So few that each is used again and again.
const PAYMENTS: u32 = 40;
/// Minutes of the calendar that are fought over.
const DAY: u32 = 24;

/// Plays `steps` random steps drawn from `seed` and compares each answer with the oracle's.
///
/// # Panics
/// At the first answer that differs.
pub async fn model(store: Arc<dyn ReservationStore>, clock: &ManualClock, seed: u64, steps: u32) {
    let own = ReservationLayer::new(Arc::clone(&store)).reservations();
    let mut random = Random(seed.wrapping_mul(2).wrapping_add(1));
    let mut oracle = Oracle {
        day: Timestamp::of(clock).plus(MINUTE * 10_000_000),
        holds: Vec::new(),
        payments: BTreeMap::new(),
        given_back: 0,
    };
    for step in 0..steps {
        let what = draw(&mut random, oracle.holds.len());
        let now = Timestamp::of(clock);
        let (answer, expected) = play(&own, &mut oracle, clock, &what, now).await;
        assert_eq!(answer, expected, "seed {seed}, step {step}: {what:?}");
    }
    let given_back = given_back(&store).await;
    assert_eq!(
        given_back, oracle.given_back,
        "seed {seed}: money to give back"
    );
}

/// Takes all events, and counts those that say that money must be given back.
async fn given_back(store: &Arc<dyn ReservationStore>) -> usize {
    let mut count = 0;
    loop {
        let taken = store.take_events(100, MINUTE).await;
        let events = taken.unwrap_or_else(|error| panic!("{error:?}"));
        if events.is_empty() {
            return count;
        }
        let back = [EventKind::LateConflict, EventKind::DuplicatePayment];
        count += events
            .iter()
            .filter(|event| back.contains(&event.kind))
            .count();
        let settled = events
            .into_iter()
            .map(|event| (event.id, Delivery::Delivered));
        let settled = store.settle_events(settled.collect()).await;
        settled.unwrap_or_else(|error| panic!("{error:?}"));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Hold(Wish),
    Undone(Wish),
    Confirm(usize),
    /// A payment's event, by its name alone.
    Pay(u32),
    /// A payment's event that overtook the attaching.
    PaidBy(usize, u32),
    Attach(usize, u32, u32),
    Processing(usize, u32),
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
    /// Minutes blocked before and after.
    buffer: (u32, u32),
}

impl Part {
    fn blocks(&self) -> std::ops::Range<u32> {
        self.from - self.buffer.0..self.to + self.buffer.1
    }
}

fn draw(random: &mut Random, known: usize) -> Step {
    let of_known = |random: &mut Random| random.below(known as u32) as usize;
    match random.below(26) {
        0..8 => Step::Hold(wish(random)),
        8 => Step::Undone(wish(random)),
        9..12 => Step::Pass(random.below(5)),
        12 => Step::Sweep,
        13 => Step::Pay(random.below(PAYMENTS)),
        _ if known == 0 => Step::Pass(1),
        14 | 15 => Step::Confirm(of_known(random)),
        16 | 17 => Step::Release(of_known(random)),
        18 => Step::Cancel(of_known(random)),
        19 => Step::Processing(of_known(random), random.below(40)),
        20 | 21 => Step::PaidBy(of_known(random), random.below(PAYMENTS)),
        22..24 => {
            // Now and then one that can be paid for longer than any hold may last.
            let minutes = match random.below(10) {
                0 => 25 * 60,
                _ => random.below(30),
            };
            Step::Attach(of_known(random), random.below(PAYMENTS), minutes)
        }
        _ => Step::Extend(of_known(random), random.below(20)),
    }
}

fn wish(random: &mut Random) -> Wish {
    let holder = random.below(3);
    let mut parts: Vec<Part> = Vec::new();
    for _ in 0..1 + random.below(2) {
        let from = 2 + random.below(DAY - 6);
        let part = Part {
            lane: random.below(2),
            from,
            to: from + 1 + random.below(6),
            units: (random.below(3) == 0).then(|| 1 + random.below(2)),
            buffer: match random.below(4) {
                0 => (random.below(3), random.below(3)),
                _ => (0, 0),
            },
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
        if matches!(self.state, "held" | "processing") && self.end <= now {
            "expired"
        } else {
            self.state
        }
    }

    fn blocks(&self, now: Timestamp) -> bool {
        matches!(self.state_at(now), "held" | "processing" | "confirmed")
    }
}

struct Oracle {
    day: Timestamp,
    holds: Vec<Known>,
    /// Whose each payment is, and what it turned out to be.
    payments: BTreeMap<u32, (usize, &'static str)>,
    /// Events that say that money must be given back.
    given_back: usize,
}

impl Oracle {
    /// A name that no other history on the same store uses.
    fn name(&self, payment: u32) -> String {
        format!("{}-{payment}", self.day)
    }

    fn slots(&self, wish: &Wish) -> Vec<Slot> {
        let slot = |part: &Part| {
            let at = |minute| self.day.plus(MINUTE * minute);
            let slot = Slot::new(format!("lane {}", part.lane), at(part.from)..at(part.to))
                .buffer(MINUTE * part.buffer.0, MINUTE * part.buffer.1);
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
            for minute in part.blocks() {
                let mut units = 0;
                for known in others() {
                    let here =
                        known.wish.parts.iter().find(|other| {
                            other.lane == part.lane && other.blocks().contains(&minute)
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
            .any(|known| known.wish == *wish && is_running(known.state_at(now)));
        if twin {
            "reused"
        } else {
            self.verdict(wish, now, None)
        }
    }

    fn confirm(&mut self, at: usize, now: Timestamp, paying: Option<u32>) -> &'static str {
        let standing = paying.and_then(|payment| self.payments.get(&payment).copied());
        if standing.is_some_and(|(hold, _)| hold != at) {
            return "PAYMENT_IN_USE";
        }
        let standing = standing.map(|(_, standing)| standing);
        let paid = self.payments.values().any(|known| *known == (at, "paid"));
        let free = self.verdict(&self.holds[at].wish, now, Some(at)) == "created";
        let before = self.holds[at].state_at(now);
        // The state, what the payment becomes unless it was settled before, the answer.
        let (state, becomes, answer) = match before {
            "held" | "processing" => ("confirmed", "paid", "confirmed"),
            "confirmed" | "cancelled" if paying.is_none() || standing == Some("paid") => {
                (before, "paid", "already")
            }
            "confirmed" if !paid => (before, "paid", "already"),
            "confirmed" => (before, "back", "duplicate"),
            "cancelled" => (before, "back", "late"),
            "late" => ("late", "back", "late"),
            _ if free => ("confirmed", "paid", "confirmed"),
            _ => ("late", "back", "late"),
        };
        let settled = matches!(standing, Some("back"));
        let moved = self.holds[at].state != state && state == "late";
        if becomes == "back" && (moved || (paying.is_some() && !settled)) {
            self.given_back += 1;
        }
        if let Some(payment) = paying {
            self.payments.insert(payment, (at, becomes));
        }
        self.holds[at].state = state;
        answer
    }

    fn pay(&mut self, payment: u32, now: Timestamp) -> &'static str {
        match self.payments.get(&payment) {
            Some((at, _)) => self.confirm(*at, now, Some(payment)),
            None => "PAYMENT_NOT_FOUND",
        }
    }

    fn attach(&mut self, at: usize, now: Timestamp, payment: u32, minutes: u32) -> &'static str {
        let known = &mut self.holds[at];
        let (state, whose) = (known.state_at(now), self.payments.get(&payment).copied());
        let end = now.plus(MINUTE * minutes);
        match (whose, state) {
            (Some((hold, _)), _) if hold != at => "PAYMENT_IN_USE",
            (None, "expired") => "HOLD_EXPIRED",
            (None, state) if state != "held" => "HOLD_STATE",
            (Some(_), state) if state != "held" => "ok",
            _ if end > known.created.plus(MINUTE * 24 * 60) => "PAYMENT_OUTLIVES_HOLD",
            _ => {
                known.end = known.end.max(end);
                self.payments.entry(payment).or_insert((at, "attached"));
                "ok"
            }
        }
    }

    fn processing(&mut self, at: usize, now: Timestamp, minutes: u32) -> &'static str {
        let known = &mut self.holds[at];
        match known.state_at(now) {
            "held" | "processing" => {
                known.end = known.end.max(now.plus(MINUTE * minutes));
                known.state = "processing";
                "ok"
            }
            "expired" => "HOLD_EXPIRED",
            _ => "HOLD_STATE",
        }
    }

    fn release(&mut self, at: usize, now: Timestamp) -> &'static str {
        let known = &mut self.holds[at];
        match known.state_at(now) {
            "held" | "processing" => {
                known.state = "released";
                "ok"
            }
            "released" | "expired" => "ok",
            _ => "HOLD_STATE",
        }
    }

    fn cancel(&mut self, at: usize, now: Timestamp) -> &'static str {
        let known = &mut self.holds[at];
        match known.state_at(now) {
            "confirmed" => {
                known.state = "cancelled";
                "ok"
            }
            "cancelled" => "ok",
            _ => "HOLD_STATE",
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
            let target = HoldRef::Id(oracle.holds[*at].id);
            let answer = confirmed(own, target, None).await;
            (answer, oracle.confirm(*at, now, None))
        }
        Step::Pay(payment) => {
            let target = HoldRef::payment(oracle.name(*payment));
            let answer = confirmed(own, target, None).await;
            (answer, oracle.pay(*payment, now))
        }
        Step::PaidBy(at, payment) => {
            let target = HoldRef::Id(oracle.holds[*at].id);
            let paid_by = Payment::new(oracle.name(*payment));
            let answer = confirmed(own, target, Some(paid_by)).await;
            (answer, oracle.confirm(*at, now, Some(*payment)))
        }
        Step::Attach(at, payment, minutes) => {
            let id = oracle.holds[*at].id;
            let payment_of = Payment::new(oracle.name(*payment));
            let attached = payment_of.valid_until(now.plus(MINUTE * *minutes));
            let attached = &attached;
            let done = own.run(|mut guard: ReservationGuard| async move {
                guard.attach_payment(id, attached.clone()).await
            });
            let answer = super::code(done.await);
            (answer, oracle.attach(*at, now, *payment, *minutes))
        }
        Step::Processing(at, minutes) => {
            let (id, lasting) = (oracle.holds[*at].id, MINUTE * *minutes);
            let done = own.run(|mut guard: ReservationGuard| async move {
                guard.processing(id).lasting(lasting).await
            });
            let answer = super::code(done.await);
            (answer, oracle.processing(*at, now, *minutes))
        }
        Step::Release(at) => {
            let (id, holder) = named(oracle, *at);
            let holder = holder.as_str();
            let done = own
                .run(|mut guard: ReservationGuard| async move { guard.release(id, holder).await });
            let answer = super::code(done.await);
            (answer, oracle.release(*at, now))
        }
        Step::Cancel(at) => {
            let (id, holder) = named(oracle, *at);
            let holder = holder.as_str();
            let done = own
                .run(|mut guard: ReservationGuard| async move { guard.cancel(id, holder).await });
            let answer = super::code(done.await);
            (answer, oracle.cancel(*at, now))
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

async fn confirmed(own: &Reservations, target: HoldRef, paid_by: Option<Payment>) -> &'static str {
    let (target, paid_by) = (&target, &paid_by);
    let done = own.run(|mut guard: ReservationGuard| async move {
        let confirming = guard.confirm(target.clone());
        match paid_by {
            Some(payment) => confirming.paid_by(payment.clone()).await,
            None => confirming.await,
        }
    });
    match done.await {
        Ok(Settled::Confirmed(_)) => "confirmed",
        Ok(Settled::AlreadyConfirmed(_)) => "already",
        Ok(Settled::LateConflict(_)) => "late",
        Ok(Settled::DuplicatePayment(_)) => "duplicate",
        Err(error) => error.code(),
    }
}

/// Says whether a hold in this state can still expire.
fn is_running(state: &str) -> bool {
    matches!(state, "held" | "processing")
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
