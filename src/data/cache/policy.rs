//! Ages of records, on values and `now`.

use crate::core::ttl::{Lifetime, Ttl};

/// Milliseconds from the moment a record is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ages {
    /// Until a refresh is due.
    pub(super) refresh: u64,
    /// Until it is stale.
    pub(super) fresh: u64,
    /// Until it is gone.
    pub(super) life: u64,
}

/// Draws the ages of one record; `random` is any number.
pub(super) fn ages(life: Lifetime, own: Option<Ttl>, random: u64) -> Ages {
    let life = own.map_or(life, |ttl| {
        let plain = Lifetime::new(ttl);
        plain.stale_for_millis(life.stale_millis())
    });
    let (longest, shortest) = (life.ttl().as_millis(), life.shortest_millis());
    let fresh = longest - random % (longest - shortest + 1);
    Ages {
        // Off: due when it is stale.
        refresh: life.refresh_millis().min(fresh),
        fresh,
        life: fresh + life.stale_millis(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::ttl;

    #[test]
    fn jitter_only_shortens_and_never_below_the_refresh() {
        for random in [0, 1, 77, u64::MAX, 180_000, 180_001] {
            let ages = ages(ttl::ANALYTICS, None, random);
            assert!((1_620_000..=1_800_000).contains(&ages.fresh));
            assert_eq!((ages.refresh, ages.life), (1_200_000, ages.fresh));
        }
        let plain = ages(Lifetime::new(Ttl::secs(10)), Some(Ttl::secs(5)), 3);
        assert_eq!(
            (plain.refresh, plain.fresh, plain.life),
            (5_000, 5_000, 5_000)
        );
    }
}
