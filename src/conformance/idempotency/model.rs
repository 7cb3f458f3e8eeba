//! Random histories of three owners, held against what follows from the list of facts.

use std::sync::Arc;
use std::time::Duration;

use super::{answer, body_of, claim, fresh_id, fresh_nonce, print};
use crate::core::{ManualClock, Timestamp};
use crate::idempotency::{
    Begin, IdempotencyStore, LeaseEnd, Nonce, Owned, RecordId, Resolution, Resolved,
};

const LEASE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(100);
const MS: Duration = Duration::from_millis(1);

/// Lets three owners begin, renew, complete, release, crash and pause in random order, while the clock
/// jumps; an operator resolves now and then. After every step the store must have said what follows from the facts.
///
/// # Panics
/// When the store says anything else.
pub async fn histories(
    store: Arc<dyn IdempotencyStore>,
    clock: &ManualClock,
    seed: u64,
    steps: usize,
) {
    let mut model = Model {
        store,
        clock: clock.clone(),
        id: fresh_id(),
        facts: Vec::new(),
        owners: [None; 3],
        dice: Dice(seed.wrapping_mul(2).wrapping_add(1)),
        highest: 0,
        seed,
    };
    for step in 0..steps {
        model.step(step).await;
    }
}

/// What happened to the record, in order; nothing is ever changed afterwards.
#[derive(Clone, Copy, Debug)]
enum Fact {
    Claimed {
        nonce: Nonce,
        payload: u8,
        end: LeaseEnd,
        fence: u64,
    },
    Leased {
        until: Timestamp,
    },
    Kept {
        until: Timestamp,
    },
    Meaning {
        end: LeaseEnd,
    },
    Answered {
        body: u8,
    },
    Sealed,
    Freed,
}

struct Model {
    store: Arc<dyn IdempotencyStore>,
    clock: ManualClock,
    id: RecordId,
    facts: Vec<Fact>,
    /// What each owner believes to own; a crash forgets it, nothing else does.
    owners: [Option<(Nonce, u8)>; 3],
    dice: Dice,
    highest: u64,
    seed: u64,
}

impl Model {
    fn now(&self) -> Timestamp {
        Timestamp::of(&self.clock)
    }

    fn last<T>(&self, pick: impl Fn(&Fact) -> Option<T>) -> Option<T> {
        self.facts.iter().rev().find_map(pick)
    }

    /// Facts since the record was last freed.
    fn exists(&self) -> bool {
        let born = self
            .facts
            .iter()
            .rposition(|fact| matches!(fact, Fact::Claimed { .. } | Fact::Answered { .. }));
        let freed = self
            .facts
            .iter()
            .rposition(|fact| matches!(fact, Fact::Freed));
        let kept = self.last(|fact| match fact {
            Fact::Kept { until } => Some(*until),
            _ => None,
        });
        born > freed && kept.is_some_and(|until| self.now() < until)
    }

    fn claimed(&self) -> Option<(Nonce, u8, u64)> {
        self.last(|fact| match fact {
            Fact::Claimed {
                nonce,
                payload,
                fence,
                ..
            } => Some((*nonce, *payload, *fence)),
            _ => None,
        })
    }

    /// The nonce of a claim without an answer, if the record is that.
    fn running(&self) -> Option<Nonce> {
        let answered = self
            .facts
            .iter()
            .rposition(|fact| matches!(fact, Fact::Answered { .. }));
        let claimed = self
            .facts
            .iter()
            .rposition(|fact| matches!(fact, Fact::Claimed { .. }));
        (self.exists() && claimed > answered)
            .then(|| self.claimed().map(|(nonce, ..)| nonce))
            .flatten()
    }

    fn leased(&self) -> bool {
        let until = self.last(|fact| match fact {
            Fact::Leased { until } => Some(*until),
            _ => None,
        });
        self.running().is_some() && until.is_some_and(|until| self.now() < until)
    }

    fn meaning(&self) -> LeaseEnd {
        self.last(|fact| match fact {
            Fact::Claimed { end, .. } | Fact::Meaning { end } => Some(*end),
            _ => None,
        })
        .unwrap_or(LeaseEnd::Reexecute)
    }

    /// Says whether `nonce` is the record's: it claimed last, and no operator has sealed it since.
    fn owns(&self, nonce: Nonce) -> bool {
        let sealed = self
            .facts
            .iter()
            .rposition(|fact| matches!(fact, Fact::Sealed));
        let claimed = self
            .facts
            .iter()
            .rposition(|fact| matches!(fact, Fact::Claimed { .. }));
        claimed > sealed && self.claimed().is_some_and(|(last, ..)| last == nonce)
    }

    async fn step(&mut self, step: usize) {
        let owner = self.dice.below(3);
        match self.dice.below(12) {
            0..=3 => self.begin(owner).await,
            4 => self.renew(owner).await,
            5 | 6 => self.complete(owner, (step % 250) as u8).await,
            7 => self.release(owner).await,
            8 => self.owners[owner] = None,
            9 => self.resolve((step % 250) as u8).await,
            _ => {
                let jumps = [MS, LEASE / 3, LEASE - MS, LEASE, TTL - MS, TTL];
                self.clock.advance(jumps[self.dice.below(jumps.len())]);
            }
        }
    }

    async fn begin(&mut self, owner: usize) {
        let payload = u8::from(self.dice.below(4) == 0);
        let again = self.owners[owner].filter(|_| self.dice.below(4) == 0);
        let (nonce, payload) = again.unwrap_or((fresh_nonce(), payload));
        let mut wish = claim(nonce, print(payload));
        wish.keep = TTL;
        if self.dice.below(4) == 0 {
            wish.at_lease_end = LeaseEnd::Indeterminate;
        }
        let begun = self
            .store
            .begin(&self.id, &wish)
            .await
            .expect("begin failed");
        let told = match begun {
            Begin::Run(fence) => {
                let repeats = self.running() == Some(nonce) && self.owns(nonce);
                if repeats {
                    assert_eq!(
                        self.claimed().map(|(.., fence)| fence),
                        Some(fence.0),
                        "{self}"
                    );
                } else {
                    assert!(fence.0 > self.highest, "a fence did not rise: {self}");
                    self.highest = fence.0;
                }
                let expected = self.expected(nonce, payload);
                assert_eq!(expected, "run", "{self}");
                if !repeats {
                    let (end, now) = (wish.at_lease_end, self.now());
                    self.facts.extend([
                        Fact::Claimed {
                            nonce,
                            payload,
                            end,
                            fence: fence.0,
                        },
                        Fact::Leased {
                            until: now + wish.lease,
                        },
                        Fact::Kept {
                            until: now + wish.keep,
                        },
                    ]);
                }
                self.owners[owner] = Some((nonce, payload));
                return;
            }
            Begin::Mismatch(_) => "mismatch",
            Begin::Running(_) => "running",
            Begin::Unknown(_) => "unknown",
            Begin::Done(_) => "done",
        };
        assert_eq!(told, self.expected(nonce, payload), "{self}");
    }

    fn expected(&self, nonce: Nonce, payload: u8) -> &'static str {
        if !self.exists() {
            return "run";
        }
        if self.claimed().is_some_and(|(_, first, _)| first != payload) {
            return "mismatch";
        }
        match self.running() {
            None => "done",
            Some(runs) if runs == nonce => "run",
            Some(_) if self.leased() => "running",
            Some(_) if self.meaning() == LeaseEnd::Indeterminate => "unknown",
            Some(_) => "run",
        }
    }

    async fn renew(&mut self, owner: usize) {
        let Some((nonce, _)) = self.owners[owner] else {
            return;
        };
        let lease = if self.dice.below(4) == 0 {
            Duration::ZERO
        } else {
            LEASE
        };
        let renewed = self
            .store
            .renew(&self.id, nonce, lease, LeaseEnd::Reexecute)
            .await;
        let owns = self.running() == Some(nonce);
        assert_eq!(renewed.expect("renew failed") == Owned::Yes, owns, "{self}");
        if owns {
            let until = self.now() + lease;
            self.facts.push(Fact::Leased { until });
            self.facts.push(Fact::Meaning {
                end: LeaseEnd::Reexecute,
            });
        }
    }

    async fn complete(&mut self, owner: usize, body: u8) {
        let Some((nonce, payload)) = self.owners[owner] else {
            return;
        };
        let sent = answer(print(payload), &[body]);
        let done = self
            .store
            .complete(&self.id, nonce, sent, TTL)
            .await
            .expect("complete failed");
        let (exists, owns) = (self.exists(), self.owns(nonce));
        assert_eq!(done == Owned::Yes, !exists || owns, "{self}");
        if done == Owned::Lost {
            return;
        }
        if !exists {
            // Lost and written back: a life of its own, under the same owner.
            let peeked = self
                .store
                .peek(&self.id)
                .await
                .expect("peek failed")
                .expect("a record");
            let fence = peeked.head.fence.0;
            self.highest = self.highest.max(fence);
            let end = LeaseEnd::Reexecute;
            self.facts.push(Fact::Claimed {
                nonce,
                payload,
                end,
                fence,
            });
        }
        let until = self.now() + TTL;
        self.facts
            .extend([Fact::Answered { body }, Fact::Kept { until }]);
        self.check_answer().await;
    }

    async fn release(&mut self, owner: usize) {
        let Some((nonce, _)) = self.owners[owner] else {
            return;
        };
        let released = self
            .store
            .release(&self.id, nonce)
            .await
            .expect("release failed");
        let expected = !self.exists() || self.running() == Some(nonce);
        assert_eq!(released == Owned::Yes, expected, "{self}");
        if expected {
            self.facts.push(Fact::Freed);
        }
    }

    async fn resolve(&mut self, body: u8) {
        let Some((_, payload, fence)) = self.claimed().filter(|_| self.exists()) else {
            return;
        };
        let release = self.dice.below(2) == 0;
        let to = if release {
            Resolution::Release
        } else {
            Resolution::Answer(answer(print(payload), &[body]), TTL)
        };
        let fence = crate::idempotency::Fence(fence);
        let resolved = self
            .store
            .resolve(&self.id, fence, to)
            .await
            .expect("resolve failed");
        if self.leased() {
            assert_eq!(resolved, Resolved::Live, "{self}");
            return;
        }
        assert_eq!(resolved, Resolved::Done, "{self}");
        if release {
            self.facts.push(Fact::Freed);
        } else {
            let until = self.now() + TTL;
            self.facts
                .extend([Fact::Answered { body }, Fact::Sealed, Fact::Kept { until }]);
            self.check_answer().await;
        }
    }

    /// No run after an answer, and the answer is the last one written.
    async fn check_answer(&self) {
        let kept = body_of(self.store.peek(&self.id).await.expect("peek failed"));
        let last = self.last(|fact| match fact {
            Fact::Answered { body } => Some(*body),
            _ => None,
        });
        assert_eq!(kept.first().copied(), last, "{self}");
    }
}

impl std::fmt::Display for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recent = &self.facts[self.facts.len().saturating_sub(8)..];
        write!(
            f,
            "seed {}, now {}, last facts {recent:?}",
            self.seed,
            self.now()
        )
    }
}

/// Numbers that only look random: a failure can be repeated by its seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % most as u64) as usize
    }
}
