//! Logs on Redis: a stream under one key, one script per method, so one command.

use bytes::Bytes;

use super::{From, HEAD_KEPT, Kept, Page, Retain, TopicKey, TopicStore};
use crate::backend::redis::{RedisStore, Reply, Script};
use crate::core::{
    KeyBuilder, NoticeCallback, StoreError, StoreErrorKind, StoreFuture, Subscription, Timestamp,
};
use crate::data::topic::event::EventId;
use crate::data::{Names, subscribe_and_stay};

static PUBLISH: Script = Script::named(
    "topic.publish",
    concat!(include_str!("topic.lua"), include_str!("publish.lua")),
);
static READ: Script = Script::named(
    "topic.read",
    concat!(include_str!("topic.lua"), include_str!("read.lua")),
);

impl TopicStore for RedisStore {
    fn publish(&self, key: &TopicKey, payload: Bytes, retain: Retain) -> StoreFuture<Kept> {
        self.script(&PUBLISH, &[log(self, key)])
            .arg(&payload)
            .num(retain.events)
            .num(millis(retain.time))
            .num(millis(retain.time + HEAD_KEPT))
            .arg(channel(self, key))
            .run(move |reply| {
                let told = Kept::from_notice(reply.bytes()?).ok_or_else(unexpected)?;
                Ok(Kept { payload, ..told })
            })
    }

    fn read(&self, key: &TopicKey, from: From, retain: Retain, most: usize) -> StoreFuture<Page> {
        let (how, after) = match from {
            From::After(after) => ("after", after.unwrap_or(EventId::new(0, 0))),
            From::Latest => ("latest", EventId::new(0, 0)),
        };
        self.script(&READ, &[log(self, key)])
            .arg(how)
            .num(millis(retain.time))
            .num(most as u64)
            .num(after.epoch())
            .num(after.seq())
            .run(page)
    }

    fn subscribe(&self, key: &TopicKey, callback: NoticeCallback) -> StoreFuture<Subscription> {
        subscribe_and_stay(self, "topic", &channel(self, key), callback)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.beside(Names::default).contradicts(name, what)
    }
}

fn log(store: &RedisStore, key: &TopicKey) -> String {
    placed(store.key("topic"), key).plain("log").finish()
}

fn channel(store: &RedisStore, key: &TopicKey) -> String {
    placed(store.channel("topic"), key).finish()
}

/// Name and key are the hash tag: logs spread over a cluster.
fn placed(start: KeyBuilder, key: &TopicKey) -> KeyBuilder {
    start.tag_of(&key.name, &key.key)
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX / 4)
}

fn page(reply: Reply) -> Result<Page, StoreError> {
    if reply == Reply::Nil {
        return Ok(Page {
            head: None,
            events: Vec::new(),
        });
    }
    let mut parts = reply.array()?.into_iter();
    let head = Some(id(&mut parts)?);
    let events = parts.map(|event| {
        let mut parts = event.array()?.into_iter();
        Ok(Kept {
            id: id(&mut parts)?,
            at: Timestamp::from_millis(number(next(&mut parts)?)?),
            payload: next(&mut parts)?.bytes()?,
        })
    });
    let events = events.collect::<Result<_, StoreError>>()?;
    Ok(Page { head, events })
}

fn id(parts: &mut impl Iterator<Item = Reply>) -> Result<EventId, StoreError> {
    Ok(EventId::new(number(next(parts)?)?, number(next(parts)?)?))
}

fn next(parts: &mut impl Iterator<Item = Reply>) -> Result<Reply, StoreError> {
    parts.next().ok_or_else(unexpected)
}

fn number(reply: Reply) -> Result<u64, StoreError> {
    u64::try_from(reply.int()?).map_err(|_| unexpected())
}

fn unexpected() -> StoreError {
    let why = "a script answered in an unknown form";
    StoreError::with_source(StoreErrorKind::Failed, why)
}
