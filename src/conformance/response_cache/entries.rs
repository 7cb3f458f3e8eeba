//! What is kept, which of two, and until when.

use std::sync::Arc;
use std::time::Duration;

use super::{LEASE, SECOND, Suite, answer, broken, fresh_key};
use crate::core::Clock;
use crate::response_cache::store::{FoundEntry, Lease, Lookup, Stored, Ticket, Want};
use crate::response_cache::{EntryId, Names, Stamp, freshened, sample};

impl Suite<'_> {
    pub(super) async fn keeps_an_entry_until_exactly_its_end(&self) {
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

    pub(super) async fn sends_no_body_to_who_has_it(&self) {
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

    pub(super) async fn keeps_the_later_begun_of_two(&self) {
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

    pub(super) async fn stores_without_a_lease(&self) {
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

    pub(super) async fn freshens_a_head_and_leaves_the_body(&self) {
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

    pub(super) async fn hides_what_began_too_early(&self) {
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
}
