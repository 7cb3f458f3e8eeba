//! What every [`ResponseStore`] promises, held against a real one.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::core::{Clock, ManualClock};
use crate::response_cache::store::{
    EntryKey, Found, FoundEntry, Hash128, Lease, Lookup, MOST_STAMPS, MOST_VARIANTS, ResponseStore,
    Stored, Ticket, Want,
};
use crate::response_cache::{
    Change, ChangeKind, Entry, EntryId, Names, Stamp, Target, freshened, sample,
};

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

    async fn gives_one_of_many_contenders_the_lease(&self) {
        let key = fresh_key();
        let mut contenders = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let store = Arc::clone(&self.store);
            contenders.spawn(async move {
                let want = Want::EntryOrLease(LEASE);
                let lookup = Lookup {
                    key,
                    names: Names::default(),
                    not_before: Stamp(0),
                    have: None,
                    want,
                };
                answer(store.lookup(lookup).await).lease
            });
        }
        let leases = contenders.join_all().await;
        let granted = leases
            .iter()
            .filter(|lease| matches!(lease, Some(Lease::Granted(_))))
            .count();
        let held = leases
            .iter()
            .filter(|lease| **lease == Some(Lease::Held(LEASE)))
            .count();
        assert_eq!((granted, held), (1, 49));
        assert_eq!(
            self.look(key, Want::Entry).await.lease,
            None,
            "nobody is asked to wait who did not ask"
        );
    }

    async fn frees_a_lease_at_exactly_its_end(&self) {
        let key = fresh_key();
        let first = self.lead(key).await;
        self.clock.advance(LEASE - Duration::from_millis(1));
        let held = self.look(key, Want::EntryOrLease(LEASE)).await.lease;
        assert_eq!(held, Some(Lease::Held(Duration::from_millis(1))));
        self.clock.advance(Duration::from_millis(1));
        let second = self.lead(key).await;
        assert_ne!(first.token, second.token);
    }

    async fn releases_a_lease_by_its_token_only(&self) {
        let key = fresh_key();
        let ticket = self.lead(key).await;
        let other = Ticket {
            token: ticket.token ^ 1,
            ..ticket
        };
        answer(self.store.release(key, other, None).await);
        let held = self.look(key, Want::EntryOrLease(LEASE)).await.lease;
        assert!(matches!(held, Some(Lease::Held(_))), "{held:?}");
        answer(self.store.release(key, ticket, None).await);
        self.lead(key).await;
    }

    async fn keeps_an_entry_until_exactly_its_end(&self) {
        let key = fresh_key();
        let entry = self.put(key, 10).await;
        let found = self.look(key, Want::EntryOrLease(LEASE)).await;
        assert_eq!((found.now, found.lease), (self.clock.now_micros(), None));
        match found.entry {
            FoundEntry::Entry(there) => {
                assert_eq!((there.id(), there.body()), (entry.id(), entry.body()))
            }
            other => broken("the entry is there", &other),
        }
        self.clock.advance(Duration::from_millis(9_999));
        assert_eq!(self.found_id(key).await, Some(entry.id()));
        self.clock.advance(Duration::from_millis(1));
        assert_eq!(self.found_id(key).await, None);
    }

    async fn sends_no_body_to_who_has_it(&self) {
        let key = fresh_key();
        let entry = self.put(key, 10).await;
        let lookup = |have| Lookup {
            key,
            names: Names::default(),
            not_before: Stamp(0),
            have: Some(have),
            want: Want::EntryOrLease(LEASE),
        };
        let same = self.ask(lookup(entry.id())).await;
        assert!(matches!(same.entry, FoundEntry::Same), "{same:?}");
        let other = self.ask(lookup(EntryId(entry.id().0 ^ 1))).await;
        assert!(matches!(other.entry, FoundEntry::Entry(_)), "{other:?}");
    }

    async fn gives_the_lease_of_what_is_due(&self) {
        let key = fresh_key();
        let ticket = self.lead(key).await;
        let entry = Arc::new(sample(
            &Names::default(),
            ticket,
            60 * SECOND,
            10 * SECOND,
            "body",
        ));
        answer(self.store.store(key, ticket, entry).await);
        self.clock.advance(Duration::from_millis(9_999));
        assert_eq!(self.look(key, Want::EntryOrLease(LEASE)).await.lease, None);
        let wanted = self.look(key, Want::Lease(LEASE)).await;
        assert!(
            matches!(wanted.lease, Some(Lease::Granted(_))),
            "a lease is given whatever is there"
        );
        let Some(Lease::Granted(ticket)) = wanted.lease else {
            return;
        };
        answer(self.store.release(key, ticket, None).await);
        self.clock.advance(Duration::from_millis(1));
        let stale = self.look(key, Want::EntryOrLease(LEASE)).await;
        assert!(
            matches!(
                (&stale.entry, stale.lease),
                (FoundEntry::Entry(_), Some(Lease::Granted(_)))
            ),
            "{stale:?}"
        );
        let behind = self.look(key, Want::EntryOrLease(LEASE)).await;
        assert!(
            matches!(
                (&behind.entry, behind.lease),
                (FoundEntry::Entry(_), Some(Lease::Held(_)))
            ),
            "{behind:?}"
        );
    }

    async fn keeps_the_later_begun_of_two(&self) {
        let key = fresh_key();
        let early = self.lead(key).await;
        self.clock.advance(LEASE);
        let late = self.lead(key).await;
        let make = |ticket| {
            Arc::new(sample(
                &Names::default(),
                ticket,
                60 * SECOND,
                60 * SECOND,
                "body",
            ))
        };
        let (old, new) = (make(early), make(late));
        assert_eq!(
            answer(self.store.store(key, late, Arc::clone(&new)).await),
            Stored::Yes
        );
        assert_eq!(
            answer(self.store.store(key, early, old).await),
            Stored::Superseded
        );
        assert_eq!(self.found_id(key).await, Some(new.id()));
    }

    async fn stores_without_a_lease(&self) {
        let key = fresh_key();
        let found = self.look(key, Want::Entry).await;
        let ticket = Ticket {
            token: 0,
            selector: key.selector,
            begun: found.highest,
            at: found.now,
        };
        let entry = Arc::new(sample(
            &Names::default(),
            ticket,
            60 * SECOND,
            60 * SECOND,
            "body",
        ));
        assert_eq!(
            answer(self.store.store(key, ticket, Arc::clone(&entry)).await),
            Stored::Yes
        );
        assert_eq!(self.found_id(key).await, Some(entry.id()));
    }

    async fn hides_what_began_too_early(&self) {
        let key = fresh_key();
        let entry = self.put(key, 60).await;
        let stamp = self.invalidate(&["elsewhere"]).await;
        assert_eq!(self.found_id(key).await, Some(entry.id()));
        let lookup = Lookup {
            key,
            names: Names::default(),
            not_before: stamp,
            have: Some(entry.id()),
            want: Want::EntryOrLease(LEASE),
        };
        let found = self.ask(lookup).await;
        assert!(
            matches!(
                (&found.entry, found.lease),
                (FoundEntry::None, Some(Lease::Granted(_)))
            ),
            "{found:?}"
        );
    }

    async fn looks_nothing_up_under_other_names(&self) {
        let (key, names) = (fresh_key(), Names::from_text("accept,origin"));
        let variant = EntryKey {
            selector: hash(),
            ..key
        };
        let ticket = self.lead(variant).await;
        let entry = Arc::new(sample(&names, ticket, 60 * SECOND, 60 * SECOND, "body"));
        answer(self.store.store(variant, ticket, Arc::clone(&entry)).await);
        let found = self.look(key, Want::EntryOrLease(LEASE)).await;
        assert_eq!((found.names, found.lease), (names.clone(), None));
        assert!(matches!(found.entry, FoundEntry::None));
        let right = Lookup {
            key: variant,
            names: names.clone(),
            not_before: Stamp(0),
            have: None,
            want: Want::Entry,
        };
        assert!(matches!(
            self.ask(right.clone()).await.entry,
            FoundEntry::Entry(_)
        ));
        // Under more names what was stored under fewer can never be chosen again.
        let more = Names::from_text("accept,cookie,origin");
        let ticket = Ticket { token: 0, ..ticket };
        let other = Arc::new(sample(&more, ticket, 60 * SECOND, 60 * SECOND, "body"));
        let key = EntryKey {
            selector: hash(),
            ..key
        };
        assert_eq!(
            answer(self.store.store(key, ticket, other).await),
            Stored::Yes
        );
        assert_eq!(self.ask(right).await.names, more);
        let fewer = Arc::new(sample(&names, ticket, 60 * SECOND, 60 * SECOND, "body"));
        assert_eq!(
            answer(self.store.store(variant, ticket, fewer).await),
            Stored::Superseded
        );
    }

    async fn drops_the_oldest_variant(&self) {
        let (primary, names) = (hash(), Names::from_text("accept"));
        let mut variants = Vec::new();
        for _ in 0..=MOST_VARIANTS {
            let key = EntryKey {
                primary,
                selector: hash(),
            };
            let at = self.clock.now_micros();
            let ticket = Ticket {
                token: 0,
                selector: key.selector,
                begun: self.highest().await,
                at,
            };
            let entry = Arc::new(sample(&names, ticket, 60 * SECOND, 60 * SECOND, "body"));
            assert_eq!(
                answer(self.store.store(key, ticket, entry).await),
                Stored::Yes
            );
            variants.push(key);
            self.clock.advance(Duration::from_millis(1));
        }
        let mut there = Vec::new();
        for key in &variants {
            let lookup = Lookup {
                key: *key,
                names: names.clone(),
                not_before: Stamp(0),
                have: None,
                want: Want::Entry,
            };
            there.push(matches!(self.ask(lookup).await.entry, FoundEntry::Entry(_)));
        }
        assert!(
            !there[0] && there[1..].iter().all(|there| *there),
            "{there:?}"
        );
    }

    async fn remembers_a_mark_until_it_ends(&self) {
        let key = fresh_key();
        self.put(key, 60).await;
        let ticket = self.lead_anyway(key).await;
        answer(
            self.store
                .release(key, ticket, Some(Duration::from_secs(60)))
                .await,
        );
        let found = self.look(key, Want::EntryOrLease(LEASE)).await;
        assert_eq!(
            (found.mark, found.lease),
            (Some(Duration::from_secs(60)), None)
        );
        assert!(
            matches!(found.entry, FoundEntry::None),
            "what became uncacheable is gone"
        );
        self.clock.advance(Duration::from_secs(60));
        assert_eq!(self.look(key, Want::Entry).await.mark, None);
        let other = fresh_key();
        let ticket = self.lead(other).await;
        answer(
            self.store
                .release(other, ticket, Some(Duration::from_secs(60)))
                .await,
        );
        let entry = Arc::new(sample(
            &Names::default(),
            ticket,
            60 * SECOND,
            60 * SECOND,
            "body",
        ));
        answer(
            self.store
                .store(other, Ticket { token: 0, ..ticket }, entry)
                .await,
        );
        assert_eq!(
            self.look(other, Want::Entry).await.mark,
            None,
            "what is stored after all is not marked"
        );
    }

    async fn marks_one_variant_and_not_the_others(&self) {
        let (primary, names) = (hash(), Names::from_text("accept"));
        let variant = || EntryKey {
            primary,
            selector: hash(),
        };
        let lookup = |key, want| Lookup {
            key,
            names: names.clone(),
            not_before: Stamp(0),
            have: None,
            want,
        };
        let kept = variant();
        let ticket = match self
            .ask(lookup(kept, Want::EntryOrLease(LEASE)))
            .await
            .lease
        {
            Some(Lease::Granted(ticket)) => ticket,
            other => broken("the lease of a missing entry is granted", &other),
        };
        let entry = Arc::new(sample(&names, ticket, 900 * SECOND, 900 * SECOND, "body"));
        answer(self.store.store(kept, ticket, entry).await);
        let mut marked = Vec::new();
        for seconds in 0..=MOST_VARIANTS as u64 {
            let key = variant();
            let mark = Duration::from_secs(60 + seconds);
            answer(self.store.release(key, Ticket::default(), Some(mark)).await);
            marked.push((key, mark));
        }
        for (index, (key, mark)) in marked.into_iter().enumerate() {
            let found = self.ask(lookup(key, Want::EntryOrLease(LEASE))).await;
            // Of too many the first to end has gone.
            assert_eq!(found.mark, (index > 0).then_some(mark), "{index}");
            assert_eq!(found.lease.is_some(), index == 0, "{index}");
        }
        let found = self.ask(lookup(kept, Want::EntryOrLease(LEASE))).await;
        assert_eq!((found.mark, found.lease), (None, None));
        assert!(matches!(found.entry, FoundEntry::Entry(_)), "{found:?}");
    }

    async fn freshens_a_head_and_leaves_the_body(&self) {
        let key = fresh_key();
        let old = self.put(key, 60).await;
        let ticket = self.lead_anyway(key).await;
        let renewed = Arc::new(freshened(&old, ticket, 120 * SECOND));
        assert_eq!(
            answer(self.store.freshen(key, ticket, Arc::clone(&renewed)).await),
            Stored::Yes
        );
        self.clock.advance(Duration::from_secs(119));
        match self.look(key, Want::Entry).await.entry {
            FoundEntry::Entry(entry) => {
                assert_eq!(entry.body(), old.body());
                assert_ne!(entry.id(), old.id());
            }
            other => broken("the freshened entry is there", &other),
        }
        self.clock.advance(Duration::from_secs(1));
        assert_eq!(
            answer(self.store.freshen(key, ticket, renewed).await),
            Stored::Superseded
        );
        let new = self.put(key, 60).await;
        let renewed = Arc::new(freshened(&old, ticket, 600 * SECOND));
        assert_eq!(
            answer(self.store.freshen(key, ticket, renewed).await),
            Stored::Superseded
        );
        assert_eq!(self.found_id(key).await, Some(new.id()));
    }

    async fn highest(&self) -> Stamp {
        self.look(fresh_key(), Want::Entry).await.highest
    }

    async fn invalidate(&self, tags: &[&str]) -> Stamp {
        let changes: Vec<Change> = tags.iter().map(|tag| gone(tag)).collect();
        answer(self.store.invalidate(&changes).await)
    }

    async fn raises_stamps_that_only_grow(&self) {
        let before = self.highest().await;
        let first = self.invalidate(&["a", "b"]).await;
        let second = self.invalidate(&["b"]).await;
        assert!(before < first && first < second && self.highest().await == second);
        let news = answer(self.store.changes(before).await);
        let seen: HashSet<_> = news.changes.iter().copied().collect();
        assert!(seen.contains(&(gone("a"), first)) && seen.contains(&(gone("b"), second)));
        assert!(
            !seen.contains(&(gone("b"), first)),
            "a target has its highest stamp only"
        );
        let later = answer(self.store.changes(first).await);
        assert_eq!(later.changes, [(gone("b"), second)]);
        assert_eq!(
            (
                later.highest,
                answer(self.store.changes(second).await).changes.len()
            ),
            (second, 0)
        );
        let soft = Change {
            kind: ChangeKind::Stale,
            ..gone("a")
        };
        let third = answer(self.store.invalidate(&[soft]).await);
        assert_eq!(
            answer(self.store.changes(second).await).changes,
            [(soft, third)]
        );
        assert_eq!(self.lead(fresh_key()).await.begun, third);
        self.clock.set_micros(self.clock.now_micros() - 1_000);
        assert!(
            self.invalidate(&["c"]).await > third,
            "also when a clock goes back"
        );
        self.clock.advance(Duration::from_millis(1));
    }

    async fn takes_every_call_twice(&self) {
        let key = fresh_key();
        let ticket = self.lead(key).await;
        let entry = Arc::new(sample(
            &Names::default(),
            ticket,
            60 * SECOND,
            60 * SECOND,
            "body",
        ));
        for _ in 0..2 {
            assert_eq!(
                answer(self.store.store(key, ticket, Arc::clone(&entry)).await),
                Stored::Yes
            );
        }
        let renewed = Arc::new(freshened(&entry, ticket, 90 * SECOND));
        for _ in 0..2 {
            assert_eq!(
                answer(self.store.freshen(key, ticket, Arc::clone(&renewed)).await),
                Stored::Yes
            );
        }
        for _ in 0..2 {
            answer(self.store.release(key, ticket, None).await);
        }
        assert!(self.found_id(key).await.is_some());
    }

    async fn raises_the_floor_when_full(&self) {
        let key = fresh_key();
        self.put(key, 6_000).await;
        let before = self.highest().await;
        let floor = answer(self.store.changes(before).await).floor;
        for part in 0..5 {
            let many: Vec<Change> = (0..MOST_STAMPS / 4)
                .map(|n| gone(&format!("{part}-{n}")))
                .collect();
            answer(self.store.invalidate(&many).await);
        }
        let news = answer(self.store.changes(before).await);
        assert!(
            news.floor > floor && news.floor > before,
            "the oldest stamps have left"
        );
        assert!(news.changes.len() <= MOST_STAMPS, "{}", news.changes.len());
        assert!(news.changes.iter().all(|(_, stamp)| *stamp >= news.floor));
        assert_eq!(
            self.found_id(key).await,
            None,
            "what began below the floor is as good as none"
        );
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
