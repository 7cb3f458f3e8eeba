//! What a queue shows of itself.

use super::super::super::{Depth, JobId, JobState, Listed, Listing, Priority, Rules};
use super::{Board, state_digit};
use crate::core::{Key, Timestamp};
use crate::data::queue::policy::score;

impl Board {
    pub(crate) fn list(&self, listing: &Listing) -> Vec<Listed> {
        match listing {
            Listing::Of(recipient, most) => {
                let seats = self.who.get(recipient).into_iter().flatten();
                let numbers = seats.take(*most).map(|(.., number)| *number);
                numbers.filter_map(|number| self.show(number)).collect()
            }
            Listing::Ids(ids) => ids.iter().filter_map(|id| self.show(id.0)).collect(),
            Listing::Dead(most) => {
                let numbers = self.dead.iter().rev().take(*most);
                let numbers = numbers.map(|(_, number)| *number);
                numbers.filter_map(|number| self.show(number)).collect()
            }
        }
    }

    fn show(&self, number: u64) -> Option<Listed> {
        let job = self.jobs.get(&number)?;
        Some(Listed {
            id: JobId(number),
            recipient: job.recipient.clone(),
            state: job.state,
            priority: Priority::of_rank(job.rank),
            attempts: job.attempts,
            due: Timestamp::from_millis(job.due),
            items: job.items.clone(),
            last_error: job.error.clone(),
        })
    }

    pub(crate) fn count(&self, recipient: Option<&Key>, rules: &Rules) -> Depth {
        let Some(recipient) = recipient else {
            // Without aging each priority has a band of its own; with aging the first of all has waited longest, or nearly.
            let starts = if rules.aging.is_zero() {
                &[0, 1, 2][..]
            } else {
                &[0]
            };
            let first = |rank: &u8| self.ready.range((score(*rank, 0, 0), 0)..).next();
            let oldest = starts.iter().filter_map(first);
            let oldest = oldest.filter_map(|(_, number)| Some(self.jobs.get(number)?.due));
            return Depth {
                oldest: oldest.min().map(Timestamp::from_millis),
                ..self.sizes()
            };
        };
        let of = |state| {
            let seats = self.who.get(recipient).into_iter().flatten();
            let seats = seats.filter(|(digit, ..)| *digit == state_digit(state));
            seats.count() as u64
        };
        Depth {
            ready: of(JobState::Ready),
            delayed: of(JobState::Delayed),
            leased: of(JobState::Leased),
            dead: 0,
            oldest: None,
        }
    }
}
