//! Records on Redis: one string under one key, one script per method.

use std::time::Duration;

use bytes::Bytes;

use super::{Begin, Claim, Cursor, Health, IdempotencyStore, Owned, Purged, Resolution, Resolved};
use crate::backend::redis::{RedisStore, Reply, Script};
use crate::core::{StoreError, StoreErrorKind, StoreFuture, Timestamp};
use crate::idempotency::policy::LeaseEnd;
use crate::idempotency::record::{
    Answer, AnswerContent, Fence, Head, Nonce, Record, RecordId, ScopeTag, State, UNKNOWN_KEPT,
};

/// A script that ends records.
macro_rules! ends {
    ($file:literal) => {
        Script::new(concat!(include_str!("over.lua"), include_str!($file)))
    };
}

static BEGIN: Script = Script::new(include_str!("begin.lua"));
static RENEW: Script = Script::new(include_str!("renew.lua"));
static COMPLETE: Script = Script::new(include_str!("complete.lua"));
static RELEASE: Script = ends!("release.lua");
static PEEK: Script = Script::new(include_str!("peek.lua"));
static HEALTH: Script = Script::new(include_str!("health.lua"));
static RESOLVE: Script = ends!("resolve.lua");
static PURGE: Script = ends!("purge.lua");

impl IdempotencyStore for RedisStore {
    fn begin(&self, key: &RecordId, claim: &Claim) -> StoreFuture<Begin> {
        self.script(&BEGIN, &[key_of(self, key)])
            .arg(claim.nonce.0)
            .arg(claim.fingerprint.hash)
            .num(claim.fingerprint.rule)
            .num(millis(claim.lease))
            .num(millis(claim.keep))
            .num(claim.at_lease_end.byte())
            .run(begun)
    }

    fn renew(
        &self,
        key: &RecordId,
        nonce: Nonce,
        lease: Duration,
        end: LeaseEnd,
    ) -> StoreFuture<Owned> {
        let keep = if end == LeaseEnd::Indeterminate {
            UNKNOWN_KEPT
        } else {
            Duration::ZERO
        };
        self.script(&RENEW, &[key_of(self, key)])
            .arg(nonce.0)
            .num(millis(lease))
            .num(end.byte())
            .num(millis(keep))
            .run(owned)
    }

    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned> {
        self.script(&COMPLETE, &[key_of(self, key)])
            .arg(nonce.0)
            .num(millis(ttl))
            .arg(answer.fingerprint.hash)
            .num(answer.fingerprint.rule)
            .num(state_of(&answer.content))
            .arg(answer.content.encode())
            .run(owned)
    }

    fn release(&self, key: &RecordId, nonce: Nonce) -> StoreFuture<Owned> {
        self.script(&RELEASE, &[key_of(self, key)])
            .arg(nonce.0)
            .run(owned)
    }

    fn peek(&self, key: &RecordId) -> StoreFuture<Option<Record>> {
        self.script(&PEEK, &[key_of(self, key)])
            .run(|reply| match reply {
                Reply::Nil => Ok(None),
                found => {
                    let mut parts = found.array()?.into_iter();
                    let bytes = next(&mut parts)?.bytes()?;
                    Ok(Some(Record::decode(&bytes, time(next(&mut parts)?)?)))
                }
            })
    }

    fn resolve(&self, key: &RecordId, fence: Fence, to: Resolution) -> StoreFuture<Resolved> {
        let call = self.script(&RESOLVE, &[key_of(self, key)]).num(fence.0);
        let call = match to {
            Resolution::Release => call.num(0).num(0).arg(""),
            Resolution::Answer(answer, ttl) => call
                .num(state_of(&answer.content))
                .num(millis(ttl))
                .arg(answer.content.encode()),
        };
        call.run(|reply| match reply.int()? {
            0 => Ok(Resolved::Done),
            1 => Ok(Resolved::Changed),
            2 => Ok(Resolved::Live),
            _ => Err(unexpected()),
        })
    }

    fn purge(&self, scope: ScopeTag, page: Option<Cursor>) -> StoreFuture<Purged> {
        let (slot, at) = page.map_or((0, 0), place_of);
        let (own, pattern) = (self.clone(), pattern_of(self, scope));
        let call = self.script(&PURGE, &NO_KEYS).to_slot(slot);
        let page = call.arg(pattern).arg(at.to_string());
        page.run(move |reply| {
            let mut parts = reply.array()?.into_iter();
            let removed = u64::try_from(next(&mut parts)?.int()?).map_err(|_| unexpected())?;
            let at = next(&mut parts)?.bytes()?;
            let at = std::str::from_utf8(&at).ok().and_then(|at| at.parse().ok());
            let next = match at.ok_or_else(unexpected)? {
                0 => own.next_node(slot).map(|slot| cursor(slot, 0)),
                at => Some(cursor(slot, at)),
            };
            Ok(Purged { removed, next })
        })
    }

    fn health(&self) -> StoreFuture<Health> {
        let any = RecordId::from_bytes([0; 32]);
        self.script(&HEALTH, &[key_of(self, &any)]).run(health_of)
    }
}

fn health_of(reply: Reply) -> Result<Health, StoreError> {
    match reply.int()? {
        0 => Ok(Health::Good),
        1 => Ok(Health::MayEvict),
        _ => Err(unexpected()),
    }
}

fn key_of(store: &RedisStore, id: &RecordId) -> String {
    store.key("idempotency").plain(id).finish()
}

const NO_KEYS: [&str; 0] = [];

/// What all keys of a caller look like, and no others: a prefix of the application's may have signs of patterns in it.
fn pattern_of(store: &RedisStore, scope: ScopeTag) -> String {
    let start = store.key("idempotency").plain(scope).finish();
    let mut pattern = String::with_capacity(start.len() + 8);
    for sign in start.chars() {
        if matches!(sign, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            pattern.push('\\');
        }
        pattern.push(sign);
    }
    pattern + ":*"
}

/// A page lies on the node that has this slot, at this place of its keys.
fn cursor(slot: u16, at: u64) -> Cursor {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&slot.to_be_bytes());
    bytes[2..10].copy_from_slice(&at.to_be_bytes());
    Cursor(bytes)
}

fn place_of(Cursor(bytes): Cursor) -> (u16, u64) {
    let [a, b, at @ ..] = bytes;
    let [c, d, e, f, g, h, i, j, ..] = at;
    let at = u64::from_be_bytes([c, d, e, f, g, h, i, j]);
    (u16::from_be_bytes([a, b]), at)
}

fn state_of(content: &AnswerContent) -> u8 {
    match content.state() {
        State::Answered => 2,
        _ => 3,
    }
}

fn millis(duration: Duration) -> u64 {
    // Later than the year 9999 is as good as never, and keeps every number exact in Lua.
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .min(Timestamp::MAX.as_millis() / 2)
}

fn begun(reply: Reply) -> Result<Begin, StoreError> {
    let mut parts = reply.array()?.into_iter();
    let (found, what) = (next(&mut parts)?.int()?, next(&mut parts)?);
    if found == 0 {
        let fence = u64::try_from(what.int()?).map_err(|_| unexpected())?;
        if parts.next().is_some() {
            super::took_over();
        }
        return Ok(Begin::Run(Fence(fence)));
    }
    let (bytes, now) = (what.bytes()?, time(next(&mut parts)?)?);
    if found == 4 {
        return Ok(Begin::Done(Record::decode(&bytes, now)));
    }
    // The script looked at the same bytes; should we read them otherwise, nothing may run.
    let Some(head) = Head::decode(&bytes, now) else {
        return Ok(Begin::Done(Record::decode(&Bytes::new(), now)));
    };
    match found {
        1 => Ok(Begin::Mismatch(head)),
        2 => Ok(Begin::Running(head)),
        3 => Ok(Begin::Unknown(head)),
        _ => Err(unexpected()),
    }
}

fn owned(reply: Reply) -> Result<Owned, StoreError> {
    match reply.int()? {
        1 => Ok(Owned::Yes),
        0 => Ok(Owned::Lost),
        _ => Err(unexpected()),
    }
}

fn next(parts: &mut impl Iterator<Item = Reply>) -> Result<Reply, StoreError> {
    parts.next().ok_or_else(unexpected)
}

fn time(reply: Reply) -> Result<Timestamp, StoreError> {
    let millis = u64::try_from(reply.int()?).map_err(|_| unexpected())?;
    Ok(Timestamp::from_millis(millis))
}

fn unexpected() -> StoreError {
    StoreError::with_source(
        StoreErrorKind::Failed,
        "a script answered in an unknown form",
    )
}
