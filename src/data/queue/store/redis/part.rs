//! Large parts of jobs: committed by one script that keeps them as they came, then put in their places a piece at a time, so
//! that no script takes long. Whoever meets one that is not all in its place helps, and asks again.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::{
    COMMIT, FOLLOW, LIST, PROMISE, STAGE, UNFOLD, call, call_with, job_id, listed, outcomes,
    put_time, text, wish, with_ids,
};
use crate::backend::redis::{Call, RedisStore, Reply};
use crate::core::{StoreError, StoreErrorKind, StoreFuture, base64url, monotonic};
use crate::data::queue::policy::millis;
use crate::data::queue::store::values::pack;
use crate::data::queue::store::{
    Again, DIGEST_BYTES, EnqueueOutcome, JobId, LEASE_BYTES, Listed, Listing, NewJob, QueueName,
    Rules,
};

/// Jobs that one script puts in their places; more than these are a part.
const PIECE: usize = 64;

/// As many as one script goes through in order.
const PIECE_IN_ORDER: usize = 32;

/// Bytes that one script carries, but for those of a single job.
const CARRIED: usize = 128 * 1_024;

/// Bytes of a piece.
const PIECE_BYTES: usize = 64 * 1_024;

/// Pieces that were put aside wait so long for their promise.
const STAGED_FOR: Duration = Duration::from_secs(60);

/// Says whether so many jobs are too much for one script.
pub(super) fn is_one(jobs: &[NewJob]) -> bool {
    jobs.len() > PIECE || (jobs.len() > 1 && is_large(jobs))
}

/// Says whether one script should not carry them.
fn is_large(jobs: &[NewJob]) -> bool {
    jobs.iter().map(bytes).sum::<usize>() > CARRIED
}

fn bytes(job: &NewJob) -> usize {
    job.recipient.as_str().len() + job.item.len() + 64
}

/// In order, cut into pieces of so many jobs and bytes.
fn cut(jobs: &[NewJob]) -> Vec<&[NewJob]> {
    let (mut pieces, mut first, mut size) = (Vec::new(), 0, 0);
    for (at, job) in jobs.iter().enumerate() {
        let own = bytes(job);
        if at > first && (at - first == PIECE_IN_ORDER || size + own > PIECE_BYTES) {
            pieces.push(&jobs[first..at]);
            (first, size) = (at, 0);
        }
        size += own;
    }
    pieces.push(&jobs[first..]);
    pieces
}

/// Says whether it is known at once what becomes of each job: others have to be gone through in order.
fn is_plain(jobs: &[NewJob]) -> bool {
    let mut ids = HashSet::new();
    let is_plain = |job: &NewJob| {
        let keeps = job.once.is_none() || job.again == Again::Keep;
        job.digest.is_none() && keeps && job.once.is_none_or(|id| ids.insert(id))
    };
    jobs.iter().all(is_plain)
}

/// Nothing was done for whoever others' parts were in the way of for so long.
const LONGEST: Duration = Duration::from_secs(5);

/// How long it is kept what became of the jobs of a part: others may have put it in its place.
const TOLD_FOR: Duration = Duration::from_secs(10);

/// Adds a part.
pub(super) fn enqueue(
    store: &RedisStore,
    queue: &QueueName,
    jobs: Vec<NewJob>,
    rules: &Rules,
) -> StoreFuture<Vec<EnqueueOutcome>> {
    if is_plain(&jobs) && !is_large(&jobs) {
        commit(store, queue, &jobs, rules)
    } else {
        let (store, queue, rules) = (store.clone(), QueueName::clone(queue), *rules);
        StoreFuture::boxed(async move {
            let count = jobs.len();
            let token = promise(&store, &queue, &jobs, &rules).await?;
            match follow(&store, &queue, &token, Whose::Own).await? {
                Some(told) => outcomes(told, count),
                None => Err(StoreErrorKind::TimedOut.into()),
            }
        })
    }
}

/// Adds a part of which it is known at once what becomes of it.
fn commit(
    store: &RedisStore,
    queue: &QueueName,
    jobs: &[NewJob],
    rules: &Rules,
) -> StoreFuture<Vec<EnqueueOutcome>> {
    let count = jobs.len();
    let highest = jobs.iter().map(|job| job.priority.rank()).min();
    let call = call(store, &COMMIT, queue, Some(rules))
        .num(rules.capacity)
        .num(rules.per_recipient)
        .num(millis(rules.remember_for))
        .num(highest.unwrap_or_default())
        .arg(recipients(jobs))
        .num(count.div_ceil(PIECE) as u64);
    let call = jobs
        .chunks(PIECE)
        .fold(call, |call, jobs| call.arg(piece(jobs)));
    let id = |job: &NewJob| job.once.map_or_else(Vec::new, Vec::from);
    let call = match jobs.iter().any(|job| job.once.is_some()) {
        true => jobs.iter().map(id).fold(call, Call::arg),
        false => call,
    };
    let (store, queue) = (store.clone(), QueueName::clone(queue));
    StoreFuture::boxed(async move {
        let added = whole(&store, &queue, call, move |reply| outcomes(reply, count)).await?;
        // It is added, whatever becomes of this: the next one who asks goes on.
        let _ = unfold(&store, &queue).await;
        Ok(added)
    })
}

/// Keeps a part that has to be gone through in order, and names it. Near the bounds of the queue it may still be refused.
async fn promise(
    store: &RedisStore,
    queue: &QueueName,
    jobs: &[NewJob],
    rules: &Rules,
) -> Result<String, StoreError> {
    let mut token = [0; 16];
    getrandom::fill(&mut token)
        .map_err(|error| StoreError::with_source(StoreErrorKind::Failed, error))?;
    let token = base64url(&token);
    let pieces: Vec<_> = cut(jobs).into_iter().map(piece_in_order).collect();
    let count = pieces.len();
    let carried = match is_large(jobs) {
        true => {
            stage(store, queue, &token, pieces).await?;
            Vec::new()
        }
        false => pieces,
    };
    let call = call_with(store, &PROMISE, queue, Some(rules), Some(&token))
        .num(rules.capacity)
        .num(rules.per_recipient)
        .num(millis(rules.remember_for))
        .num(DIGEST_BYTES as u64)
        .arg(recipients(jobs))
        .num(jobs.len() as u64)
        .arg(&token)
        .num(count as u64);
    let call = carried.into_iter().rev().fold(call, Call::arg);
    // Where it is gone before its time nothing is kept of it.
    let kept = |reply: Reply| reply.opt_bytes()?.ok_or(StoreErrorKind::Unavailable.into());
    whole(store, queue, call, kept).await?;
    Ok(token)
}

/// Puts the pieces of a part aside, some at a time: carried through one script, 4 MiB held the server up for 20 ms. What is
/// never promised goes by itself.
async fn stage(
    store: &RedisStore,
    queue: &QueueName,
    token: &str,
    pieces: Vec<Vec<u8>>,
) -> Result<(), StoreError> {
    let start = || {
        let call = call_with(store, &STAGE, queue, None, Some(token));
        call.num(millis(STAGED_FOR))
    };
    let (mut call, mut size, mut left) = (start(), 0, pieces.len());
    for piece in pieces {
        if size > 0 && size + piece.len() > CARRIED {
            call.ask().await?;
            (call, size) = (start(), 0);
        }
        size += piece.len();
        // The last one has the first number.
        call = call.num(left as u64).arg(piece);
        left -= 1;
    }
    call.ask().await?;
    Ok(())
}

/// Who goes through a part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// Who adds it, and wants to know what became of its jobs.
    Own,
    Others,
}

/// Goes through a part in order to its end; says what became of its jobs, where that is still known.
async fn follow(
    store: &RedisStore,
    queue: &QueueName,
    token: &str,
    whose: Whose,
) -> Result<Option<Reply>, StoreError> {
    let call = call_with(store, &FOLLOW, queue, None, Some(token))
        .arg(token)
        .num(u8::from(whose == Whose::Own))
        .num(millis(TOLD_FOR));
    loop {
        let reply = match call.ask().await {
            // Done or not: the next call goes on from there.
            Err(error) if error.kind() == StoreErrorKind::Unavailable => call.ask().await?,
            reply => reply?,
        };
        match reply {
            Reply::Int(left) if left > 0 => {}
            Reply::Bytes(_) => return Ok(Some(reply)),
            _ => return Ok(None),
        }
    }
}

/// Runs `call`, after what is left of a part was put in its place, where that makes a difference to it.
pub(super) fn whole<T: Send + 'static>(
    store: &RedisStore,
    queue: &QueueName,
    call: Call,
    decode: impl FnOnce(Reply) -> Result<T, StoreError> + Send + 'static,
) -> StoreFuture<T> {
    let (store, queue) = (store.clone(), QueueName::clone(queue));
    let asked = monotonic();
    StoreFuture::boxed(async move {
        loop {
            match call.ask().await? {
                Reply::Int(_) if asked.elapsed() > LONGEST => {
                    return Err(StoreErrorKind::Contention.into());
                }
                Reply::Int(_) => unfold(&store, &queue).await?,
                reply => return decode(reply),
            }
        }
    })
}

/// Shows jobs: the first answer says which, and the large ones of many come one answer after the other.
pub(super) fn list(
    store: &RedisStore,
    queue: &QueueName,
    listing: Listing,
    rules: &Rules,
) -> StoreFuture<Vec<Listed>> {
    let (store, queue, rules) = (store.clone(), QueueName::clone(queue), *rules);
    StoreFuture::boxed(async move {
        let (mut all, mut listing) = (Vec::new(), listing);
        loop {
            let call = call(&store, &LIST, &queue, Some(&rules)).num(LEASE_BYTES as u64);
            let call = match &listing {
                Listing::Of(recipient, most) => {
                    call.arg("of").arg(recipient.as_str()).num(*most as u64)
                }
                Listing::Ids(ids) => with_ids(call.arg("ids"), ids),
                Listing::Dead(most) => call.arg("dead").num(*most as u64),
            };
            let (shown, rest) = whole(&store, &queue, call, shown).await?;
            all.extend(shown);
            if rest.is_empty() {
                return Ok(all);
            }
            listing = Listing::Ids(rest);
        }
    })
}

/// The jobs of an answer, and which are still to be asked for.
fn shown(reply: Reply) -> Result<(Vec<Listed>, Vec<JobId>), StoreError> {
    let (mut shown, mut rest) = (Vec::new(), Vec::new());
    for reply in reply.array()? {
        match reply {
            Reply::Bytes(_) => rest.push(job_id(reply)?),
            job => shown.push(listed(job)?),
        }
    }
    Ok((shown, rest))
}

/// Puts what is left of a part in its place. One script after the other: others get their turn in between.
async fn unfold(store: &RedisStore, queue: &QueueName) -> Result<(), StoreError> {
    let call = call(store, &UNFOLD, queue, None);
    loop {
        match call.ask().await? {
            Reply::Int(left) if left > 0 => {}
            Reply::Int(_) => return Ok(()),
            token => {
                let token = text(token)?;
                follow(store, queue, &token, Whose::Others).await?;
            }
        }
    }
}

/// Whose the jobs are, in the order of their bytes, and how many each has.
fn recipients(jobs: &[NewJob]) -> Vec<u8> {
    let mut counts = BTreeMap::new();
    for job in jobs {
        *counts.entry(job.recipient.as_str()).or_insert(0_u16) += 1;
    }
    let mut packed = Vec::new();
    for (recipient, count) in counts {
        put(recipient.as_bytes(), &mut packed);
        packed.extend(count.to_be_bytes());
    }
    packed
}

/// Jobs as `unfold.lua` reads them.
fn piece(jobs: &[NewJob]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(jobs.iter().map(bytes).sum());
    packed.extend((jobs.len() as u16).to_be_bytes());
    for job in jobs {
        put_time(job, &mut packed);
        put(job.recipient.as_str().as_bytes(), &mut packed);
        put(&pack(std::slice::from_ref(&job.item)), &mut packed);
        let once = job.once.as_ref().map_or(&[][..], |id| &id[..]);
        packed.push(once.len() as u8);
        packed.extend(once);
    }
    packed
}

/// Jobs as `follow.lua` reads them.
fn piece_in_order(jobs: &[NewJob]) -> Vec<u8> {
    let mut packed = Vec::new();
    for job in jobs {
        put_time(job, &mut packed);
        put(job.recipient.as_str().as_bytes(), &mut packed);
        put(&pack(std::slice::from_ref(&job.item)), &mut packed);
        packed.extend(wish(job));
    }
    packed
}

fn put(text: &[u8], into: &mut Vec<u8>) {
    into.extend((text.len() as u32).to_be_bytes());
    into.extend(text);
}
