//! Queues in this process: one entry per queue, each method a closure under the lock of its shard.

mod board;

use std::time::Duration;

use bytes::Bytes;

use self::board::{Board, ROW};
use super::{
    Claim, Depth, EnqueueOutcome, JobId, Leased, Listed, Listing, NewJob, QueueName, QueueStore,
    Rules, Settle, Settled, Token,
};
use crate::backend::memory::{Entry, Full, MemoryStore};
use crate::core::{Key, NoticeCallback, StoreError, StoreFuture, Subscription};
use crate::data::Names;
use crate::data::queue::policy::millis;

/// A queue is never evicted: nothing in it may vanish.
impl Entry for Board {
    fn weight(&self) -> usize {
        self.bytes()
    }
}

/// A step on the queue, and a notice to those who wait if it gave them something to do.
fn step<R>(
    store: &MemoryStore,
    queue: &QueueName,
    room: usize,
    change: impl FnOnce(&mut Board, u64) -> Result<R, StoreError>,
) -> StoreFuture<R> {
    let key = store.hash(|hasher| hasher.part(queue.as_bytes()));
    // Read under the lock, so that of two steps the later one never sees the earlier time.
    let done = store.table::<Board>().update_timed(
        &[key],
        || store.now_micros(),
        |slots, now| {
            if slots.get(0).is_none() {
                slots.set(0, Board::default(), u64::MAX)?;
            }
            slots.reserve(0, room)?;
            let board = slots.get_mut(0).ok_or(Full)?;
            let before = board.alarm();
            let answer = change(board, now / 1_000)?;
            Ok((answer, board.alarm().is_before(before)))
        },
    );
    StoreFuture::ready(done.map(|(answer, rings)| {
        if rings {
            store.publish(&channel(queue), &Bytes::new());
        }
        answer
    }))
}

fn channel(queue: &QueueName) -> String {
    format!("queue:{queue}")
}

impl QueueStore for MemoryStore {
    fn enqueue(
        &self,
        queue: &QueueName,
        jobs: Vec<NewJob>,
        rules: &Rules,
    ) -> StoreFuture<Vec<EnqueueOutcome>> {
        let room = jobs.iter().map(|job| job.item.len() + ROW).sum();
        step(self, queue, room, |board, now| {
            board.enqueue(jobs, rules, now)
        })
    }

    fn lease(&self, queue: &QueueName, claim: Claim, rules: &Rules) -> StoreFuture<Leased> {
        step(self, queue, 0, |board, now| {
            Ok(board.lease(&claim, rules, now))
        })
    }

    fn ack(&self, queue: &QueueName, token: Token, ids: Vec<JobId>) -> StoreFuture<Vec<Settled>> {
        step(self, queue, 0, |board, now| {
            Ok(ids.iter().map(|id| board.ack(*id, token, now)).collect())
        })
    }

    fn nack(
        &self,
        queue: &QueueName,
        token: Token,
        jobs: Vec<(JobId, Settle)>,
        rules: &Rules,
    ) -> StoreFuture<Vec<Settled>> {
        step(self, queue, 0, |board, now| {
            let mut settle = |(id, how)| board.nack(id, token, how, rules, now);
            Ok(jobs.into_iter().map(&mut settle).collect())
        })
    }

    fn extend(
        &self,
        queue: &QueueName,
        token: Token,
        ids: Vec<JobId>,
        lease: Duration,
    ) -> StoreFuture<Vec<Settled>> {
        step(self, queue, 0, |board, now| {
            let until = now + millis(lease);
            let mut extend = |id: &JobId| board.extend(*id, token, until, now);
            Ok(ids.iter().map(&mut extend).collect())
        })
    }

    fn cancel(
        &self,
        queue: &QueueName,
        recipient: &Key,
        ids: Vec<JobId>,
    ) -> StoreFuture<Vec<JobId>> {
        step(self, queue, 0, |board, _| {
            let mut gone = ids;
            gone.retain(|id| board.cancel(*id, recipient));
            Ok(gone)
        })
    }

    fn list(&self, queue: &QueueName, listing: Listing, rules: &Rules) -> StoreFuture<Vec<Listed>> {
        step(self, queue, 0, |board, now| {
            board.sweep(rules, now);
            Ok(board.list(&listing))
        })
    }

    fn count(
        &self,
        queue: &QueueName,
        recipient: Option<&Key>,
        rules: &Rules,
    ) -> StoreFuture<Depth> {
        step(self, queue, 0, |board, now| {
            board.sweep(rules, now);
            Ok(board.count(recipient, rules))
        })
    }

    fn revive(&self, queue: &QueueName, ids: Vec<JobId>, rules: &Rules) -> StoreFuture<Vec<JobId>> {
        step(self, queue, 0, |board, now| board.revive(ids, rules, now))
    }

    fn subscribe(&self, queue: &QueueName, callback: NoticeCallback) -> StoreFuture<Subscription> {
        Self::subscribe(self, &channel(queue), callback)
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.part::<Names>().contradicts(name, what)
    }
}
