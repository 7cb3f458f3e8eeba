//! Random sequences of all six methods and clock steps, each answer compared with the oracle's.

use std::sync::Arc;
use std::time::Duration;

use super::examples::{address, identity, json, new_id, order, patch, verifier};
use super::oracle::Oracle;
use crate::core::{ManualClock, Timestamp};
use crate::session::store::{
    AuthStamp, EndCause, Establish, Established, Identity, Lifetimes, Listed, Loaded,
    LoginIdentity, Operation, Otherwise, Part, Patch, Patched, Read, Revoked, Roles, SessionId,
    SessionLimit, SessionRef, SessionStore, Sighting, Target, UserId, Whose, home_of_user,
};

/// Runs `steps` random steps from `seed` on `store` and on an oracle, and compares every answer.
///
/// # Panics
/// An answer differs.
pub async fn random_sequence(
    store: &dyn SessionStore,
    clock: &ManualClock,
    seed: u64,
    steps: usize,
) {
    // Cut-offs of sequences before must not reach into this one.
    clock.advance(Duration::from_secs(400 * 86_400));
    let mut world = World::new(seed);
    for step in 0..steps {
        world.move_clock(clock);
        let context = format!("seed {seed}, step {step}");
        world.take_step(store, &context).await;
    }
}

/// A small generator of its own, so that a seed means the same everywhere.
struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

struct World {
    draw: Draw,
    oracle: Oracle,
    users: Vec<String>,
    sessions: Vec<SessionRef>,
    secrets: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            draw: Draw(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            oracle: Oracle::default(),
            users: (0..3)
                .map(|n| format!("{n}-{}", uuid::Uuid::new_v4()))
                .collect(),
            sessions: Vec::new(),
            secrets: 0,
        }
    }

    fn move_clock(&mut self, clock: &ManualClock) {
        let now = Timestamp::of(clock).as_millis();
        self.oracle.now = now;
        let deadlines = self.oracle.deadlines();
        let to = match self.draw.below(6) {
            0 if !deadlines.is_empty() => {
                // Exactly before, at, and after a boundary.
                (*self.draw.pick(&deadlines) + self.draw.below(3))
                    .saturating_sub(1)
                    .max(now)
            }
            1 => now + self.draw.below(3_000),
            2 | 3 => now + self.draw.below(3),
            _ => now,
        };
        clock.set(Timestamp::from_millis(to));
        self.oracle.now = to;
    }

    fn sighting(&mut self) -> Sighting {
        let agents = ["curl/8", "Mozilla/5.0 (X11; Linux) Firefox/1"];
        let agent = (!self.draw.chance(3)).then(|| *self.draw.pick(&agents));
        let agent = agent.map(http::HeaderValue::from_static);
        let ip = (!self.draw.chance(3)).then(|| address(self.draw.below(4) as u8));
        Sighting::new(agent, ip)
    }

    fn session(&mut self) -> SessionRef {
        if self.sessions.is_empty() || self.draw.chance(12) {
            let at = SessionRef {
                id: new_id(3),
                verifier: verifier(u64::MAX),
            };
            return at;
        }
        let recent = self.sessions.len().saturating_sub(6);
        let mut at = *self.draw.pick(&self.sessions[recent..]);
        if self.draw.chance(15) {
            at.verifier = verifier(u64::MAX);
        }
        at
    }

    fn user(&mut self) -> UserId {
        let user = self.draw.pick(&self.users).clone();
        UserId::try_new(user).expect("a user id")
    }

    fn whose(&mut self) -> Whose {
        if self.draw.chance(2) {
            Whose::User(self.user())
        } else {
            Whose::Session(self.session())
        }
    }

    fn roles(&mut self) -> Roles {
        let all = ["admin", "expert", "guest"];
        let many = self.draw.below(3) as usize;
        Roles::try_new(&all[..many]).expect("roles")
    }

    fn patch(&mut self) -> Patch {
        let mut operations = Vec::new();
        for name in ["a", "b", "c"] {
            let operation = match self.draw.below(8) {
                0 => Operation::Set(json(&self.draw.below(1_000_000).to_string())),
                1 => Operation::Set(json("\"text\"")),
                2 => Operation::Remove,
                3 => Operation::Increment(self.draw.below(2_000) as i64 - 1_000),
                4 => Operation::SetIf(self.draw.below(4), json("5")),
                5 => Operation::RemoveIf(self.draw.below(4)),
                _ => continue,
            };
            operations.push((name, operation));
        }
        Patch {
            clear: self.draw.chance(8),
            limit: if self.draw.chance(5) { 12 } else { 1_000 },
            sighting: self.sighting(),
            ..patch(&operations)
        }
    }

    fn order(&mut self) -> Establish {
        self.secrets += 1;
        let unconditional = |mut patch: Patch| {
            patch.operations.retain(|(_, operation)| {
                !matches!(operation, Operation::SetIf(..) | Operation::RemoveIf(_))
            });
            patch
        };
        let whole = Establish {
            lifetimes: Lifetimes::new(Duration::from_secs(10), Duration::from_secs(40)),
            extended: Duration::from_secs(4),
            limit: *self.draw.pick(&[
                SessionLimit::reject(2),
                SessionLimit::evict_oldest(2),
                SessionLimit::evict_longest_idle(3),
            ]),
            patch: unconditional(self.patch()),
            age: Duration::from_millis(self.draw.below(4)),
            ..order(new_id(self.draw.below(1_024) as u16), self.secrets)
        };
        match self.draw.below(4) {
            0 => Establish {
                patch: self.patch_that_sets(),
                ..whole
            },
            1 => Establish {
                current: Some(self.session()),
                otherwise: Otherwise::Refuse,
                ..whole
            },
            _ => {
                let user = self.user();
                let login = LoginIdentity {
                    roles: self.roles(),
                    stamp: self.draw.chance(2).then(|| AuthStamp::of("hash")),
                    remembered: self.draw.chance(4),
                    revoke_others: self.draw.chance(6),
                    ..identity(user.as_str())
                };
                let fresh = self.fresh(home_of_user(user.as_str()));
                let current = (!self.draw.chance(4)).then(|| self.session());
                Establish {
                    current,
                    fresh,
                    identity: Identity::Set(Box::new(login)),
                    ..whole
                }
            }
        }
    }

    fn patch_that_sets(&mut self) -> Patch {
        patch(&[("a", Operation::Set(json(&self.draw.below(100).to_string())))])
    }

    /// Now and then an id that is taken.
    fn fresh(&mut self, home: u16) -> SessionId {
        let taken: Vec<SessionId> = self
            .sessions
            .iter()
            .map(|at| at.id)
            .filter(|id| id.home() == home)
            .collect();
        if !taken.is_empty() && self.draw.chance(10) {
            *self.draw.pick(&taken)
        } else {
            new_id(home)
        }
    }

    fn target(&mut self) -> Target {
        match self.draw.below(20) {
            0 => Target::Everyone,
            1..=6 => Target::Own(
                self.session(),
                *self.draw.pick(&[EndCause::Logout, EndCause::AuthStamp]),
            ),
            7..=13 => Target::One(self.whose(), self.session().id),
            14..=16 => Target::Others(self.session()),
            _ => Target::All(self.whose()),
        }
    }

    /// Draws a call of one of the six methods.
    fn call(&mut self) -> Call {
        match self.draw.below(10) {
            0..=2 => {
                let at = self.session();
                let part = *self.draw.pick(&[Part::Core, Part::Whole]);
                let renew = (!self.draw.chance(3)).then(|| self.sighting());
                Call::Load(at, Read { part, renew })
            }
            3 | 4 => Call::Patch(self.session(), self.patch()),
            5 | 6 => Call::Establish(Box::new(self.order())),
            7 => Call::List(self.whose()),
            8 if self.draw.chance(2) => Call::AssignRoles(self.user(), self.roles()),
            _ => Call::Revoke(self.target()),
        }
    }

    fn learn(&mut self, call: &Call, answer: &Answer) {
        if let (Call::Establish(order), Answer::Establish(Established::Done(done))) = (call, answer)
        {
            self.sessions.push(SessionRef {
                id: done.record.id,
                verifier: order.verifier,
            });
        }
    }

    async fn take_step(&mut self, store: &dyn SessionStore, context: &str) {
        let call = self.call();
        let expected = call.expected(&mut self.oracle);
        let answer = call.ask(store).await;
        assert_eq!(answer, expected, "{call:?}, {context}");
        self.learn(&call, &answer);
    }
}

/// One call of a store.
#[derive(Clone, Debug)]
enum Call {
    Load(SessionRef, Read),
    Patch(SessionRef, Patch),
    Establish(Box<Establish>),
    List(Whose),
    AssignRoles(UserId, Roles),
    Revoke(Target),
}

/// What it said.
#[derive(Debug, PartialEq)]
enum Answer {
    Load(Loaded),
    Patch(Patched),
    Establish(Established),
    List(Listed),
    AssignRoles(u64),
    Revoke(Revoked),
}

impl Call {
    async fn ask(&self, store: &dyn SessionStore) -> Answer {
        let answer = "an answer";
        match self.clone() {
            Self::Load(at, read) => Answer::Load(store.load(at, read).await.expect(answer)),
            Self::Patch(at, patch) => Answer::Patch(store.patch(at, &patch).await.expect(answer)),
            Self::Establish(order) => {
                Answer::Establish(store.establish(*order).await.expect(answer))
            }
            Self::List(whose) => Answer::List(store.list(whose).await.expect(answer)),
            Self::AssignRoles(user, roles) => {
                Answer::AssignRoles(store.assign_roles(user, roles).await.expect(answer))
            }
            Self::Revoke(target) => Answer::Revoke(store.revoke(target).await.expect(answer)),
        }
    }

    fn expected(&self, oracle: &mut Oracle) -> Answer {
        match self {
            Self::Load(at, read) => Answer::Load(oracle.load(*at, read)),
            Self::Patch(at, patch) => Answer::Patch(oracle.patch(*at, patch)),
            Self::Establish(order) => Answer::Establish(oracle.establish(order)),
            Self::List(whose) => Answer::List(oracle.list(whose)),
            Self::AssignRoles(user, roles) => Answer::AssignRoles(oracle.assign_roles(user, roles)),
            Self::Revoke(target) => Answer::Revoke(oracle.revoke(target)),
        }
    }
}

/// Calls of one task, in their order, with what each of them said.
type Told = Vec<(Call, Answer)>;

/// Lets three tasks make four calls each at once, and finds an order of all twelve in which the oracle says the same.
///
/// The end of everybody's sessions is not among them: whoever began before it may be a moment early, on every engine.
///
/// # Panics
/// There is no such order.
pub async fn parallel_history(store: &Arc<dyn SessionStore>, clock: &ManualClock, seed: u64) {
    // Past every cut-off before, and no farther: thousands of histories stay within the range of a clock.
    clock.advance(Duration::from_secs(10));
    let mut world = World::new(seed);
    for step in 0..12 {
        world.move_clock(clock);
        let context = format!("seed {seed}, step {step}");
        world.take_step(&**store, &context).await;
    }
    world.oracle.now = Timestamp::of(clock).as_millis();
    let start = Arc::new(tokio::sync::Barrier::new(3));
    let mut tasks = Vec::new();
    for _ in 0..3 {
        let calls: Vec<Call> = std::iter::repeat_with(|| world.call())
            .filter(|call| !matches!(call, Call::Revoke(Target::Everyone)))
            .take(4)
            .collect();
        let (store, start) = (Arc::clone(store), Arc::clone(&start));
        tasks.push(tokio::spawn(async move {
            start.wait().await;
            let mut told = Told::new();
            for call in calls {
                let answer = call.ask(&*store).await;
                told.push((call, answer));
                tokio::task::yield_now().await;
            }
            told
        }));
    }
    let mut told = Vec::new();
    for task in tasks {
        told.push(task.await.expect("no panic"));
    }
    assert!(
        explains(&world.oracle, [0; 3], &told),
        "no order explains the history of seed {seed}: {told:#?}"
    );
}

/// Says whether some order of what is left gives these very answers.
fn explains(oracle: &Oracle, done: [usize; 3], told: &[Told]) -> bool {
    let mut is_over = true;
    for task in 0..told.len() {
        let Some((call, answer)) = told[task].get(done[task]) else {
            continue;
        };
        is_over = false;
        let mut next = oracle.clone();
        if call.expected(&mut next) == *answer {
            let mut done = done;
            done[task] += 1;
            if explains(&next, done, told) {
                return true;
            }
        }
    }
    is_over
}
