//! Receipts of charges, each good for one refund.

use std::sync::atomic::{AtomicBool, Ordering};

use smallvec::SmallVec;

use super::super::partition::PartitionKey;
use super::{Bucket, Charge, Entry, PolicyState, Scope};

/// Proof of a charge: can be spent on one refund.
#[derive(Debug)]
pub struct Receipt {
    parts: SmallVec<[ReceiptPart; 2]>,
    spent: AtomicBool,
}

/// One policy's part of a receipt.
#[derive(Clone, Debug)]
pub struct ReceiptPart {
    scope: Scope,
    key: PartitionKey,
    limit: u32,
    entry: Entry,
}

impl ReceiptPart {
    /// Returns the limit at which was charged.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Returns where was charged.
    #[must_use]
    pub fn bucket(&self) -> Bucket<'_> {
        Bucket {
            scope: &self.scope,
            key: &self.key,
        }
    }

    /// Returns what was charged.
    #[must_use]
    pub fn entry(&self) -> &Entry {
        &self.entry
    }
}

impl Receipt {
    /// Makes the receipt of a call: of those `charges` that `states` say were charged.
    ///
    /// Only layer and limiter make one, and one for each charge: who could make two could refund twice.
    pub(crate) fn new(charges: &[Charge<'_>], states: &[PolicyState]) -> Self {
        let parts = charges.iter().zip(states).filter_map(|(charge, state)| {
            Some(ReceiptPart {
                scope: charge.bucket.scope.clone(),
                key: charge.bucket.key.clone(),
                limit: charge.limit,
                entry: state.entry?,
            })
        });
        Self {
            parts: parts.collect(),
            spent: AtomicBool::new(false),
        }
    }

    /// Spends the receipt: its parts the first time, `None` ever after. A store calls this first of all.
    #[must_use]
    pub fn spend(&self) -> Option<&[ReceiptPart]> {
        let first = !self.spent.swap(true, Ordering::Relaxed);
        first.then_some(&self.parts)
    }
}

/// What became of a refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refunded {
    /// Units were given back.
    Applied,
    /// Nothing of the charge counts any more.
    TooLate,
    /// The receipt was spent before.
    AlreadySpent,
}
