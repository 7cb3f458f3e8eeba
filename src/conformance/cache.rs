//! What every store of cached records promises, and random histories against a log of versions.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::core::{Clock, IntoKey, Key, ManualClock, Notice};
use crate::data::cache::store::{
    Ask, CacheStore, Fetched, Fill, Item, LeaseToken, LeaseWish, Leased, Lookup, Right, Written,
};
use crate::data::cache::{CacheKey, Tag, Target};

/// Runs the whole suite. `store` must be empty and tell the time of `clock`.
///
/// # Panics
/// When the store breaks a promise of [`CacheStore`].
pub async fn cache(store: Arc<dyn CacheStore>, clock: &ManualClock) {
    let suite = Suite {
        store,
        clock: clock.clone(),
        group: Arc::from("suite"),
    };
    suite
        .a_record_is_due_stale_and_gone_at_exactly_its_times()
        .await;
    suite.one_lease_at_a_time_until_it_is_taken_over().await;
    suite
        .each_owner_of_a_lease_that_was_taken_over_has_its_own_beginning()
        .await;
    suite
        .an_invalidation_beats_a_fill_that_began_before_it()
        .await;
    suite
        .an_invalidation_hits_what_is_stored_and_spares_the_rest()
        .await;
    suite.a_put_overtakes_a_load().await;
    suite.those_who_wait_are_told_of_a_fill().await;
    suite.a_batch_is_decided_key_by_key().await;
    suite
        .a_lease_that_is_given_back_is_free_and_changes_nothing()
        .await;
    suite.an_alias_leads_to_the_key_it_was_written_with().await;
    suite
        .a_fill_under_another_keys_lease_gives_way_to_every_key()
        .await;
    for seed in 0..8 {
        suite.no_old_version_returns(seed).await;
    }
}

struct Suite {
    store: Arc<dyn CacheStore>,
    clock: ManualClock,
    group: Arc<str>,
}

fn key(entity: &str, of: impl IntoKey) -> CacheKey {
    CacheKey {
        entity: Arc::from(entity),
        key: of.into_key(),
    }
}

fn wish(token: u8) -> LeaseWish {
    LeaseWish {
        token: LeaseToken([token; 16]),
        lasts: Duration::from_secs(600),
        take_over: false,
        force: false,
    }
}

fn fill(text: &str, right: Right, tags: &[&str]) -> Fill {
    let tag =
        |text: &&str| Target::tag(text.parse::<Tag>().unwrap_or_else(|no| match no {})).member();
    Fill {
        payload: Bytes::copy_from_slice(text.as_bytes()),
        tags: tags.iter().map(tag).collect(),
        aliases: Vec::new(),
        refresh: 20_000,
        fresh: 30_000,
        life: 60_000,
        right,
    }
}

fn under(token: u8) -> Right {
    Right::Lease(LeaseToken([token; 16]))
}

#[allow(clippy::panic, clippy::unwrap_used)]
impl Suite {
    async fn fetch(&self, key: &CacheKey, ask: Ask) -> Fetched {
        let lookup = Lookup {
            key: key.clone(),
            ask,
        };
        let fetched = self.store.fetch(&self.group, vec![lookup]).await;
        fetched.unwrap().pop().unwrap()
    }

    async fn read(&self, key: &CacheKey) -> Option<String> {
        let record = self.fetch(key, Ask::Read).await.record?;
        Some(String::from_utf8(record.payload.to_vec()).unwrap())
    }

    async fn lease(&self, key: &CacheKey, token: u8) -> Leased {
        self.fetch(key, Ask::Lease(wish(token))).await.leased
    }

    async fn write(&self, key: &CacheKey, fill: Fill) -> Written {
        self.write_all(vec![Item::new(key.clone(), fill)]).await[0]
    }

    async fn write_all(&self, items: Vec<Item>) -> Vec<Written> {
        let written = self.store.write(&self.group, items, "me");
        written.await.unwrap()
    }

    async fn resolve(&self, alias: &str) -> Option<Key> {
        let resolved = self.store.resolve(&self.group, vec![alias.to_owned()]);
        resolved.await.unwrap().pop().unwrap()
    }

    async fn invalidate(&self, targets: impl IntoIterator<Item = Target>) {
        let targets = targets.into_iter().collect();
        let done = self.store.invalidate(&self.group, targets, "me");
        done.await.unwrap();
    }

    async fn a_record_is_due_stale_and_gone_at_exactly_its_times(&self) {
        let key = key("times", 1_u8);
        assert_eq!(self.lease(&key, 1).await, Leased::Given);
        let written = self
            .write(&key, fill("v 1 2", under(1), &["a:b", "c"]))
            .await;
        assert_eq!(written, Written::Stored);
        let fetched = self.fetch(&key, Ask::Lease(wish(2))).await;
        let record = fetched.record.unwrap();
        assert_eq!(fetched.leased, Leased::No);
        assert_eq!(&record.payload[..], b"v 1 2");
        assert_eq!(record.tags, ["ta:b", "tc"]);
        let (stored, now) = (record.stored, self.clock.now_micros() / 1_000);
        assert_eq!((stored, fetched.now), (now, now));
        let times = [record.refresh, record.fresh, record.expires];
        assert_eq!(times, [now + 20_000, now + 30_000, now + 60_000]);
        self.clock.advance(Duration::from_millis(19_999));
        assert_eq!(self.lease(&key, 2).await, Leased::No);
        self.clock.advance(Duration::from_millis(1));
        assert_eq!(self.lease(&key, 2).await, Leased::Given);
        self.clock.advance(Duration::from_millis(39_999));
        assert!(self.read(&key).await.is_some());
        self.clock.advance(Duration::from_millis(1));
        assert!(self.read(&key).await.is_none());
    }

    async fn one_lease_at_a_time_until_it_is_taken_over(&self) {
        let key = key("lease", 1_u8);
        assert_eq!(self.lease(&key, 1).await, Leased::Given);
        assert_eq!(self.lease(&key, 2).await, Leased::Busy);
        let over = LeaseWish {
            take_over: true,
            ..wish(3)
        };
        let taken = self.fetch(&key, Ask::Lease(over)).await;
        assert_eq!(taken.leased, Leased::Given);
        assert_eq!(self.lease(&key, 4).await, Leased::Busy);
        // Whoever of them is first fills, and nobody after it.
        let early = self.write(&key, fill("early", under(1), &[])).await;
        assert_eq!(early, Written::Stored);
        for late in [3, 1] {
            let late = self.write(&key, fill("late", under(late), &[])).await;
            assert_eq!(late, Written::Refused);
        }
        assert_eq!(self.read(&key).await.as_deref(), Some("early"));
        let force = LeaseWish {
            force: true,
            ..wish(4)
        };
        let forced = self.fetch(&key, Ask::Lease(force)).await;
        assert_eq!(forced.leased, Leased::Given);
    }

    async fn each_owner_of_a_lease_that_was_taken_over_has_its_own_beginning(&self) {
        let key = key("owners", 1_u8);
        let take = |token| LeaseWish {
            take_over: true,
            ..wish(token)
        };
        let nothing = |token| Fill {
            life: 0,
            ..fill("", under(token), &[])
        };
        // The last gives up: the next takes its place, and those before it may fill still.
        for back in [true, false] {
            self.invalidate([Target::key(key.clone())]).await;
            assert_eq!(self.lease(&key, 1).await, Leased::Given);
            let over = self.fetch(&key, Ask::Lease(take(2))).await;
            assert_eq!(over.leased, Leased::Given);
            let (gone, left) = if back { (2, 1) } else { (1, 2) };
            assert_eq!(self.write(&key, nothing(gone)).await, Written::Refused);
            let is_free = if back { Leased::Given } else { Leased::Busy };
            assert_eq!(self.lease(&key, 3).await, is_free);
            let filled = self.write(&key, fill("gone", under(gone), &[])).await;
            assert_eq!(filled, Written::Refused);
            let filled = self.write(&key, fill("left", under(left), &[])).await;
            assert_eq!(filled, Written::Stored);
            let filled = self.write(&key, fill("late", under(3), &[])).await;
            assert_eq!(filled, Written::Refused);
        }
        // What is invalidated in between hits those who began before it.
        self.invalidate([Target::key(key.clone())]).await;
        assert_eq!(self.lease(&key, 1).await, Leased::Given);
        self.invalidate([Target::tag(Tag::new("owner", "x"))]).await;
        self.fetch(&key, Ask::Lease(take(2))).await;
        let old = self.write(&key, fill("old", under(1), &["owner:x"])).await;
        assert_eq!(old, Written::Refused);
        let new = self.write(&key, fill("new", under(2), &["owner:x"])).await;
        assert_eq!(new, Written::Stored);
        // A dropped key has no owners, nor has one that was put.
        for put in [false, true] {
            self.invalidate([Target::key(key.clone())]).await;
            self.lease(&key, 1).await;
            self.fetch(&key, Ask::Lease(take(2))).await;
            if put {
                self.write(&key, fill("put", Right::Always, &[])).await;
            } else {
                self.invalidate([Target::key(key.clone())]).await;
            }
            for token in [1, 2] {
                let late = self.write(&key, fill("late", under(token), &[])).await;
                assert_eq!(late, Written::Refused);
            }
        }
        // They are bounded.
        self.invalidate([Target::key(key.clone())]).await;
        let mut given = 0;
        for token in 1..=200 {
            let over = self.fetch(&key, Ask::Lease(take(token))).await;
            given += usize::from(over.leased == Leased::Given);
        }
        assert!((2..100).contains(&given), "{given}");
        let first = self.write(&key, fill("first", under(1), &[])).await;
        assert_eq!(first, Written::Stored);
    }

    /// The five kinds: a key, a tag, a prefix, a whole cache, the group.
    fn kinds(key: &CacheKey) -> [Target; 5] {
        [
            Target::key(key.clone()),
            Target::tag(Tag::new("user", "u1")),
            Target::prefix("user", "u1"),
            Target::entity("user").unwrap_or_else(|_| Target::all()),
            Target::all(),
        ]
    }

    async fn an_invalidation_beats_a_fill_that_began_before_it(&self) {
        let key = key("user", ("u1", "x"));
        for target in Self::kinds(&key) {
            self.invalidate([Target::key(key.clone())]).await;
            assert_eq!(self.lease(&key, 1).await, Leased::Given);
            self.invalidate([target.clone()]).await;
            let old = self.write(&key, fill("old", under(1), &["user:u1"])).await;
            assert_eq!(old, Written::Refused, "{target:?}");
            assert_eq!(self.read(&key).await, None, "{target:?}");
            // The next one is welcome.
            assert_eq!(self.lease(&key, 2).await, Leased::Given, "{target:?}");
            let new = self.write(&key, fill("new", under(2), &["user:u1"])).await;
            assert_eq!(new, Written::Stored, "{target:?}");
        }
    }

    async fn an_invalidation_hits_what_is_stored_and_spares_the_rest(&self) {
        let (mine, other) = (key("user", ("u1", "x")), key("user", ("u10", "x")));
        let elsewhere = key("profile", "u1");
        let put = |text: &'static str, tag: &'static str| fill(text, Right::Always, &[tag]);
        for (target, spared) in [
            (Target::key(mine.clone()), [true, true]),
            (Target::tag(Tag::new("user", "u1")), [true, false]),
            (Target::prefix("user", "u1"), [true, true]),
            (Target::prefix("use", "u1"), [true, true]),
            (Target::all(), [false, false]),
        ] {
            self.write(&mine, put("mine", "user:u1")).await;
            self.write(&other, put("other", "user:u10")).await;
            self.write(&elsewhere, put("elsewhere", "user:u1")).await;
            self.invalidate([target.clone()]).await;
            let left = [
                self.read(&other).await.is_some(),
                self.read(&elsewhere).await.is_some(),
            ];
            assert_eq!(left, spared, "{target:?}");
            let hit = target != Target::prefix("use", "u1");
            assert_eq!(self.read(&mine).await.is_none(), hit, "{target:?}");
        }
    }

    async fn a_put_overtakes_a_load(&self) {
        let key = key("put", 1_u8);
        assert_eq!(self.lease(&key, 1).await, Leased::Given);
        let put = self.write(&key, fill("put", Right::Always, &[])).await;
        assert_eq!(put, Written::Stored);
        let late = self.write(&key, fill("loaded", under(1), &[])).await;
        assert_eq!(late, Written::Refused);
        assert_eq!(self.read(&key).await.as_deref(), Some("put"));
    }

    async fn those_who_wait_are_told_of_a_fill(&self) {
        let key = key("told", 1_u8);
        let told = Arc::new(tokio::sync::Semaphore::new(0));
        let (teller, wanted) = (Arc::clone(&told), format!("me\nf{}", key.member()));
        let listening = self.store.subscribe(
            &self.group,
            Arc::new(move |notice| {
                if let Notice::Payload(payload) = notice
                    && payload == wanted.as_bytes()
                {
                    teller.add_permits(1);
                }
            }),
        );
        let listening = listening.await.unwrap();
        assert_eq!(self.lease(&key, 1).await, Leased::Given);
        assert_eq!(self.lease(&key, 2).await, Leased::Busy);
        self.write(&key, fill("v", under(1), &[])).await;
        let heard = tokio::time::timeout(Duration::from_secs(10), told.acquire());
        assert!(heard.await.is_ok(), "nobody told");
        drop(listening);
    }

    async fn a_batch_is_decided_key_by_key(&self) {
        let keys: Vec<CacheKey> = (0..5_u8).map(|at| key("batch", at)).collect();
        self.write(&keys[0], fill("there", Right::Always, &[]))
            .await;
        assert_eq!(self.lease(&keys[1], 9).await, Leased::Given);
        let lookup = |(at, key): (usize, &CacheKey)| Lookup {
            key: key.clone(),
            // The last only reads.
            ask: if at < 4 {
                Ask::Lease(wish(1))
            } else {
                Ask::Read
            },
        };
        let lookups = keys.iter().enumerate().map(lookup).collect();
        let fetched = self.store.fetch(&self.group, lookups).await.unwrap();
        let leased: Vec<Leased> = fetched.iter().map(|one| one.leased).collect();
        use Leased::{Busy, Given, No};
        assert_eq!(leased, [No, Busy, Given, Given, No]);
        assert!(fetched[0].record.is_some() && fetched[2].record.is_none());
        self.invalidate([Target::key(keys[3].clone())]).await;
        let item = |at: usize, right| Item::new(keys[at].clone(), fill("new", right, &["a:b"]));
        let items = vec![
            item(1, under(1)),
            item(2, under(1)),
            item(3, under(1)),
            item(4, Right::Always),
        ];
        let written = self.write_all(items).await;
        use Written::{Refused, Stored};
        assert_eq!(written, [Refused, Stored, Refused, Stored]);
        assert_eq!(self.read(&keys[2]).await.as_deref(), Some("new"));
        assert_eq!(self.read(&keys[4]).await.as_deref(), Some("new"));
        assert!(self.read(&keys[3]).await.is_none());
    }

    async fn a_lease_that_is_given_back_is_free_and_changes_nothing(&self) {
        let key = key("back", 1_u8);
        self.write(&key, fill("old", Right::Always, &[])).await;
        self.clock.advance(Duration::from_secs(20));
        assert_eq!(self.lease(&key, 1).await, Leased::Given);
        assert_eq!(self.lease(&key, 2).await, Leased::Busy);
        let nothing = Fill {
            life: 0,
            ..fill("", under(1), &[])
        };
        assert_eq!(self.write(&key, nothing).await, Written::Refused);
        assert_eq!(self.read(&key).await.as_deref(), Some("old"));
        assert_eq!(self.lease(&key, 2).await, Leased::Given);
    }

    async fn an_alias_leads_to_the_key_it_was_written_with(&self) {
        let (one, two) = (key("alias", ("a", 1_u8)), key("alias", ("a", 2_u8)));
        let named = |text: &str, alias: &str| Fill {
            aliases: vec![alias.to_owned()],
            ..fill(text, Right::Always, &["a:b"])
        };
        assert_eq!(self.resolve("aalias:email:x").await, None);
        self.write(&one, named("one", "aalias:email:x")).await;
        assert_eq!(self.resolve("aalias:email:x").await, Some(one.key.clone()));
        let record = self.fetch(&one, Ask::Read).await.record.unwrap();
        assert_eq!(record.tags, ["ta:b", "aalias:email:x"]);
        // It changes hands, and the old owner is called otherwise.
        self.write(&one, named("one", "aalias:email:y")).await;
        let record = self.fetch(&one, Ask::Read).await.record.unwrap();
        assert!(!record.tags.contains(&"aalias:email:x".to_owned()));
        self.write(&two, named("two", "aalias:email:x")).await;
        assert_eq!(self.resolve("aalias:email:x").await, Some(two.key));
    }

    async fn a_fill_under_another_keys_lease_gives_way_to_every_key(&self) {
        let (pseudo, own) = (key("by", "~x"), key("by", "own"));
        let item = |token| Item {
            key: own.clone(),
            fill: fill("v", under(token), &[]),
            lease_of: Some(pseudo.clone()),
        };
        for (token, target) in [
            (1, Target::key(own.clone())),
            (2, Target::prefix("by", "own")),
        ] {
            assert_eq!(self.lease(&pseudo, token).await, Leased::Given);
            self.invalidate([target]).await;
            let late = self.write_all(vec![item(token)]).await;
            assert_eq!(late, [Written::Refused]);
            assert_eq!(self.read(&own).await, None);
        }
        assert_eq!(self.lease(&pseudo, 3).await, Leased::Given);
        self.write(&own, fill("put", Right::Always, &[])).await;
        assert_eq!(self.write_all(vec![item(3)]).await, [Written::Refused]);
        assert_eq!(self.read(&own).await.as_deref(), Some("put"));
        assert_eq!(self.lease(&pseudo, 4).await, Leased::Given);
        assert_eq!(self.write_all(vec![item(4)]).await, [Written::Stored]);
        assert_eq!(self.read(&own).await.as_deref(), Some("v"));
        assert_eq!(self.lease(&pseudo, 5).await, Leased::Given);
    }

    /// Loads that read the truth at one moment and fill at another, over changes of the truth that invalidate.
    async fn no_old_version_returns(&self, seed: u64) {
        let mut dice = super::Dice::new(seed);
        // The truth of each key, and what each loader has read: key and version.
        let mut truth = [0_u64; 3];
        let mut loading: HashMap<u8, (usize, u64)> = HashMap::new();
        let name = format!("h{seed}");
        let key_of = |at: usize| key("history", (name.as_str(), at));
        for step in 0..400 {
            let at = dice.below(3) as usize;
            let (key, token) = (key_of(at), dice.below(4) as u8);
            let tag = format!("truth:{seed}-{at}");
            match dice.below(5) {
                0 => {
                    let wish = LeaseWish {
                        take_over: dice.below(3) == 0,
                        ..wish(token)
                    };
                    let given = self.fetch(&key, Ask::Lease(wish)).await.leased;
                    if given == Leased::Given {
                        loading.insert(token, (at, truth[at]));
                    }
                }
                1 => {
                    if let Some((at, version)) = loading.remove(&token) {
                        let tag = format!("truth:{seed}-{at}");
                        let fill = fill(&version.to_string(), under(token), &[&tag]);
                        self.write(&key_of(at), fill).await;
                    }
                }
                2 => {
                    truth[at] += 1;
                    let target = match dice.below(4) {
                        0 => Target::key(key),
                        1 => Target::tag(tag.parse().unwrap()),
                        2 => Target::prefix("history", (name.as_str(), at)),
                        _ => Target::all(),
                    };
                    self.invalidate([target]).await;
                }
                3 => {
                    truth[at] += 1;
                    let fill = fill(&truth[at].to_string(), Right::Always, &[&tag]);
                    self.write(&key, fill).await;
                }
                _ => {
                    let read = self.read(&key).await;
                    let current = truth[at].to_string();
                    assert!(
                        read.is_none() || read.as_deref() == Some(current.as_str()),
                        "seed {seed} step {step}: {read:?} instead of {current}"
                    );
                    self.clock.advance(Duration::from_millis(dice.below(100)));
                }
            }
        }
    }
}
