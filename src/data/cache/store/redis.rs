//! Cached records on Redis: a string each, stamps in one sorted set per group, the group as hash tag.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    Ask, CacheKey, CacheStore, Fetched, Fill, LeaseToken, Leased, Record, Right, Target, Written,
    notice,
};
use crate::backend::redis::{RedisStore, Reply, Script};
use crate::core::{
    Clock, NoticeCallback, StoreError, StoreErrorKind, StoreFuture, Subscription, SystemClock,
    base64url,
};

static FETCH: Script = Script::new(include_str!("fetch.lua"));
static WRITE: Script = Script::new(include_str!("write.lua"));
static INVALIDATE: Script = Script::new(include_str!("invalidate.lua"));

impl CacheStore for RedisStore {
    fn fetch(&self, group: &Arc<str>, key: &CacheKey, ask: Ask) -> StoreFuture<Fetched> {
        let call = self.script(&FETCH, &keys_of(self, group, key));
        let mut call = match ask {
            Ask::Read => call.arg("").arg("").arg("").arg(""),
            Ask::Lease(wish) => call
                .arg(text(wish.token))
                .num(u64::try_from(wish.lasts.as_millis()).unwrap_or(u64::MAX / 4))
                .num(u8::from(wish.take_over))
                .num(u8::from(wish.force)),
        };
        for prefix in key.prefixes() {
            call = call.arg(prefix);
        }
        call.run(fetched)
    }

    fn write(
        &self,
        group: &Arc<str>,
        key: &CacheKey,
        fill: Fill,
        sender: &str,
    ) -> StoreFuture<Written> {
        let token = match fill.right {
            Right::Lease(token) => text(token),
            Right::Always => String::new(),
        };
        let tags: String = fill.tags.iter().map(|tag| format!("{tag} ")).collect();
        let member = key.member();
        let mut call = self
            .script(&WRITE, &keys_of(self, group, key))
            .arg(token)
            .num(fill.refresh)
            .num(fill.fresh)
            .num(fill.life)
            .arg(tags)
            .arg(fill.payload)
            .arg(channel_of(self, group))
            .arg(notice(sender, std::slice::from_ref(&member)))
            .arg(notice(sender, &[format!("f{member}")]));
        for prefix in key.prefixes() {
            call = call.arg(prefix);
        }
        call.run(|reply| match reply.int()? {
            1 => Ok(Written::Stored),
            _ => Ok(Written::Refused),
        })
    }

    fn invalidate(&self, group: &Arc<str>, targets: Vec<Target>, sender: &str) -> StoreFuture<()> {
        let (mut keys, mut raised) = (vec![stamps_of(self, group)], Vec::new());
        for target in &targets {
            match target.as_key() {
                Some(key) => keys.extend(keys_of(self, group, key).into_iter().skip(1)),
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
}

fn stamps_of(store: &RedisStore, group: &str) -> String {
    store.key("cache").tag([group]).plain("stamps").finish()
}

fn keys_of(store: &RedisStore, group: &str, key: &CacheKey) -> [String; 3] {
    let own = |kind: &str| {
        let start = store.key("cache").tag([group]).plain(kind);
        start.plain(&key.entity).plain(key.key.as_str()).finish()
    };
    [stamps_of(store, group), own("record"), own("lease")]
}

fn channel_of(store: &RedisStore, group: &str) -> String {
    store.channel("cache").tag([group]).finish()
}

fn text(token: LeaseToken) -> String {
    base64url(&token.0)
}

fn fetched(reply: Reply) -> Result<Fetched, StoreError> {
    let mut parts = reply.array()?.into_iter();
    let now = parts.next().ok_or_else(unexpected)?.int()?;
    let leased = match parts.next().ok_or_else(unexpected)?.int()? {
        0 => Leased::No,
        1 => Leased::Given,
        _ => Leased::Busy,
    };
    let raw = parts.next().map_or(Ok(None), Reply::opt_bytes)?;
    let record = raw
        .map(|raw| parse(&raw).ok_or_else(unexpected))
        .transpose()?;
    Ok(Fetched {
        record,
        leased,
        now: u64::try_from(now).map_err(|_| unexpected())?,
    })
}

/// Reads `stamp stored refresh fresh expires length ` and the tags, with every length checked.
fn parse(raw: &Bytes) -> Option<Record> {
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
    Some(Record {
        payload: raw.slice(end..),
        tags: tags.split_whitespace().map(str::to_owned).collect(),
        stored: numbers[1],
        refresh: numbers[2],
        fresh: numbers[3],
        expires: numbers[4],
    })
}

fn unexpected() -> StoreError {
    let why = "a script answered in an unknown form";
    StoreError::with_source(StoreErrorKind::Failed, why)
}
