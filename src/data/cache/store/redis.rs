//! Cached records on Redis: a string each, stamps in one sorted set per group, the group as hash tag.

mod look;

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use self::look::look;
use super::{
    Ask, CacheKey, CacheStore, Fetched, Fill, Item, LeaseToken, Leased, Lookup, Record, Right,
    Target, Written, notice,
};
use crate::backend::redis::{Call, RedisStore, Reply, Script};
use crate::core::{
    Clock, Key, NoticeCallback, StoreError, StoreErrorKind, StoreFuture, Subscription, SystemClock,
    base64url, monotonic,
};
use crate::data::Names;

static FETCH: Script = Script::named("cache.fetch", include_str!("fetch.lua"));
static WRITE: Script = Script::named("cache.write", include_str!("write.lua"));
static RESOLVE: Script = Script::named("cache.resolve", include_str!("resolve.lua"));
static INVALIDATE: Script = Script::named("cache.invalidate", include_str!("invalidate.lua"));

impl CacheStore for RedisStore {
    fn fetch(&self, group: &Arc<str>, lookups: Vec<Lookup>) -> StoreFuture<Vec<Fetched>> {
        match lookups.as_slice() {
            [] => StoreFuture::ok(Vec::new()),
            [one] if look::may_do(self, group, one) => {
                let (store, group) = (self.clone(), Arc::clone(group));
                StoreFuture::boxed(async move {
                    let began = monotonic();
                    match look(&store, &group, &lookups[0]).await? {
                        Some(found) => Ok(vec![found]),
                        None => asked(&store, group, lookups, Some(began)).await,
                    }
                })
            }
            _ => asked(self, Arc::clone(group), lookups, None),
        }
    }

    fn write(&self, group: &Arc<str>, items: Vec<Item>, sender: &str) -> StoreFuture<Vec<Written>> {
        if items.is_empty() {
            return StoreFuture::ok(Vec::new());
        }
        let mut keys = vec![stamps_of(self, group)];
        for item in &items {
            let [record, _] = keys_of(self, group, &item.key);
            let [_, lease] = keys_of(self, group, item.lease_key());
            keys.extend([record, lease]);
            let aliases = item.fill.aliases.iter();
            keys.extend(aliases.map(|alias| alias_of(self, group, alias)));
        }
        let channel = channel_of(self, group);
        let mut call = self.script(&WRITE, &keys).arg(channel).arg(sender);
        let mut notes = look::Notes::of(self, group);
        for item in items {
            notes.promise(&item);
            call = written(call, item);
        }
        call.run(move |reply| {
            let answers = reply.array()?.into_iter().map(Reply::int);
            let written = answers.map(|answer| match answer? {
                1 => Ok(Written::Stored),
                _ => Ok(Written::Refused),
            });
            let written: Vec<Written> = written.collect::<Result<_, StoreError>>()?;
            notes.keep(&written);
            Ok(written)
        })
    }

    fn resolve(&self, group: &Arc<str>, aliases: Vec<String>) -> StoreFuture<Vec<Option<Key>>> {
        if aliases.is_empty() {
            return StoreFuture::ok(Vec::new());
        }
        let keys: Vec<String> = aliases
            .iter()
            .map(|alias| alias_of(self, group, alias))
            .collect();
        self.script(&RESOLVE, &keys).run(|reply| {
            let found = reply.array()?.into_iter().map(Reply::opt_bytes);
            let key = |bytes: Bytes| Some(Key::from_escaped(std::str::from_utf8(&bytes).ok()?));
            found.map(|bytes| Ok(bytes?.and_then(key))).collect()
        })
    }

    fn invalidate(&self, group: &Arc<str>, targets: Vec<Target>, sender: &str) -> StoreFuture<()> {
        look::forget(self, group, &targets);
        let (mut keys, mut raised) = (vec![stamps_of(self, group)], Vec::new());
        for target in &targets {
            match target.as_key() {
                Some(key) => keys.extend(keys_of(self, group, key)),
                None => raised.push(target.member()),
            }
        }
        let members: Vec<String> = targets.iter().map(Target::member).collect();
        let mut call = self
            .script(&INVALIDATE, &keys)
            .arg(channel_of(self, group))
            .arg(notice(sender, &members));
        for member in raised {
            call = call.arg(member);
        }
        call.run(|_| Ok(()))
    }

    fn subscribe(&self, group: &Arc<str>, callback: NoticeCallback) -> StoreFuture<Subscription> {
        Self::subscribe(self, &channel_of(self, group), callback)
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Self::clock(self).unwrap_or_else(|| Arc::new(SystemClock))
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.beside(Names::default).contradicts(name, what)
    }
}

/// Asks the script, and notes what it found. What led to the question before counts as waiting, too.
fn asked(
    store: &RedisStore,
    group: Arc<str>,
    lookups: Vec<Lookup>,
    began: Option<Instant>,
) -> StoreFuture<Vec<Fetched>> {
    let call = fetching(store, &group, &lookups);
    let call = match began {
        Some(began) => call.since(began),
        None => call,
    };
    let notes = look::Notes::of(store, &group);
    call.run(move |reply| {
        let all = fetched(reply)?;
        for (lookup, fetched) in lookups.iter().zip(&all) {
            notes.saw(&lookup.key, fetched);
        }
        Ok(all)
    })
}

fn fetching(store: &RedisStore, group: &str, lookups: &[Lookup]) -> Call {
    let mut keys = vec![stamps_of(store, group)];
    for lookup in lookups {
        keys.extend(keys_of(store, group, &lookup.key));
    }
    let mut call = store.script(&FETCH, &keys);
    for lookup in lookups {
        call = match lookup.ask {
            Ask::Read => call.arg("").arg("").arg("").arg(""),
            Ask::Lease(wish) => call
                .arg(text(wish.token))
                .num(u64::try_from(wish.lasts.as_millis()).unwrap_or(u64::MAX / 4))
                .num(u8::from(wish.take_over))
                .num(u8::from(wish.force)),
        };
        call = prefixed(call, &lookup.key);
    }
    call
}

fn stamps_of(store: &RedisStore, group: &str) -> String {
    store.key("cache").tag([group]).plain("stamps").finish()
}

/// Record and lease.
fn keys_of(store: &RedisStore, group: &str, key: &CacheKey) -> [String; 2] {
    ["record", "lease"].map(|kind| own_key(store, group, key, kind))
}

fn own_key(store: &RedisStore, group: &str, key: &CacheKey, kind: &str) -> String {
    let start = store.key("cache").tag([group]).plain(kind);
    start.plain(&key.entity).plain(key.key.as_str()).finish()
}

fn alias_of(store: &RedisStore, group: &str, alias: &str) -> String {
    let start = store.key("cache").tag([group]).plain("alias");
    start.plain(alias).finish()
}

fn prefixed(call: Call, key: &CacheKey) -> Call {
    let prefixes = key.prefixes();
    let call = call.num(prefixes.len() as u64);
    prefixes.into_iter().fold(call, Call::arg)
}

fn written(call: Call, item: Item) -> Call {
    let token = match item.fill.right {
        Right::Lease(token) => text(token),
        Right::Always => String::new(),
    };
    let Fill { tags, aliases, .. } = &item.fill;
    let tags: String = tags
        .iter()
        .chain(aliases)
        .map(|tag| format!("{tag} "))
        .collect();
    let call = call
        .arg(token)
        .num(item.fill.refresh)
        .num(item.fill.fresh)
        .num(item.fill.life)
        .arg(tags)
        .arg(&item.fill.payload)
        .arg(item.key.member())
        .arg(item.lease_key().member())
        .num(u8::from(item.lease_of.is_some()))
        .arg(item.key.key.as_str())
        .num(aliases.len() as u64);
    prefixed(call, &item.key)
}

fn channel_of(store: &RedisStore, group: &str) -> String {
    store.channel("cache").tag([group]).finish()
}

fn text(token: LeaseToken) -> String {
    base64url(&token.0)
}

fn fetched(reply: Reply) -> Result<Vec<Fetched>, StoreError> {
    let mut parts = reply.array()?.into_iter();
    let now = parts.next().ok_or_else(unexpected)?.int()?;
    let now = u64::try_from(now).map_err(|_| unexpected())?;
    let mut all = Vec::with_capacity(parts.len() / 2);
    while let (Some(leased), Some(raw)) = (parts.next(), parts.next()) {
        let leased = match leased.int()? {
            0 => Leased::No,
            1 => Leased::Given,
            _ => Leased::Busy,
        };
        // What cannot be read is no record: a miss, which a fill replaces.
        let record = raw
            .opt_bytes()?
            .and_then(|raw| parse(&raw))
            .map(|(_, record)| record);
        all.push(Fetched {
            record,
            leased,
            now,
        });
    }
    Ok(all)
}

/// Reads `stamp stored refresh fresh expires length ` and the tags, with every length checked.
/// The stamp of a record, and what is kept.
fn parse(raw: &Bytes) -> Option<(u64, Record)> {
    let (mut numbers, mut at) = ([0_u64; 6], 0);
    for number in &mut numbers {
        let length = raw.get(at..)?.iter().position(|byte| *byte == b' ')?;
        *number = std::str::from_utf8(&raw[at..at + length])
            .ok()?
            .parse()
            .ok()?;
        at += length + 1;
    }
    let end = at.checked_add(usize::try_from(numbers[5]).ok()?)?;
    let tags = std::str::from_utf8(raw.get(at..end)?).ok()?;
    let record = Record {
        payload: raw.slice(end..),
        tags: tags.split_whitespace().map(str::to_owned).collect(),
        stored: numbers[1],
        refresh: numbers[2],
        fresh: numbers[3],
        expires: numbers[4],
    };
    Some((numbers[0], record))
}

fn unexpected() -> StoreError {
    let why = "a script answered in an unknown form";
    StoreError::with_source(StoreErrorKind::Failed, why)
}
