//! What every store of topics promises.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::core::{Clock, IntoKey, ManualClock, Notice, Timestamp};
use crate::data::topic::EventId;
use crate::data::topic::store::{From, Kept, Page, Retain, TopicKey, TopicStore};

const MINUTE: Duration = Duration::from_secs(60);
const MS: Duration = Duration::from_millis(1);

/// Runs the whole suite. `store` must be empty and tell the time of `clock`.
///
/// # Panics
/// When the store breaks a promise of [`TopicStore`].
pub async fn topic(store: Arc<dyn TopicStore>, clock: &ManualClock) {
    let suite = Suite {
        store,
        clock: clock.clone(),
    };
    suite.ids_count_up_within_an_epoch().await;
    suite.only_the_last_events_are_kept().await;
    suite
        .an_event_is_gone_at_exactly_its_time_and_its_number_stays()
        .await;
    suite.the_newest_is_found_alone().await;
    suite.pages_follow_one_another().await;
    suite
        .a_forgotten_log_begins_anew_under_a_later_epoch()
        .await;
    suite.keys_and_names_are_apart().await;
    suite.listeners_are_told_with_the_payload().await;
    suite.parallel_events_get_numbers_of_their_own().await;
}

fn retain() -> Retain {
    Retain {
        events: 4,
        time: 5 * MINUTE,
    }
}

fn key(of: &str) -> TopicKey {
    TopicKey {
        name: Arc::from("suite"),
        key: of.into_key(),
    }
}

struct Suite {
    store: Arc<dyn TopicStore>,
    clock: ManualClock,
}

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    async fn publish(&self, key: &TopicKey, text: &str) -> Kept {
        let payload = Bytes::copy_from_slice(text.as_bytes());
        let published = self.store.publish(key, payload, retain());
        published.await.unwrap()
    }

    async fn read(&self, key: &TopicKey, after: Option<EventId>, most: usize) -> Page {
        let page = self.store.read(key, From::After(after), retain(), most);
        page.await.unwrap()
    }

    async fn ids_count_up_within_an_epoch(&self) {
        let key = key("count");
        let empty = Page {
            head: None,
            events: vec![],
        };
        assert_eq!(self.read(&key, None, 9).await, empty);
        let first = self.publish(&key, "1").await;
        assert_eq!(first.id.seq(), 1);
        let now = Timestamp::from_millis(self.clock.now_micros() / 1_000);
        assert_eq!(first.at, now);
        for seq in 2..=4 {
            let next = self.publish(&key, &seq.to_string()).await;
            assert_eq!((next.id.epoch(), next.id.seq()), (first.id.epoch(), seq));
        }
        let page = self.read(&key, Some(first.id), 9).await;
        assert_eq!(page.head.unwrap().seq(), 4);
        assert_eq!(texts(&page), ["2", "3", "4"]);
        assert_eq!(texts(&self.read(&key, None, 9).await), ["1", "2", "3", "4"]);
    }

    async fn only_the_last_events_are_kept(&self) {
        let key = key("last");
        for number in 0..10 {
            self.publish(&key, &number.to_string()).await;
        }
        let page = self.read(&key, None, 99).await;
        assert_eq!(
            (texts(&page), page.head.unwrap().seq()),
            (["6", "7", "8", "9"].map(str::to_owned).to_vec(), 10)
        );
    }

    async fn an_event_is_gone_at_exactly_its_time_and_its_number_stays(&self) {
        let key = key("time");
        self.publish(&key, "old").await;
        self.clock.advance(MS);
        self.publish(&key, "new").await;
        self.clock.advance(retain().time - 2 * MS);
        assert_eq!(texts(&self.read(&key, None, 9).await), ["old", "new"]);
        self.clock.advance(MS);
        assert_eq!(texts(&self.read(&key, None, 9).await), ["new"]);
        self.clock.advance(MS);
        let page = self.read(&key, None, 9).await;
        assert_eq!((texts(&page), page.head.unwrap().seq()), (vec![], 2));
        assert_eq!(self.publish(&key, "next").await.id.seq(), 3);
        assert_eq!(texts(&self.read(&key, None, 9).await), ["next"]);
    }

    async fn the_newest_is_found_alone(&self) {
        let key = key("latest");
        let latest = async || {
            let page = self.store.read(&key, From::Latest, retain(), 1).await;
            texts(&page.unwrap())
        };
        assert_eq!(latest().await, Vec::<String>::new());
        self.publish(&key, "1").await;
        self.publish(&key, "2").await;
        assert_eq!(latest().await, ["2"]);
        self.clock.advance(retain().time);
        assert_eq!(latest().await, Vec::<String>::new());
    }

    async fn pages_follow_one_another(&self) {
        let (key, mut after, mut all) = (key("pages"), None, Vec::new());
        for number in 0..4 {
            self.publish(&key, &number.to_string()).await;
        }
        for _ in 0..3 {
            let page = self.read(&key, after, 2).await;
            after = page.events.last().map_or(after, |last| Some(last.id));
            all.extend(texts(&page));
        }
        assert_eq!(all, ["0", "1", "2", "3"]);
    }

    async fn a_forgotten_log_begins_anew_under_a_later_epoch(&self) {
        let first = self.publish(&key("anew 1"), "x").await;
        let second = self.publish(&key("anew 2"), "x").await;
        assert!(second.id.epoch() >= first.id.epoch());
        let at = Timestamp::of(&crate::core::SystemClock).as_millis();
        assert!(
            at.abs_diff(first.id.epoch()) < 3_600_000,
            "epochs are the engine's own time"
        );
    }

    async fn keys_and_names_are_apart(&self) {
        let other = TopicKey {
            name: Arc::from("other"),
            key: "apart".into_key(),
        };
        for key in [key("apart"), key("apart2"), other] {
            assert_eq!(self.publish(&key, "x").await.id.seq(), 1);
        }
    }

    async fn listeners_are_told_with_the_payload(&self) {
        let key = key("told");
        let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
        let listening = self.store.subscribe(
            &key,
            Arc::new(move |notice| {
                if let Notice::Payload(payload) = notice {
                    let _ = told.send(payload);
                }
            }),
        );
        let listening = listening.await.unwrap();
        let published = self.publish(&key, "news").await;
        let notice = tokio::time::timeout(Duration::from_secs(10), heard.recv()).await;
        let notice = notice.unwrap_or_else(|_| panic!("nobody told")).unwrap();
        assert_eq!(Kept::from_notice(notice), Some(published));
        drop(listening);
    }

    async fn parallel_events_get_numbers_of_their_own(&self) {
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let store = Arc::clone(&self.store);
            calls.spawn(async move {
                let payload = Bytes::from_static(b"x");
                store.publish(&key("parallel"), payload, retain()).await
            });
        }
        let mut numbers = Vec::new();
        while let Some(kept) = calls.join_next().await {
            numbers.push(kept.unwrap().unwrap().id.seq());
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=50).collect::<Vec<u64>>());
    }
}

fn texts(page: &Page) -> Vec<String> {
    let text = |kept: &Kept| String::from_utf8_lossy(&kept.payload).into_owned();
    page.events.iter().map(text).collect()
}
