//! One-time values on Redis: one string each, one script per method.

use bytes::Bytes;

use super::{Expect, Keep, Kept, OnceKey, OnceStore, PutOutcome, SaveOutcome};
use crate::backend::redis::{RedisStore, Reply, Script};
use crate::core::ttl::Ttl;
use crate::core::{StoreError, StoreErrorKind, StoreFuture, Timestamp};
use crate::data::Names;

static PUT: Script = Script::named("once.put", include_str!("put.lua"));
static TAKE: Script = Script::named("once.take", include_str!("take.lua"));
static PEEK: Script = Script::named("once.peek", include_str!("peek.lua"));
static SAVE: Script = Script::named("once.save", include_str!("save.lua"));
static REMOVE: Script = Script::named("once.remove", include_str!("remove.lua"));

impl OnceStore for RedisStore {
    fn put(&self, key: &OnceKey, value: Bytes, ttl: Ttl) -> StoreFuture<PutOutcome> {
        self.script(&PUT, &[key_of(self, key)])
            .arg(value)
            .num(ttl.as_millis())
            .run(|reply| match reply.int()? {
                1 => Ok(PutOutcome::Stored),
                _ => Ok(PutOutcome::Exists),
            })
    }

    fn take(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        self.script(&TAKE, &[key_of(self, key)]).run(kept)
    }

    fn peek(&self, key: &OnceKey) -> StoreFuture<Option<Kept>> {
        self.script(&PEEK, &[key_of(self, key)]).run(kept)
    }

    fn save(
        &self,
        key: &OnceKey,
        value: Bytes,
        expect: Expect,
        keep: Keep,
    ) -> StoreFuture<SaveOutcome> {
        let expected = match expect {
            Expect::Any => "any".to_owned(),
            Expect::Absent => "0".to_owned(),
            // No value ever has version 0: it is refused like any other that is not there.
            Expect::Version(0) => "-1".to_owned(),
            Expect::Version(version) => version.to_string(),
        };
        self.script(&SAVE, &[key_of(self, key)])
            .arg(value)
            .arg(expected)
            .num(keep.ttl.as_millis())
            .num(keep.max_age.as_millis())
            .run(|reply| {
                let mut numbers = reply.array()?.into_iter().map(Reply::int);
                let (Some(done), Some(version)) = (numbers.next(), numbers.next()) else {
                    return Err(unexpected());
                };
                let version = u64::try_from(version?).map_err(|_| unexpected())?;
                Ok(match done? {
                    1 => SaveOutcome::Saved { version },
                    _ => SaveOutcome::Conflict { version },
                })
            })
    }

    fn remove(&self, key: &OnceKey) -> StoreFuture<bool> {
        self.script(&REMOVE, &[key_of(self, key)])
            .run(|reply| Ok(reply.int()? == 1))
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.beside(Names::default).contradicts(name, what)
    }
}

/// Name and key are the hash tag: values spread over a cluster.
fn key_of(store: &RedisStore, key: &OnceKey) -> String {
    store.key("once").tag_of(&key.name, &key.key).finish()
}

fn kept(reply: Reply) -> Result<Option<Kept>, StoreError> {
    // What others wrote under its key is no value.
    Ok(reply.opt_bytes()?.and_then(|whole| parse(&whole)))
}

fn parse(whole: &Bytes) -> Option<Kept> {
    let mut numbers = [0_u64; 4];
    let mut rest = 0;
    for number in &mut numbers {
        let length = whole[rest..].iter().position(|byte| *byte == b' ')?;
        let text = std::str::from_utf8(&whole[rest..rest + length]).ok()?;
        *number = text.parse().ok()?;
        rest += length + 1;
    }
    Some(Kept {
        value: whole.slice(rest..),
        version: numbers[0],
        created_at: Timestamp::from_millis(numbers[1]),
        updated_at: Timestamp::from_millis(numbers[2]),
        expires_at: Timestamp::from_millis(numbers[3]),
    })
}

fn unexpected() -> StoreError {
    let why = "a one-time value has an unknown form";
    StoreError::with_source(StoreErrorKind::Failed, why)
}
