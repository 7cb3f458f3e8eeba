//! Refusals that are the same to the byte are made once: who goes on asking hears the same numbers until a second is over.

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;

use super::rejection::RateLimitRejection;
use crate::core::Stripes;

/// How many answers one stripe keeps; each is for the numbers of one attacker or of several that began together.
const KEPT: usize = 4;

/// The answers that a layer gave last and gave twice, for each stripe of threads.
#[derive(Default)]
pub(super) struct Repeated {
    stripes: Stripes<Mutex<[Slot; KEPT]>>,
}

/// One answer; without one, the numbers that were asked for last.
#[derive(Default)]
struct Slot {
    numbers: Numbers,
    answer: Option<Box<Answer>>,
}

/// The fields and the document of a refusal.
#[derive(Clone)]
pub(super) struct Answer {
    pub(super) fields: HeaderMap,
    pub(super) body: Bytes,
}

/// All that an answer of one policy at its declared quota is made of, beside what the layer was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    rule: usize,
    remaining: u32,
    more_in_secs: u64,
    retry_after: u64,
    reset_ms: u64,
}

impl Numbers {
    /// Reads them off a refusal; `None` where an answer says more than they do.
    pub(super) fn of(rejection: &RateLimitRejection) -> Option<Self> {
        let (only, retry_after, reset) = rejection.of_one_as_declared()?;
        Some(Self {
            rule: only.rule,
            remaining: only.state.remaining,
            more_in_secs: only.more_in_secs(),
            retry_after,
            reset_ms: reset.as_millis(),
        })
    }

    /// Numbers that follow each other go to different places.
    fn place(&self) -> usize {
        (self.reset_ms as usize ^ self.rule) % KEPT
    }
}

impl Repeated {
    /// Returns the answer with these numbers. `make` makes it where it is not kept; it is kept when it is asked for again,
    /// so that who asks once costs no more than a look.
    pub(super) fn answer(&self, numbers: Numbers, make: impl FnOnce() -> Answer) -> Answer {
        // Another thread of this stripe is at it: nobody waits for an answer that takes no longer to make.
        let Some(mut slots) = self.stripes.own().try_lock() else {
            return make();
        };
        let slot = &mut slots[numbers.place()];
        if slot.numbers != numbers {
            *slot = Slot {
                numbers,
                answer: None,
            };
            drop(slots);
            return make();
        }
        (**slot.answer.get_or_insert_with(|| Box::new(make()))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(reset_ms: u64) -> Numbers {
        Numbers {
            retry_after: 1,
            reset_ms,
            ..Numbers::default()
        }
    }

    #[test]
    fn what_is_asked_for_again_is_made_twice_and_then_given() {
        let (repeated, mut made) = (Repeated::default(), 0);
        let mut ask = |reset_ms: u64| {
            let before = made;
            let answer = repeated.answer(numbers(reset_ms), || {
                made += 1;
                Answer {
                    fields: HeaderMap::new(),
                    body: Bytes::from(reset_ms.to_string()),
                }
            });
            assert_eq!(answer.body, reset_ms.to_string());
            made > before
        };
        assert_eq!([1, 1, 1, 1].map(&mut ask), [true, true, false, false]);
        // Others have places of their own, until one is displaced.
        let next = KEPT as u64 + 1;
        assert_eq!(
            [2, 2, 1, next, 1].map(&mut ask),
            [true, true, false, true, true]
        );
    }
}
