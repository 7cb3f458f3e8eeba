//! Who may fetch, and for how long.

use std::sync::Arc;
use std::time::Duration;

use super::{LEASE, SECOND, Suite, answer, fresh_key};
use crate::response_cache::store::{FoundEntry, Lease, Lookup, Ticket, Want};
use crate::response_cache::{Names, Stamp, sample};

impl Suite<'_> {
    pub(super) async fn gives_one_of_many_contenders_the_lease(&self) {
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

    pub(super) async fn frees_a_lease_at_exactly_its_end(&self) {
        let key = fresh_key();
        let first = self.lead(key).await;
        self.clock.advance(LEASE - Duration::from_millis(1));
        let held = self.look(key, Want::EntryOrLease(LEASE)).await.lease;
        assert_eq!(held, Some(Lease::Held(Duration::from_millis(1))));
        self.clock.advance(Duration::from_millis(1));
        let second = self.lead(key).await;
        assert_ne!(first.token, second.token);
    }

    pub(super) async fn releases_a_lease_by_its_token_only(&self) {
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

    pub(super) async fn gives_the_lease_of_what_is_due(&self) {
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
}
