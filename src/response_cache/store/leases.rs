//! The leases of a memory store: who fetches what, in a table of their own that responses never share room with.

use hashbrown::HashTable;
use parking_lot::Mutex;

use crate::backend::memory::{Part, PartSetup};

use super::{Hash128, Ticket};

const SHARDS: usize = 16;
/// The most leases at one time in one shard: without room everybody leads, more calls than one but an answer for each.
const MOST_PER_SHARD: usize = 4_096;

/// The right to fetch for one variant, held for a while.
struct Held {
    primary: Hash128,
    selector: Hash128,
    token: u128,
    until: u64,
}

/// All leases. A shard is always locked after the row that the lease is for.
#[derive(Default)]
pub(super) struct Leases([Shard; SHARDS]);

/// On cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Shard(Mutex<HashTable<Held>>);

impl Part for Leases {
    fn build(_: &PartSetup) -> Self {
        Self::default()
    }
}

/// A primary hash is seeded already; variants of one key lie beside each other.
const fn hash(primary: Hash128) -> u64 {
    u128::from_le_bytes(primary.0) as u64
}

impl Leases {
    /// Takes the lease for the ticket until then; `None`, or the end of the one that somebody else holds.
    pub(super) fn take(&self, primary: Hash128, ticket: Ticket, until: u64) -> Option<u64> {
        let hash = hash(primary);
        let mut shard = self.shard(hash).lock();
        let own = |held: &Held| held.primary == primary && held.selector == ticket.selector;
        if let Some(held) = shard.find_mut(hash, own) {
            if held.until > ticket.at {
                return Some(held.until);
            }
            (held.token, held.until) = (ticket.token, until);
            return None;
        }
        if shard.len() >= MOST_PER_SHARD {
            shard.retain(|held| held.until > ticket.at);
        }
        if shard.len() < MOST_PER_SHARD {
            let held = Held {
                primary,
                selector: ticket.selector,
                token: ticket.token,
                until,
            };
            shard.insert_unique(hash, held, |held| self::hash(held.primary));
        }
        None
    }

    /// Drops the ticket's lease, if it still holds one.
    pub(super) fn drop(&self, primary: Hash128, ticket: Ticket) {
        if ticket.token == 0 {
            return;
        }
        let hash = hash(primary);
        let own = |held: &Held| {
            held.token == ticket.token
                && held.primary == primary
                && held.selector == ticket.selector
        };
        if let Ok(held) = self.shard(hash).lock().find_entry(hash, own) {
            held.remove();
        }
    }

    fn shard(&self, hash: u64) -> &Mutex<HashTable<Held>> {
        // Of the bits that the table looks at least.
        &self.0[(hash >> 32) as usize % SHARDS].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(token: u128, at: u64) -> Ticket {
        Ticket {
            token,
            at,
            ..Ticket::default()
        }
    }

    #[test]
    fn a_full_shard_drops_what_has_ended_and_else_lets_everybody_lead() {
        let leases = Leases::default();
        let key = |n: u64| Hash128(u128::from(n).to_le_bytes());
        for n in 0..MOST_PER_SHARD as u64 {
            assert_eq!(leases.take(key(n), ticket(1, 0), 10 + n), None);
        }
        let late = key(1 << 20);
        for token in [2, 3] {
            assert_eq!(
                leases.take(late, ticket(token, 9), 100),
                None,
                "no room: both lead"
            );
        }
        assert_eq!(
            leases.take(late, ticket(4, 10), 100),
            None,
            "the first has ended"
        );
        assert_eq!(leases.take(late, ticket(5, 99), 200), Some(100));
        leases.drop(late, ticket(5, 99));
        assert_eq!(
            leases.take(late, ticket(5, 99), 200),
            Some(100),
            "by its token only"
        );
        leases.drop(late, ticket(4, 99));
        assert_eq!(leases.take(late, ticket(5, 99), 200), None);
        assert_eq!(
            leases.take(late, ticket(6, 200), 300),
            None,
            "free at exactly its end"
        );
    }
}
