//! Queues on Redis: twelve keys under one hash tag, one script per method, so one command; but large parts take several (`part.rs`).

mod part;

use std::time::Duration;

use bytes::Bytes;
use smallvec::SmallVec;

use super::values::{kept_error, pack, unpack};
use super::{
    Again, Attempt, Claim, DEAD_KEPT, DEAD_KEPT_FOR, DIGEST_BYTES, Depth, Due, EnqueueOutcome,
    JobId, JobState, LEASE_BYTES, Leased, Listed, Listing, NewJob, Priority, QueueName, QueueStore,
    Rules, Settle, Settled, Swept, Token,
};
use crate::backend::redis::{Call, RedisStore, Reply, Script};
use crate::core::{
    Key, NoticeCallback, StoreError, StoreErrorKind, StoreFuture, Subscription, Timestamp,
};
use crate::data::Names;
use crate::data::queue::policy::millis;

macro_rules! script {
    ($name:literal, $($file:literal),+) => {
        Script::named(
            concat!("queue.", $name),
            concat!(include_str!("queue.lua"), $(include_str!($file)),+),
        )
    };
}

static ENQUEUE: Script = script!(
    "enqueue",
    "whole.lua",
    "moves.lua",
    "add.lua",
    "order.lua",
    "enqueue.lua"
);
static COMMIT: Script = script!("commit", "whole.lua", "moves.lua", "room.lua", "commit.lua");
static PROMISE: Script = script!(
    "promise",
    "whole.lua",
    "moves.lua",
    "room.lua",
    "promise.lua"
);
static STAGE: Script = script!("stage", "stage.lua");
static FOLLOW: Script = script!(
    "follow",
    "moves.lua",
    "add.lua",
    "order.lua",
    "weigh.lua",
    "follow.lua"
);
static UNFOLD: Script = script!("unfold", "moves.lua", "add.lua", "unfold.lua");
static LEASE: Script = script!("lease", "moves.lua", "lease.lua");
static ACK: Script = script!("ack", "ack.lua");
static NACK: Script = script!("nack", "moves.lua", "nack.lua");
static EXTEND: Script = script!("extend", "extend.lua");
static CANCEL: Script = script!("cancel", "whole.lua", "cancel.lua");
static LIST: Script = script!("list", "whole.lua", "moves.lua", "list.lua");
static COUNT: Script = script!("count", "whole.lua", "moves.lua", "count.lua");
static REVIVE: Script = script!("revive", "whole.lua", "moves.lua", "revive.lua");

/// The keys of a queue in the order of `queue.lua`.
const PARTS: [&str; 12] = [
    "ready", "delayed", "leased", "dead", "who", "jobs", "items", "once", "remember", "digest",
    "last", "part",
];

impl QueueStore for RedisStore {
    fn enqueue(
        &self,
        queue: &QueueName,
        jobs: Vec<NewJob>,
        rules: &Rules,
    ) -> StoreFuture<Vec<EnqueueOutcome>> {
        if part::is_one(&jobs) {
            return part::enqueue(self, queue, jobs, rules);
        }
        enqueue(self, queue, jobs, rules)
    }

    fn lease(&self, queue: &QueueName, claim: Claim, rules: &Rules) -> StoreFuture<Leased> {
        let call = call(self, &LEASE, queue, Some(rules))
            .arg(claim.token.0)
            .num(claim.most as u64)
            .num(millis(claim.lease))
            .num(LEASE_BYTES as u64)
            .arg(claim.recipient.as_ref().map_or("", Key::as_str));
        part::whole(self, queue, call, leased)
    }

    fn ack(&self, queue: &QueueName, token: Token, ids: Vec<JobId>) -> StoreFuture<Vec<Settled>> {
        with_ids(call(self, &ACK, queue, None).arg(token.0), &ids).run(settled)
    }

    fn nack(
        &self,
        queue: &QueueName,
        token: Token,
        jobs: Vec<(JobId, Settle)>,
        rules: &Rules,
    ) -> StoreFuture<Vec<Settled>> {
        let mut call = call(self, &NACK, queue, Some(rules)).arg(token.0);
        for (id, how) in jobs {
            let (how, time, error) = match how {
                Settle::After(wait, error) => (0, millis(wait), error),
                Settle::At(time, error) => (1, time.as_millis(), error),
                Settle::Dead(error) => (2, 0, error),
                Settle::GiveBack => (3, 0, String::new()),
            };
            let error = kept_error(error);
            call = call.arg(id.to_string()).num(how).num(time).arg(error);
        }
        call.run(settled)
    }

    fn extend(
        &self,
        queue: &QueueName,
        token: Token,
        ids: Vec<JobId>,
        lease: Duration,
    ) -> StoreFuture<Vec<Settled>> {
        let call = call(self, &EXTEND, queue, None).arg(token.0);
        with_ids(call.num(millis(lease)), &ids).run(settled)
    }

    fn cancel(
        &self,
        queue: &QueueName,
        recipient: &Key,
        ids: Vec<JobId>,
    ) -> StoreFuture<Vec<JobId>> {
        let call = call(self, &CANCEL, queue, None).arg(recipient.as_str());
        part::whole(self, queue, with_ids(call, &ids), |reply| {
            reply.array()?.into_iter().map(job_id).collect()
        })
    }

    fn list(&self, queue: &QueueName, listing: Listing, rules: &Rules) -> StoreFuture<Vec<Listed>> {
        part::list(self, queue, listing, rules)
    }

    fn count(
        &self,
        queue: &QueueName,
        recipient: Option<&Key>,
        rules: &Rules,
    ) -> StoreFuture<Depth> {
        let call = call(self, &COUNT, queue, Some(rules));
        let call = call.arg(recipient.map_or("", Key::as_str));
        part::whole(self, queue, call, |reply| {
            let mut parts = reply.array()?.into_iter();
            let mut depth = depth(&mut parts)?.ok_or_else(unexpected)?;
            depth.oldest = time_or_none(next(&mut parts)?)?;
            Ok(depth)
        })
    }

    fn revive(&self, queue: &QueueName, ids: Vec<JobId>, rules: &Rules) -> StoreFuture<Vec<JobId>> {
        let call = call(self, &REVIVE, queue, Some(rules));
        let call = call.num(rules.capacity).num(rules.per_recipient);
        part::whole(self, queue, with_ids(call, &ids), |reply| match reply {
            Reply::Nil => Err(StoreErrorKind::Full.into()),
            reply => reply.array()?.into_iter().map(job_id).collect(),
        })
    }

    fn subscribe(&self, queue: &QueueName, callback: NoticeCallback) -> StoreFuture<Subscription> {
        Self::subscribe(self, &channel(self, queue), callback)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.beside(Names::default).contradicts(name, what)
    }
}

/// Adds jobs by one script.
fn enqueue(
    store: &RedisStore,
    queue: &QueueName,
    jobs: Vec<NewJob>,
    rules: &Rules,
) -> StoreFuture<Vec<EnqueueOutcome>> {
    let (count, mut times) = (jobs.len(), Vec::with_capacity(10 * jobs.len()));
    jobs.iter().for_each(|job| put_time(job, &mut times));
    let asks = |job: &NewJob| job.once.is_some() || job.digest.is_some();
    let wishes: Vec<_> = match jobs.iter().any(asks) {
        true => jobs.iter().map(wish).collect(),
        false => Vec::new(),
    };
    let mut call = call(store, &ENQUEUE, queue, Some(rules))
        .num(rules.capacity)
        .num(rules.per_recipient)
        .num(millis(rules.remember_for))
        .num(DIGEST_BYTES as u64)
        .arg(times);
    for job in jobs {
        call = call.arg(job.recipient.as_str()).arg(pack(&[job.item]));
    }
    let call = wishes.into_iter().fold(call, Call::arg);
    part::whole(store, queue, call, move |reply| outcomes(reply, count))
}

/// How urgent a job is and when it is due, for `enqueue.lua`.
fn put_time(job: &NewJob, into: &mut Vec<u8>) {
    let (is_at, time) = match job.due {
        Due::After(wait) => (0, millis(wait)),
        Due::At(time) => (1, time.as_millis()),
    };
    into.extend([job.priority.rank(), is_at]);
    into.extend(time.to_be_bytes());
}

/// What else a job asks for.
fn wish(job: &NewJob) -> Vec<u8> {
    let (digest, window, most) = job.digest.as_ref().map_or(("", 0, 0), |wish| {
        (wish.key.as_str(), millis(wish.window), wish.max)
    });
    let once = job.once.as_ref().map_or(&[][..], |id| &id[..]);
    let mut wish = Vec::with_capacity(18 + once.len() + digest.len());
    wish.push(u8::from(job.again == Again::Replace));
    wish.extend(window.to_be_bytes());
    wish.extend(most.to_be_bytes());
    // Of 32 bytes, and a key: both lengths fit.
    wish.push(once.len() as u8);
    wish.extend(once);
    wish.extend((digest.len() as u32).to_be_bytes());
    wish.extend(digest.as_bytes());
    wish
}

/// Bytes of an id as text.
const ID: usize = 16;

/// What became of a part that had no room.
const REFUSED: &[u8] = b"F";

/// The first of new ids in a row, or a code and an id for each job; nothing where there was no room.
fn outcomes(reply: Reply, count: usize) -> Result<Vec<EnqueueOutcome>, StoreError> {
    let text = reply.opt_bytes()?.ok_or(StoreErrorKind::Full)?;
    if text == REFUSED {
        return Err(StoreErrorKind::Full.into());
    }
    if text.len() != ID && text.len() != count * (1 + ID) {
        // They were added, but these are the answers of others.
        return Err(StoreErrorKind::TimedOut.into());
    }
    let id = |text: &[u8]| {
        let text = std::str::from_utf8(text).map_err(|_| unexpected())?;
        text.parse::<JobId>().map_err(|_| unexpected())
    };
    if text.len() == ID {
        let (first, count) = (id(&text)?.0, count as u64);
        return Ok((first..first.saturating_add(count))
            .map(JobId)
            .map(EnqueueOutcome::New)
            .collect());
    }
    let outcome = |text: &[u8]| {
        let (code, rest) = text.split_first().ok_or_else(unexpected)?;
        let id = id(rest)?;
        match code {
            b'0' => Ok(EnqueueOutcome::New(id)),
            b'1' => Ok(EnqueueOutcome::Duplicate(id)),
            b'2' => Ok(EnqueueOutcome::Replaced(id)),
            b'3' => Ok(EnqueueOutcome::Joined(id)),
            _ => Err(unexpected()),
        }
    };
    text.chunks(1 + ID).map(outcome).collect()
}

fn channel(store: &RedisStore, queue: &QueueName) -> String {
    store.channel("queue").tag([queue]).finish()
}

/// Starts a call with what all scripts of a queue have in common.
fn call(
    store: &RedisStore,
    script: &'static Script,
    queue: &QueueName,
    rules: Option<&Rules>,
) -> Call {
    call_with(store, script, queue, rules, None)
}

/// The same with what became of the jobs of the part `token`, what is counted of them, and where they are put aside.
fn call_with(
    store: &RedisStore,
    script: &'static Script,
    queue: &QueueName,
    rules: Option<&Rules>,
    token: Option<&str>,
) -> Call {
    let key = store.key("queue").tag([queue]);
    let keys = PARTS.iter().map(|part| key.clone().plain(part).finish());
    let of_part = |part| Some(key.clone().plain(part).plain(token?).finish());
    let of_part = ["told", "book", "stage"].into_iter().filter_map(of_part);
    let keys: SmallVec<[String; 15]> = keys.chain(of_part).collect();
    let (attempts, expire, aging) = rules.map_or((u32::MAX, 0, 0), |rules| {
        let (expire, aging) = (millis(rules.expire_after), millis(rules.aging));
        (rules.attempts, expire, aging)
    });
    store
        .script(script, &keys)
        .arg(channel(store, queue))
        .num(attempts)
        .num(expire)
        .num(aging)
        .num(DEAD_KEPT)
        .num(millis(DEAD_KEPT_FOR))
}

fn with_ids(call: Call, ids: &[JobId]) -> Call {
    ids.iter().fold(call, |call, id| call.arg(id.to_string()))
}

fn settled(reply: Reply) -> Result<Vec<Settled>, StoreError> {
    let codes = reply.array()?.into_iter();
    codes
        .map(|code| match code.int()? {
            0 => Ok(Settled::Lost),
            1 => Ok(Settled::Done),
            2 => Ok(Settled::Gone),
            3 => Ok(Settled::Died),
            _ => Err(unexpected()),
        })
        .collect()
}

fn leased(reply: Reply) -> Result<Leased, StoreError> {
    let mut parts = reply.array()?.into_iter();
    let (now, until) = (time(next(&mut parts)?)?, time(next(&mut parts)?)?);
    let next_due = time_or_none(next(&mut parts)?)?;
    let recipient = key(next(&mut parts)?)?;
    let swept = Swept {
        lost: number(next(&mut parts)?)?,
        dead: number(next(&mut parts)?)?,
        expired: number(next(&mut parts)?)?,
        dropped: number(next(&mut parts)?)?,
    };
    let depth = depth(&mut parts)?;
    let jobs: Vec<_> = parts.map(attempt).collect::<Result<_, _>>()?;
    Ok(Leased {
        recipient: (!jobs.is_empty()).then_some(recipient),
        jobs,
        until,
        now,
        next_due,
        swept,
        depth,
    })
}

fn attempt(reply: Reply) -> Result<Attempt, StoreError> {
    let mut parts = reply.array()?.into_iter();
    Ok(Attempt {
        id: job_id(next(&mut parts)?)?,
        priority: priority(next(&mut parts)?)?,
        attempt: tries(next(&mut parts)?)?,
        due: time(next(&mut parts)?)?,
        items: items(next(&mut parts)?)?,
    })
}

fn listed(reply: Reply) -> Result<Listed, StoreError> {
    let mut parts = reply.array()?.into_iter();
    Ok(Listed {
        id: job_id(next(&mut parts)?)?,
        recipient: key(next(&mut parts)?)?,
        state: match &next(&mut parts)?.bytes()?[..] {
            b"a" => JobState::Leased,
            b"b" => JobState::Ready,
            b"c" => JobState::Delayed,
            b"d" => JobState::Dead,
            _ => return Err(unexpected()),
        },
        priority: priority(next(&mut parts)?)?,
        attempts: tries(next(&mut parts)?)?,
        due: time(next(&mut parts)?)?,
        last_error: {
            let error = next(&mut parts)?.bytes()?;
            let text = String::from_utf8_lossy(&error).into_owned();
            (!text.is_empty()).then_some(text)
        },
        items: items(next(&mut parts)?)?,
    })
}

/// The numbers of jobs; `None` where they were not counted.
fn depth(parts: &mut impl Iterator<Item = Reply>) -> Result<Option<Depth>, StoreError> {
    let ready = next(parts)?.int()?;
    let depth = Depth {
        ready: ready.cast_unsigned(),
        delayed: number(next(parts)?)?,
        leased: number(next(parts)?)?,
        dead: number(next(parts)?)?,
        oldest: None,
    };
    Ok((ready >= 0).then_some(depth))
}

/// The items that lie with their job, or those of all its pages.
fn items(reply: Reply) -> Result<Vec<Bytes>, StoreError> {
    let pages = match reply {
        Reply::Array(pages) => pages,
        page => return Ok(unpack(page.bytes()?)),
    };
    let mut items = Vec::new();
    for page in pages {
        items.extend(unpack(page.bytes()?));
    }
    Ok(items)
}

fn next(parts: &mut impl Iterator<Item = Reply>) -> Result<Reply, StoreError> {
    parts.next().ok_or_else(unexpected)
}

fn text(reply: Reply) -> Result<String, StoreError> {
    String::from_utf8(reply.bytes()?.to_vec()).map_err(|_| unexpected())
}

fn key(reply: Reply) -> Result<Key, StoreError> {
    Ok(Key::from_escaped(text(reply)?))
}

fn job_id(reply: Reply) -> Result<JobId, StoreError> {
    text(reply)?.parse().map_err(|_| unexpected())
}

fn priority(reply: Reply) -> Result<Priority, StoreError> {
    let rank = u8::try_from(reply.int()?).map_err(|_| unexpected())?;
    Ok(Priority::of_rank(rank))
}

fn tries(reply: Reply) -> Result<u32, StoreError> {
    u32::try_from(reply.int()?).map_err(|_| unexpected())
}

fn number(reply: Reply) -> Result<u64, StoreError> {
    u64::try_from(reply.int()?).map_err(|_| unexpected())
}

fn time(reply: Reply) -> Result<Timestamp, StoreError> {
    number(reply).map(Timestamp::from_millis)
}

fn time_or_none(reply: Reply) -> Result<Option<Timestamp>, StoreError> {
    match reply {
        Reply::Bytes(bytes) if bytes.is_empty() => Ok(None),
        reply => time(reply).map(Some),
    }
}

fn unexpected() -> StoreError {
    let why = "a script answered in an unknown form";
    StoreError::with_source(StoreErrorKind::Failed, why)
}
