//! Records on Redis: one string under one key, one script per method.

use std::time::Duration;

use bytes::Bytes;

use super::{Begin, Claim, Health, IdempotencyStore, Owned, Resolution, Resolved};
use crate::backend::redis::{RedisStore, Reply, Script};
use crate::core::{StoreError, StoreErrorKind, StoreFuture, Timestamp};
use crate::idempotency::policy::LeaseEnd;
use crate::idempotency::record::{
    Answer, AnswerContent, Fence, Head, Nonce, Record, RecordId, State, UNKNOWN_KEPT,
};

static BEGIN: Script = Script::new(include_str!("begin.lua"));
static RENEW: Script = Script::new(include_str!("renew.lua"));
static COMPLETE: Script = Script::new(include_str!("complete.lua"));
static RELEASE: Script = Script::new(include_str!("release.lua"));
static PEEK: Script = Script::new(include_str!("peek.lua"));
static HEALTH: Script = Script::new(include_str!("health.lua"));
static RESOLVE: Script = Script::new(include_str!("resolve.lua"));

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
