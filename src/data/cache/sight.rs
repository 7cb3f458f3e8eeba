//! What this process knows of invalidations: a number that rises, and per name the number at which it was last hit.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

/// Names remembered; beyond, everything seen so far counts as hit.
const MOST: usize = 10_000;

/// Says that a name was not hit lately.
pub(super) type IsOld<'a> = &'a dyn Fn(&str) -> bool;

/// Whoever reads notes [`Sight::now`] before; what was hit since then is not to be believed.
#[derive(Debug, Default)]
pub(super) struct Sight {
    last: AtomicU64,
    hits: RwLock<Hits>,
}

#[derive(Debug, Default)]
struct Hits {
    /// Everything noted at this number or before is hit.
    floor: u64,
    names: HashMap<String, u64>,
}

impl Sight {
    pub(super) fn now(&self) -> u64 {
        self.last.load(Ordering::SeqCst)
    }

    /// Hits `names`; the empty one is all.
    pub(super) fn hit<'a>(&self, names: impl IntoIterator<Item = &'a str>) {
        let mut hits = self.hits.write();
        let number = self.last.load(Ordering::SeqCst);
        for name in names {
            if name.is_empty() || hits.names.len() >= MOST {
                hits.names.clear();
                hits.floor = number + 1;
            } else {
                hits.names.insert(name.to_owned(), number + 1);
            }
        }
        // Under the lock: a number is never seen before what it stands for.
        self.last.store(number + 1, Ordering::SeqCst);
    }

    /// Says whether nothing was hit since `noted` of the names that `all` goes through; nothing is asked of it otherwise.
    pub(super) fn is_good(&self, noted: u64, all: impl FnOnce(IsOld<'_>) -> bool) -> bool {
        if self.now() == noted {
            return true;
        }
        let hits = self.hits.read();
        let is_old = |name: &str| hits.names.get(name).is_none_or(|hit| *hit <= noted);
        (hits.floor <= noted || hits.floor == 0) && all(&is_old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_hit_since_is_bad() {
        let sight = Sight::default();
        let names = |is_old: IsOld<'_>| ["ka", "tx"].into_iter().all(is_old);
        let noted = sight.now();
        assert!(sight.is_good(noted, names));
        sight.hit(["kb"]);
        assert!(sight.is_good(noted, names));
        sight.hit(["tx"]);
        assert!(!sight.is_good(noted, names));
        let noted = sight.now();
        assert!(sight.is_good(noted, names));
        sight.hit([""]);
        assert!(!sight.is_good(noted, names));
        assert!(sight.is_good(sight.now(), names));
    }

    #[test]
    fn it_forgets_safely() {
        let sight = Sight::default();
        let noted = sight.now();
        for name in 0..MOST + 1 {
            sight.hit([format!("k{name}").as_str()]);
        }
        assert!(!sight.is_good(noted, |is_old| is_old("kother")));
    }
}
