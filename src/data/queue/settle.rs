//! What becomes of leased jobs, and what operators do with the others.

use std::time::Duration;

use super::batch::{Batch, JobError, LeasedJob, SettleReport};
use super::error::QueueError;
use super::handle::{Config, MOVED_AT_ONCE, Queue};
use super::meter;
use super::store::{Depth, JobId, Settle, Settled, Token};
use crate::core::{IntoKey, StoreError, Timestamp, monotonic};
use crate::data::once_more;

/// How a leased job is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// Tried again after the queue's backoff; dead after the last attempt.
    Backoff,
    /// Tried again then; dead after the last attempt.
    At(Timestamp),
    /// Not tried again.
    Dead,
}

impl<T> Queue<T> {
    /// Ends the jobs of a batch for good.
    ///
    /// # Errors
    /// The store's. A lease that is over is none: see [`SettleReport`].
    pub async fn ack(&self, batch: &Batch<T>) -> Result<SettleReport, QueueError> {
        Ok(self.end(batch.token, batch.ids(), false).await?)
    }

    /// Gives one job of a batch back.
    ///
    /// # Errors
    /// The store's.
    pub async fn nack(&self, job: &LeasedJob<T>, retry: Retry) -> Result<SettleReport, QueueError> {
        self.nack_because(job, retry, "").await
    }

    /// Gives one job of a batch back, and keeps why (up to 500 bytes).
    ///
    /// # Errors
    /// The store's.
    pub async fn nack_because(
        &self,
        job: &LeasedJob<T>,
        retry: Retry,
        error: &str,
    ) -> Result<SettleReport, QueueError> {
        let error = error.to_owned();
        let how = match retry {
            Retry::Backoff => Settle::After(self.draw(job.attempt), error),
            Retry::At(time) => Settle::At(time, error),
            Retry::Dead => Settle::Dead(error),
        };
        let settled = self.settle(job.token, vec![(job.id, how)]).await?;
        Ok(report(settled))
    }

    /// Moves the end of a batch's lease to one lease from now.
    ///
    /// # Errors
    /// The store's.
    pub async fn extend(&self, batch: &Batch<T>) -> Result<SettleReport, QueueError> {
        let sent = monotonic();
        let report = self.extend_all(batch.token, batch.ids()).await?;
        if report.is_complete() {
            *batch.ends.lock() = sent + self.config.lease;
        }
        Ok(report)
    }

    /// Counts the recipient's jobs.
    ///
    /// # Errors
    /// The store's.
    pub async fn count(&self, recipient: impl IntoKey) -> Result<Depth, QueueError> {
        let Config {
            store, name, rules, ..
        } = &*self.config;
        let recipient = recipient.into_key();
        Ok(store.count(&name.shared(), Some(&recipient), rules).await?)
    }

    /// Counts all jobs.
    ///
    /// # Errors
    /// The store's.
    pub async fn depth(&self) -> Result<Depth, QueueError> {
        let Config {
            store, name, rules, ..
        } = &*self.config;
        let depth = store.count(&name.shared(), None, rules).await?;
        meter::depth(self.name(), depth);
        Ok(depth)
    }

    /// Removes jobs of `recipient` that are neither leased nor dead; returns those.
    ///
    /// # Errors
    /// The store's.
    pub async fn cancel(
        &self,
        recipient: impl IntoKey,
        ids: impl IntoIterator<Item = JobId>,
    ) -> Result<Vec<JobId>, QueueError> {
        let Config { store, name, .. } = &*self.config;
        let (recipient, ids): (_, Vec<JobId>) = (recipient.into_key(), ids.into_iter().collect());
        let mut gone = Vec::new();
        for part in ids.chunks(MOVED_AT_ONCE) {
            let cancelled = store.cancel(&name.shared(), &recipient, part.to_vec());
            gone.extend(cancelled.await?);
        }
        Ok(gone)
    }

    /// Makes dead letters ready, with fresh attempts; returns those.
    ///
    /// # Errors
    /// Full, or the store's.
    pub async fn revive(
        &self,
        ids: impl IntoIterator<Item = JobId>,
    ) -> Result<Vec<JobId>, QueueError> {
        let Config {
            store, name, rules, ..
        } = &*self.config;
        let ids: Vec<JobId> = ids.into_iter().collect();
        let mut revived = Vec::new();
        for part in ids.chunks(MOVED_AT_ONCE) {
            let done = store.revive(&name.shared(), part.to_vec(), rules);
            revived.extend(done.await?);
        }
        Ok(revived)
    }

    pub(super) fn draw(&self, attempt: u32) -> Duration {
        let random = getrandom::u32().unwrap_or(u32::MAX);
        self.config.backoff.draw(attempt, random)
    }

    /// Says how a failed job is given back.
    pub(super) fn verdict(&self, attempt: u32, error: &JobError) -> Settle {
        if error.is_worth_again() {
            Settle::After(self.draw(attempt), error.to_string())
        } else {
            Settle::Dead(error.to_string())
        }
    }

    pub(super) async fn end(
        &self,
        token: Token,
        ids: Vec<JobId>,
        asked_before: bool,
    ) -> Result<SettleReport, StoreError> {
        let Config { store, name, .. } = &*self.config;
        let ack = || store.ack(&name.shared(), token, ids.clone());
        let (settled, asked_before) = match ack().await {
            Err(error) if error.is_unknown() => (ack().await?, true),
            first => (first?, asked_before),
        };
        // What is gone was acked by the call whose answer was lost.
        let done = |settled| match settled {
            Settled::Gone if asked_before => Settled::Done,
            settled => settled,
        };
        let settled = settled.into_iter().map(done);
        let report = report(ids.into_iter().zip(settled));
        meter::acked(self.name(), &report);
        Ok(report)
    }

    pub(super) async fn settle(
        &self,
        token: Token,
        jobs: Vec<(JobId, Settle)>,
    ) -> Result<Vec<(JobId, Settled)>, StoreError> {
        let Config {
            store, name, rules, ..
        } = &*self.config;
        let ids: Vec<JobId> = jobs.iter().map(|(id, _)| *id).collect();
        let gives_back = jobs.iter().all(|(_, how)| *how == Settle::GiveBack);
        let settled = store.nack(&name.shared(), token, jobs, rules).await?;
        let settled: Vec<_> = ids.into_iter().zip(settled).collect();
        if !gives_back {
            meter::nacked(self.name(), &settled);
        }
        Ok(settled)
    }

    pub(super) async fn extend_all(
        &self,
        token: Token,
        ids: Vec<JobId>,
    ) -> Result<SettleReport, StoreError> {
        let Config {
            store, name, lease, ..
        } = &*self.config;
        let name = name.shared();
        let settled = once_more(|| store.extend(&name, token, ids.clone(), *lease)).await?;
        Ok(report(ids.into_iter().zip(settled)))
    }
}

fn report(settled: impl IntoIterator<Item = (JobId, Settled)>) -> SettleReport {
    let mut report = SettleReport::default();
    for (id, settled) in settled {
        match settled {
            Settled::Done | Settled::Died => report.done.push(id),
            Settled::Lost | Settled::Gone => report.lost.push(id),
        }
    }
    report
}
