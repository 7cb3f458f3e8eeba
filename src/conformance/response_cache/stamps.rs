//! Invalidations.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::{SECOND, Suite, answer, fresh_key, gone};
use crate::core::Clock;
use crate::response_cache::store::{MOST_STAMPS, Stored};
use crate::response_cache::{Change, ChangeKind, Names, freshened, sample};

impl Suite<'_> {
    pub(super) async fn raises_stamps_that_only_grow(&self) {
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

    pub(super) async fn takes_every_call_twice(&self) {
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

    pub(super) async fn raises_the_floor_when_full(&self) {
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
