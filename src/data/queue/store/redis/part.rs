//! Large parts of jobs: committed by one script that keeps them as they came, then put in their places a piece at a time, so
//! that no script takes long. Whoever meets one that is not all in its place helps, and asks again.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::{COMMIT, UNFOLD, call, outcomes, put_time};
use crate::backend::redis::{Call, RedisStore, Reply};
use crate::core::{StoreError, StoreErrorKind, StoreFuture, monotonic};
use crate::data::queue::policy::millis;
use crate::data::queue::store::values::pack;
use crate::data::queue::store::{Again, EnqueueOutcome, NewJob, QueueName, Rules};

/// Jobs that one script puts in their places; more than these are a part.
const PIECE: usize = 64;

/// Says whether so many jobs are too much for one script, and such that it is known at once what becomes of each: the others
/// have to be gone through in order.
pub(super) fn is_one(jobs: &[NewJob]) -> bool {
    let mut ids = HashSet::new();
    let mut is_plain = |job: &NewJob| {
        let keeps = job.once.is_none() || job.again == Again::Keep;
        job.digest.is_none() && keeps && job.once.is_none_or(|id| ids.insert(id))
    };
    jobs.len() > PIECE && jobs.iter().all(&mut is_plain)
}

/// Nothing was done for whoever others' parts were in the way of for so long.
const LONGEST: Duration = Duration::from_secs(5);

/// Adds a part.
pub(super) fn enqueue(
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

/// Puts what is left of a part in its place. One script after the other: others get their turn in between.
async fn unfold(store: &RedisStore, queue: &QueueName) -> Result<(), StoreError> {
    let call = call(store, &UNFOLD, queue, None);
    while call.ask().await?.int()? > 0 {}
    Ok(())
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
    let size = |job: &NewJob| job.recipient.as_str().len() + job.item.len() + 64;
    let mut packed = Vec::with_capacity(jobs.iter().map(size).sum());
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

fn put(text: &[u8], into: &mut Vec<u8>) {
    into.extend((text.len() as u32).to_be_bytes());
    into.extend(text);
}
