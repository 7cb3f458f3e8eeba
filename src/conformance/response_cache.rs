//! What every [`ResponseStore`] promises, held against a real one.

mod entries;
mod leases;
mod stamps;
mod variants;

use std::sync::Arc;
use std::time::Duration;

use crate::core::ManualClock;
use crate::response_cache::store::{
    EntryKey, Found, FoundEntry, Hash128, Lease, Lookup, ResponseStore, Stored, Ticket, Want,
};
use crate::response_cache::{Change, ChangeKind, Entry, EntryId, Names, Stamp, Target, sample};

const SECOND: u64 = 1_000_000;
const LEASE: Duration = Duration::from_secs(5);

/// Runs the whole suite on `store`, which follows `clock` and may hold anything else.
///
/// # Panics
/// If the store breaks a promise.
pub async fn response_cache(store: Arc<dyn ResponseStore>, clock: &ManualClock) {
    let suite = Suite { store, clock };
    suite.gives_one_of_many_contenders_the_lease().await;
    suite.frees_a_lease_at_exactly_its_end().await;
    suite.releases_a_lease_by_its_token_only().await;
    suite.keeps_an_entry_until_exactly_its_end().await;
    suite.sends_no_body_to_who_has_it().await;
    suite.gives_the_lease_of_what_is_due().await;
    suite.keeps_the_later_begun_of_two().await;
    suite.stores_without_a_lease().await;
    suite.hides_what_began_too_early().await;
    suite.looks_nothing_up_under_other_names().await;
    suite.drops_the_oldest_variant().await;
    suite.remembers_a_mark_until_it_ends().await;
    suite.marks_one_variant_and_not_the_others().await;
    suite.freshens_a_head_and_leaves_the_body().await;
    suite.raises_stamps_that_only_grow().await;
    suite.takes_every_call_twice().await;
    suite.raises_the_floor_when_full().await;
}

struct Suite<'a> {
    store: Arc<dyn ResponseStore>,
    clock: &'a ManualClock,
}

impl Suite<'_> {
    async fn look(&self, key: EntryKey, want: Want) -> Found {
        let lookup = Lookup {
            key,
            names: Names::default(),
            not_before: Stamp(0),
            have: None,
            want,
        };
        self.ask(lookup).await
    }

    async fn ask(&self, lookup: Lookup) -> Found {
        answer(self.store.lookup(lookup).await)
    }

    async fn lead(&self, key: EntryKey) -> Ticket {
        let found = self.look(key, Want::EntryOrLease(LEASE)).await;
        match found.lease {
            Some(Lease::Granted(ticket)) => ticket,
            other => broken("the lease of a missing entry is granted", &other),
        }
    }

    /// Takes the lease though something fresh is there.
    async fn lead_anyway(&self, key: EntryKey) -> Ticket {
        match self.look(key, Want::Lease(LEASE)).await.lease {
            Some(Lease::Granted(ticket)) => ticket,
            other => broken("a lease is given whatever is there", &other),
        }
    }

    /// Puts an entry that lives and stays fresh for so many seconds.
    async fn put(&self, key: EntryKey, seconds: u64) -> Arc<Entry> {
        let ticket = self.lead(key).await;
        let entry = Arc::new(sample(
            &Names::default(),
            ticket,
            seconds * SECOND,
            seconds * SECOND,
            "body",
        ));
        let stored = answer(self.store.store(key, ticket, Arc::clone(&entry)).await);
        assert_eq!(stored, Stored::Yes);
        entry
    }

    async fn found_id(&self, key: EntryKey) -> Option<EntryId> {
        match self.look(key, Want::Entry).await.entry {
            FoundEntry::Entry(entry) => Some(entry.id()),
            _ => None,
        }
    }

    async fn highest(&self) -> Stamp {
        self.look(fresh_key(), Want::Entry).await.highest
    }

    async fn invalidate(&self, tags: &[&str]) -> Stamp {
        let changes: Vec<Change> = tags.iter().map(|tag| gone(tag)).collect();
        answer(self.store.invalidate(&changes).await)
    }
}

/// A promise that the store has broken.
fn broken(promise: &str, instead: &dyn std::fmt::Debug) -> ! {
    unreachable!("{promise}, but: {instead:?}")
}

fn answer<T>(answer: Result<T, crate::core::StoreError>) -> T {
    match answer {
        Ok(answer) => answer,
        Err(error) => broken("the store answers", &error),
    }
}

fn gone(tag: &str) -> Change {
    Change {
        target: Target::tag(tag),
        kind: ChangeKind::Gone,
    }
}

fn fresh_key() -> EntryKey {
    EntryKey {
        primary: hash(),
        selector: Hash128::default(),
    }
}

fn hash() -> Hash128 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&EntryId::draw().0.to_be_bytes());
    bytes[8..].copy_from_slice(&EntryId::draw().0.to_be_bytes());
    Hash128(bytes)
}
