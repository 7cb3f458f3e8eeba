//! The pair asks its primary only: a job queued inside one process would be lost with it.

use std::fmt;
use std::time::Duration;

use super::{
    Claim, Depth, EnqueueOutcome, JobId, Leased, Listed, Listing, NewJob, QueueName, QueueStore,
    Rules, Settle, Settled, Token, delegate,
};
use crate::backend::fallback::Fallback;
use crate::core::{Key, NoticeCallback, StoreFuture, Subscription};

impl<P, S> QueueStore for Fallback<P, S>
where
    P: QueueStore,
    S: fmt::Debug + Send + Sync + 'static,
{
    delegate!(|own| own.primary());
}
