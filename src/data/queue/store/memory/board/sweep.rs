//! What every look at a queue tidies up first: ended leases, due and expired jobs, dead letters, ids; 100 each.

use super::super::super::{DEAD_KEPT, DEAD_KEPT_FOR, JobState, Rules, SWEPT_AT_ONCE, Swept};
use super::{Board, ID};
use crate::data::queue::policy::{IDS_LOOKED_AT_EVERY, is_expired, millis};

impl Board {
    pub(crate) fn sweep(&mut self, rules: &Rules, now: u64) -> Swept {
        let mut swept = Swept::default();
        self.reclaim(&mut swept, rules, now);
        for number in over(&self.delayed, now) {
            self.leave(number);
            self.settle_in(number, rules, now);
        }
        self.expire(&mut swept, now);
        swept.dropped += self.forget_dead(now);
        self.forget_ids(now);
        swept
    }

    fn reclaim(&mut self, swept: &mut Swept, rules: &Rules, now: u64) {
        for number in over(&self.leased, now) {
            let Some(job) = self.jobs.get(&number) else {
                continue;
            };
            let (attempts, expires) = (job.attempts, job.expires);
            swept.lost += 1;
            if attempts >= rules.attempts {
                self.bury(number, "the lease of the last attempt ended", now);
                swept.dead += 1;
            } else if is_expired(expires, now) {
                self.bury(number, "expired", now);
                swept.expired += 1;
            } else {
                self.leave(number);
                self.settle_in(number, rules, now);
            }
        }
    }

    fn expire(&mut self, swept: &mut Swept, now: u64) {
        for number in over(&self.expiry, now) {
            let Some(job) = self.jobs.get_mut(&number) else {
                continue;
            };
            if job.state == JobState::Leased {
                // Looked at again when its lease ends; `reclaim` and `nack` know by its due time that it is over.
                self.expiry.remove(&(job.expires, number));
                continue;
            }
            self.bury(number, "expired", now);
            swept.expired += 1;
        }
    }

    /// Makes a job a dead letter; without a `why` the error of its last try stays.
    pub(super) fn bury(&mut self, number: u64, why: &str, now: u64) {
        self.leave(number);
        self.close_digest(number);
        let expires = self.with(number, |job| {
            if !why.is_empty() {
                job.error = Some(why.to_owned());
            }
            job.expires
        });
        self.expiry.remove(&(expires.unwrap_or_default(), number));
        self.enter(number, JobState::Dead, now);
    }

    fn forget_dead(&mut self, now: u64) -> u64 {
        let before = now.saturating_sub(millis(DEAD_KEPT_FOR));
        let mut dropped = 0;
        // More than one look buries.
        while dropped < 4 * SWEPT_AT_ONCE as u64 {
            let Some((died, number)) = self.dead.first().copied() else {
                break;
            };
            if died > before && self.dead.len() as u64 <= DEAD_KEPT {
                break;
            }
            self.remove(number);
            dropped += 1;
        }
        dropped
    }

    fn forget_ids(&mut self, now: u64) {
        for _ in 0..SWEPT_AT_ONCE {
            let Some((until, id)) = self.remember.first().copied() else {
                break;
            };
            if until > now {
                break;
            }
            self.remember.pop_first();
            let Some(known) = self.once.get_mut(&id) else {
                continue;
            };
            match self.jobs.get(&known.job) {
                // The id is known for as long as its job lives, and a dead letter may live again.
                Some(job) => {
                    known.look = look_again(job.state, job.expires, now);
                    self.remember.insert((known.look, id));
                }
                None => {
                    self.once.remove(&id);
                    self.bytes -= ID;
                }
            }
        }
    }
}

/// When to look again at an id whose job is there.
fn look_again(state: JobState, expires: u64, now: u64) -> u64 {
    let later = now + millis(IDS_LOOKED_AT_EVERY);
    match state {
        // Dropped before its time where there are too many.
        JobState::Dead => later,
        _ => later.max(expires),
    }
}

/// The first numbers of an order whose time has come.
fn over(order: &std::collections::BTreeSet<(u64, u64)>, now: u64) -> Vec<u64> {
    let due = order.iter().take_while(|(time, _)| *time <= now);
    due.take(SWEPT_AT_ONCE).map(|(_, number)| *number).collect()
}
