//! How jobs go out: the first ready one, and more of its recipient.

use super::super::super::{
    Attempt, Claim, JobId, JobState, LEASE_BYTES, Leased, Priority, Rules, SWEPT_AT_ONCE, Swept,
    Token,
};
use super::{Board, state_digit};
use crate::core::{Key, Timestamp};
use crate::data::queue::policy::{is_expired, millis};

impl Board {
    pub(crate) fn lease(&mut self, claim: &Claim, rules: &Rules, now: u64) -> Leased {
        let mut swept = self.sweep(rules, now);
        let (recipient, numbers) = match &claim.recipient {
            Some(recipient) => {
                self.promote(recipient, rules, now);
                (
                    Some(recipient.clone()),
                    self.first_of(recipient, claim.most),
                )
            }
            None => self.first(claim.most, &mut swept, now),
        };
        let until = now + millis(claim.lease);
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        for number in numbers {
            let Some(job) = self.jobs.get(&number) else {
                continue;
            };
            if is_expired(job.expires, now) {
                self.bury(number, "expired", now);
                swept.expired += 1;
                continue;
            }
            bytes += job.size;
            if bytes > LEASE_BYTES && !jobs.is_empty() {
                break;
            }
            jobs.extend(self.hand_out(number, claim.token, until));
        }
        let next = [self.delayed.first(), self.leased.first()];
        let next = next.into_iter().flatten().map(|(time, _)| *time).min();
        Leased {
            recipient: recipient.filter(|_| !jobs.is_empty()),
            jobs,
            until: Timestamp::from_millis(until),
            now: Timestamp::from_millis(now),
            next_due: if self.ready.is_empty() {
                next
            } else {
                Some(now)
            }
            .map(Timestamp::from_millis),
            swept,
            depth: Some(self.sizes()),
        }
    }

    /// The first ready job of all, and more of its recipient and priority.
    fn first(&mut self, most: usize, swept: &mut Swept, now: u64) -> (Option<Key>, Vec<u64>) {
        for _ in 0..=SWEPT_AT_ONCE {
            let Some((_, number)) = self.ready.first().copied() else {
                break;
            };
            let Some(job) = self.jobs.get(&number) else {
                self.ready.pop_first();
                continue;
            };
            if is_expired(job.expires, now) {
                self.bury(number, "expired", now);
                swept.expired += 1;
                continue;
            }
            let (recipient, rank) = (job.recipient.clone(), job.rank);
            let numbers = self
                .ready_of(&recipient, rank)
                .take(most)
                .map(|(_, number)| number);
            let numbers = numbers.collect();
            return (Some(recipient), numbers);
        }
        (None, Vec::new())
    }

    /// What is due of one recipient: many of others may come before it.
    fn promote(&mut self, recipient: &Key, rules: &Rules, now: u64) {
        let due: Vec<_> = (0..=2)
            .flat_map(|rank| {
                let seats = self.seats_of(recipient, JobState::Delayed, rank);
                seats.take_while(|(due, _)| *due <= now)
            })
            .map(|(_, number)| number)
            .take(SWEPT_AT_ONCE)
            .collect();
        for number in due {
            self.leave(number);
            self.settle_in(number, rules, now);
        }
    }

    /// The first ready jobs of one recipient, of any priority.
    fn first_of(&self, recipient: &Key, most: usize) -> Vec<u64> {
        let mut all: Vec<_> = (0..=2)
            .flat_map(|rank| self.ready_of(recipient, rank).take(most))
            .collect();
        all.sort_unstable();
        all.truncate(most);
        all.into_iter().map(|(_, number)| number).collect()
    }

    fn ready_of(&self, recipient: &Key, rank: u8) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.seats_of(recipient, JobState::Ready, rank)
    }

    fn seats_of(
        &self,
        recipient: &Key,
        state: JobState,
        rank: u8,
    ) -> impl Iterator<Item = (u64, u64)> + '_ {
        let state = state_digit(state);
        let seats = self.who.get(recipient).into_iter();
        seats
            .flat_map(move |seats| seats.range((state, rank, 0, 0)..(state, rank + 1, 0, 0)))
            .map(|(_, _, score, number)| (*score, *number))
    }

    fn hand_out(&mut self, number: u64, token: Token, until: u64) -> Option<Attempt> {
        self.leave(number);
        self.close_digest(number);
        let attempt = self.with(number, |job| {
            job.attempts += 1;
            job.token = token;
            Attempt {
                id: JobId(number),
                priority: Priority::of_rank(job.rank),
                attempt: job.attempts,
                due: Timestamp::from_millis(job.due),
                items: job.items.clone(),
            }
        });
        self.enter(number, JobState::Leased, until);
        attempt
    }
}
