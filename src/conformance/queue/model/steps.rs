//! What workers do in a random history, and what the sorted list says of it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Job, Model, State, ms};
use crate::conformance::Dice;
use crate::core::{IntoKey, Key, StoreErrorKind, Timestamp};
use crate::data::queue::store::{Claim, JobId, JobState, Listing, Settle, Settled, Token};

#[allow(clippy::unwrap_used)]
impl Model {
    pub(super) async fn lease(&mut self, dice: &mut Dice, at: &str) {
        let now = self.now();
        self.tokens = self.tokens.wrapping_add(1);
        let lease = Duration::from_millis(1 + dice.below(1_500));
        let claim = Claim {
            token: Token([self.tokens; 16]),
            most: 1 + dice.below(4) as usize,
            lease,
            recipient: (dice.below(3) == 0).then(|| "a".into_key()),
        };
        let answer = self
            .store
            .lease(&self.name, claim.clone(), &self.rules)
            .await
            .unwrap();
        self.sweep(now);
        let mut ready: Vec<&Job> = self
            .jobs
            .iter()
            .filter(|job| job.state == State::Waiting && job.due <= now)
            .collect();
        ready.sort_by_key(|job| self.score(job));
        let batch: Vec<u64> = match &claim.recipient {
            Some(to) => ready
                .iter()
                .filter(|job| job.to == *to)
                .map(|job| job.id)
                .collect(),
            None => {
                let first = ready.first().map(|job| (job.to.clone(), job.rank));
                let alike = ready
                    .iter()
                    .filter(|job| first == Some((job.to.clone(), job.rank)));
                alike.map(|job| job.id).collect()
            }
        };
        let batch = &batch[..batch.len().min(claim.most)];
        let leased: Vec<u64> = answer.jobs.iter().map(|job| job.id.0).collect();
        assert_eq!(leased, batch, "{at}");
        for given in answer.jobs {
            let token = self.tokens;
            let job = self.find(given.id.0).unwrap();
            job.attempts += 1;
            job.collects = None;
            job.state = State::Leased {
                token,
                until: now + ms(lease),
            };
            assert_eq!(
                (given.attempt, given.items),
                (job.attempts, job.items.clone()),
                "{at}"
            );
            assert_eq!(
                (given.due.as_millis(), given.priority.rank()),
                (job.due, job.rank),
                "{at}"
            );
        }
    }

    pub(super) async fn settle(&mut self, dice: &mut Dice, at: &str) {
        let now = self.now();
        let leased: Vec<(u64, u8)> = self
            .jobs
            .iter()
            .filter_map(|job| match job.state {
                State::Leased { token, .. } => Some((job.id, token)),
                _ => None,
            })
            .collect();
        if leased.is_empty() {
            return;
        }
        let (id, own) = leased[dice.below(leased.len() as u64) as usize];
        let token = if dice.below(5) == 0 {
            own.wrapping_add(1)
        } else {
            own
        };
        let (most, expire) = (self.rules.attempts, ms(self.rules.expire_after));
        let job = self.find(id).unwrap();
        let State::Leased { until, .. } = job.state else {
            return;
        };
        let ours = token == own && now < until;
        let extra = Duration::from_millis(dice.below(900));
        let (key, number) = (Token([token; 16]), JobId(id));
        let lost = Settled::Lost;
        let (got, expected) = match dice.below(6) {
            0 | 1 => {
                if ours {
                    self.jobs.retain(|job| job.id != id);
                }
                let got = self.store.ack(&self.name, key, vec![number]).await.unwrap()[0];
                (got, if ours { Settled::Done } else { lost })
            }
            2 => {
                if ours {
                    job.state = State::Leased {
                        token,
                        until: now + ms(extra),
                    };
                }
                let got = self
                    .store
                    .extend(&self.name, key, vec![number], extra)
                    .await
                    .unwrap()[0];
                (got, if ours { Settled::Done } else { lost })
            }
            kind => {
                let how = match kind {
                    3 => Settle::After(extra, "after".to_owned()),
                    4 => Settle::At(Timestamp::from_millis(now) + extra, "at".to_owned()),
                    _ if dice.below(2) == 0 => Settle::Dead("dead".to_owned()),
                    _ => Settle::GiveBack,
                };
                let mut expected = Settled::Done;
                if !ours {
                    expected = lost;
                } else if how == Settle::GiveBack {
                    job.attempts -= 1;
                    job.state = State::Waiting;
                } else {
                    let error = ["after", "at", "dead"][(kind - 3) as usize];
                    job.error = Some(error.to_owned());
                    if job.attempts >= most || error == "dead" {
                        job.state = State::Dead { at: now };
                        expected = Settled::Died;
                    } else {
                        job.state = State::Waiting;
                        job.due = now + ms(extra);
                        job.expires = job.due + expire;
                    }
                }
                let jobs = vec![(number, how)];
                let got = self
                    .store
                    .nack(&self.name, key, jobs, &self.rules)
                    .await
                    .unwrap()[0];
                (got, expected)
            }
        };
        assert_eq!(got, expected, "{at}");
    }

    pub(super) async fn look(&mut self, at: &str) {
        let now = self.now();
        self.sweep(now);
        let counted = self
            .store
            .count(&self.name, None, &self.rules)
            .await
            .unwrap();
        let of = |is: &dyn Fn(&Job) -> bool| self.jobs.iter().filter(|job| is(job)).count() as u64;
        let waits = |job: &Job| job.state == State::Waiting;
        assert_eq!(
            counted.ready,
            of(&|job| waits(job) && job.due <= now),
            "{at}"
        );
        assert_eq!(
            counted.delayed,
            of(&|job| waits(job) && job.due > now),
            "{at}"
        );
        assert_eq!(
            counted.leased,
            of(&|job| matches!(job.state, State::Leased { .. })),
            "{at}"
        );
        assert_eq!(
            counted.dead,
            of(&|job| matches!(job.state, State::Dead { .. })),
            "{at}"
        );
        let listing = Listing::Of("a".into_key(), 100);
        let listed = self
            .store
            .list(&self.name, listing, &self.rules)
            .await
            .unwrap();
        let mut own: Vec<&Job> = self
            .jobs
            .iter()
            .filter(|job| job.to == "a".into_key() && !matches!(job.state, State::Dead { .. }))
            .collect();
        own.sort_by_key(|job| match job.state {
            State::Leased { until, .. } => (0, u64::from(job.rank), until, job.id),
            _ if job.due <= now => (1, u64::from(job.rank), job.due, job.id),
            _ => (2, u64::from(job.rank), job.due, job.id),
        });
        own.truncate(100);
        let shown: Vec<_> = listed
            .iter()
            .map(|job| (job.id.0, job.attempts, job.last_error.clone()))
            .collect();
        let expected: Vec<_> = own
            .iter()
            .map(|job| (job.id, job.attempts, job.error.clone()))
            .collect();
        assert_eq!(shown, expected, "{at}");
        let listed = self
            .store
            .list(&self.name, Listing::Dead(100), &self.rules)
            .await
            .unwrap();
        let mut dead: Vec<(u64, u64)> = self
            .jobs
            .iter()
            .filter_map(|job| match job.state {
                State::Dead { at } => Some((at, job.id)),
                _ => None,
            })
            .collect();
        dead.sort_unstable();
        let dead: Vec<u64> = dead.into_iter().rev().take(100).map(|(_, id)| id).collect();
        let shown: Vec<u64> = listed.iter().map(|job| job.id.0).collect();
        assert_eq!(shown, dead, "{at}");
        assert!(listed.iter().all(|job| job.state == JobState::Dead), "{at}");
    }

    pub(super) async fn cancel_or_revive(&mut self, dice: &mut Dice, at: &str) {
        let now = self.now();
        let ids: Vec<JobId> = (0..4)
            .map(|_| JobId(1 + dice.below(self.last.max(1))))
            .collect();
        let mut unique = ids.clone();
        let mut seen = BTreeSet::new();
        unique.retain(|id| seen.insert(*id));
        if dice.below(2) == 0 {
            let to = "a".into_key();
            let cancelled = self.store.cancel(&self.name, &to, ids).await.unwrap();
            let waits = |id: &JobId| {
                self.jobs
                    .iter()
                    .any(|job| job.id == id.0 && job.to == to && job.state == State::Waiting)
            };
            unique.retain(waits);
            assert_eq!(cancelled, unique, "{at}");
            self.jobs.retain(|job| !unique.contains(&JobId(job.id)));
            return;
        }
        let answer = self.store.revive(&self.name, ids, &self.rules).await;
        unique.retain(|id| {
            self.jobs
                .iter()
                .any(|job| job.id == id.0 && matches!(job.state, State::Dead { .. }))
        });
        let of = |to: Option<&Key>| {
            let live = self.jobs.iter().filter(|job| {
                !matches!(job.state, State::Dead { .. }) || unique.contains(&JobId(job.id))
            });
            live.filter(|job| to.is_none_or(|to| job.to == *to)).count() as u64
        };
        let crowded = unique.iter().any(|id| {
            let job = self.jobs.iter().find(|job| job.id == id.0).unwrap();
            of(Some(&job.to)) > self.rules.per_recipient
        });
        if !unique.is_empty() && (of(None) > self.rules.capacity || crowded) {
            assert_eq!(answer.unwrap_err().kind(), StoreErrorKind::Full, "{at}");
            return;
        }
        assert_eq!(answer.unwrap(), unique, "{at}");
        let expire = ms(self.rules.expire_after);
        for id in unique {
            let job = self.find(id.0).unwrap();
            job.state = State::Waiting;
            job.attempts = 0;
            (job.due, job.expires) = (now, now + expire);
        }
    }
}
