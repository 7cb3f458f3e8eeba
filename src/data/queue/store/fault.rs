//! Queues behind a line that can be cut by order, for tests of an outage.

use std::time::Duration;

use super::{
    Claim, Depth, EnqueueOutcome, JobId, Leased, Listed, Listing, NewJob, QueueName, QueueStore,
    Rules, Settle, Settled, Token,
};
use crate::backend::fault::FaultStore;
use crate::core::{Key, NoticeCallback, StoreFuture, Subscription};

impl<S: QueueStore> QueueStore for FaultStore<S> {
    fn enqueue(
        &self,
        queue: &QueueName,
        jobs: Vec<NewJob>,
        rules: &Rules,
    ) -> StoreFuture<Vec<EnqueueOutcome>> {
        self.call(|| self.inner().enqueue(queue, jobs, rules))
    }

    fn lease(&self, queue: &QueueName, claim: Claim, rules: &Rules) -> StoreFuture<Leased> {
        self.call(|| self.inner().lease(queue, claim, rules))
    }

    fn ack(&self, queue: &QueueName, token: Token, ids: Vec<JobId>) -> StoreFuture<Vec<Settled>> {
        self.call(|| self.inner().ack(queue, token, ids))
    }

    fn nack(
        &self,
        queue: &QueueName,
        token: Token,
        jobs: Vec<(JobId, Settle)>,
        rules: &Rules,
    ) -> StoreFuture<Vec<Settled>> {
        self.call(|| self.inner().nack(queue, token, jobs, rules))
    }

    fn extend(
        &self,
        queue: &QueueName,
        token: Token,
        ids: Vec<JobId>,
        lease: Duration,
    ) -> StoreFuture<Vec<Settled>> {
        self.call(|| self.inner().extend(queue, token, ids, lease))
    }

    fn cancel(
        &self,
        queue: &QueueName,
        recipient: &Key,
        ids: Vec<JobId>,
    ) -> StoreFuture<Vec<JobId>> {
        self.call(|| self.inner().cancel(queue, recipient, ids))
    }

    fn list(&self, queue: &QueueName, listing: Listing, rules: &Rules) -> StoreFuture<Vec<Listed>> {
        self.call(|| self.inner().list(queue, listing, rules))
    }

    fn count(
        &self,
        queue: &QueueName,
        recipient: Option<&Key>,
        rules: &Rules,
    ) -> StoreFuture<Depth> {
        self.call(|| self.inner().count(queue, recipient, rules))
    }

    fn revive(&self, queue: &QueueName, ids: Vec<JobId>, rules: &Rules) -> StoreFuture<Vec<JobId>> {
        self.call(|| self.inner().revive(queue, ids, rules))
    }

    fn subscribe(&self, queue: &QueueName, callback: NoticeCallback) -> StoreFuture<Subscription> {
        self.call(|| self.inner().subscribe(queue, callback))
    }

    fn contradicts(&self, name: &str, what: &str) -> bool {
        self.inner().contradicts(name, what)
    }
}
