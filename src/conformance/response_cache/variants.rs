//! Answers of one URL that differ by request fields, and marks of those that are not kept.

use std::sync::Arc;
use std::time::Duration;

use super::{LEASE, SECOND, Suite, answer, broken, fresh_key, hash};
use crate::core::Clock;
use crate::response_cache::store::{
    EntryKey, FoundEntry, Hash128, Lease, Lookup, MOST_VARIANTS, Stored, Ticket, Want,
};
use crate::response_cache::{Names, Stamp, sample};

impl Suite<'_> {
    pub(super) async fn looks_nothing_up_under_other_names(&self) {
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
        assert_eq!(self.ask(right.clone()).await.names, more);
        let there = Lookup {
            key,
            names: more,
            ..right
        };
        let plain = EntryKey {
            selector: Hash128::default(),
            ..key
        };
        for (key, names) in [(variant, names), (plain, Names::default())] {
            let fewer = Arc::new(sample(&names, ticket, 60 * SECOND, 60 * SECOND, "body"));
            let stored = answer(self.store.store(key, ticket, fewer).await);
            assert_eq!(stored, Stored::Superseded);
            let found = self.ask(there.clone()).await.entry;
            assert!(
                matches!(found, FoundEntry::Entry(_)),
                "it costs none of those that are there"
            );
        }
    }

    pub(super) async fn drops_the_oldest_variant(&self) {
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

    pub(super) async fn remembers_a_mark_until_it_ends(&self) {
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

    pub(super) async fn marks_one_variant_and_not_the_others(&self) {
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
}
