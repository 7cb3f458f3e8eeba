//! What every store of idempotency records promises, and random histories held against a list of facts.
#![allow(clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::core::{ManualClock, Timestamp};
use crate::idempotency::{
    Answer, AnswerContent, Begin, Claim, Content, Fence, Fingerprint, IdempotencyStore, LeaseEnd,
    Nonce, Owned, Record, RecordId, StoredAnswer, Tombstone, TombstoneReason,
};

mod answers;
mod claims;
mod ends;
mod model;

pub use model::histories;

const MS: Duration = Duration::from_millis(1);
const LEASE: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(600);

/// Runs the whole suite. `store` must tell the time of `clock` and have room for some hundred records.
///
/// # Panics
/// When the store breaks a promise of [`IdempotencyStore`].
pub async fn idempotency(store: Arc<dyn IdempotencyStore>, clock: &ManualClock) {
    let suite = Suite {
        store,
        clock: clock.clone(),
    };
    suite.of_fifty_contenders_one_wins().await;
    suite.a_repeated_call_gives_the_same_result().await;
    suite
        .another_payload_is_told_first_also_while_the_first_runs()
        .await;
    suite.a_zombie_can_change_nothing().await;
    suite.a_takeover_keeps_the_payload_and_the_birthday().await;
    suite.an_indeterminate_run_is_never_taken_over().await;
    suite.leases_and_records_end_to_the_millisecond().await;
    suite.a_renewal_moves_the_end_and_zero_gives_up().await;
    suite.an_answer_comes_back_byte_for_byte().await;
    suite.a_tombstone_can_be_replaced_by_its_owner_only().await;
    suite.a_finished_record_cannot_be_released().await;
    suite.a_lost_record_is_written_back().await;
    suite.another_rule_is_not_compared().await;
    suite.an_operator_is_fenced().await;
    suite.a_clock_that_went_back_frees_nothing().await;
    suite.a_purge_spares_claims_and_other_callers().await;
}

/// Sends `contenders` claims of one key at once, round robin over `handles`; returns how many were told to run.
///
/// # Panics
/// When a claim fails.
pub async fn winners_of(contenders: usize, handles: &[Arc<dyn IdempotencyStore>]) -> usize {
    let (id, print) = (fresh_id(), print(1));
    let claims = (0..contenders).map(|n| {
        let store = Arc::clone(&handles[n % handles.len()]);
        tokio::spawn(async move { store.begin(&id, &claim(fresh_nonce(), print)).await })
    });
    let mut winners = 0;
    for begun in claims.collect::<Vec<_>>() {
        let begun = begun
            .await
            .expect("a claim panicked")
            .expect("a claim failed");
        winners += usize::from(matches!(begun, Begin::Run(_)));
    }
    winners
}

/// Makes an id that nobody else uses.
///
/// # Panics
/// When the system has no randomness.
#[must_use]
pub fn fresh_id() -> RecordId {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("randomness");
    RecordId::from_bytes(bytes)
}

/// Makes a nonce that nobody else uses.
///
/// # Panics
/// When the system has no randomness.
#[must_use]
pub fn fresh_nonce() -> Nonce {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("randomness");
    Nonce(bytes)
}

/// A fingerprint made of one byte.
#[must_use]
pub fn print(byte: u8) -> Fingerprint {
    Fingerprint {
        rule: 7,
        hash: [byte; 32],
    }
}

/// A claim of 30 s, kept for 600 s.
#[must_use]
pub fn claim(nonce: Nonce, fingerprint: Fingerprint) -> Claim {
    Claim {
        nonce,
        fingerprint,
        lease: LEASE,
        keep: TTL,
        at_lease_end: LeaseEnd::Reexecute,
    }
}

/// An answer with this body, repeated fields, a value that is no UTF-8, and trailers.
///
/// # Panics
/// Never: the fields are valid.
#[must_use]
pub fn answer(fingerprint: Fingerprint, body: &[u8]) -> Answer {
    let mut fields = HeaderMap::new();
    fields.append("x-twice", HeaderValue::from_static("1"));
    fields.append("x-twice", HeaderValue::from_static("2"));
    fields.append(
        "x-latin",
        HeaderValue::from_bytes(b"caf\xe9").expect("a valid value"),
    );
    fields.append("location", HeaderValue::from_static("/orders/1"));
    let mut trailers = HeaderMap::new();
    trailers.append("x-sum", HeaderValue::from_static("abc"));
    let stored = StoredAnswer {
        status: StatusCode::CREATED,
        fields,
        body: Bytes::copy_from_slice(body),
        trailers: Some(trailers),
    };
    Answer {
        fingerprint,
        content: AnswerContent::Full(Arc::new(stored)),
    }
}

fn tombstone(fingerprint: Fingerprint) -> Answer {
    let mut fields = HeaderMap::new();
    fields.append("etag", HeaderValue::from_static("\"v1\""));
    let left = Tombstone {
        status: StatusCode::OK,
        fields,
        reason: TombstoneReason::Streamed,
    };
    Answer {
        fingerprint,
        content: AnswerContent::Tombstone(Arc::new(left)),
    }
}

struct Suite {
    store: Arc<dyn IdempotencyStore>,
    clock: ManualClock,
}

impl Suite {
    async fn begin(&self, id: &RecordId, claim: &Claim) -> Begin {
        self.store.begin(id, claim).await.expect("begin failed")
    }

    async fn run(&self, id: &RecordId, claim: &Claim) -> Fence {
        match self.begin(id, claim).await {
            Begin::Run(fence) => fence,
            other => panic!("expected to run, got {other:?}"),
        }
    }

    async fn complete(&self, id: &RecordId, nonce: Nonce, answer: Answer) -> Owned {
        self.store
            .complete(id, nonce, answer, TTL)
            .await
            .expect("complete failed")
    }

    async fn release(&self, id: &RecordId, nonce: Nonce) -> Owned {
        self.store.release(id, nonce).await.expect("release failed")
    }

    async fn renew(&self, id: &RecordId, nonce: Nonce, lease: Duration, end: LeaseEnd) -> Owned {
        self.store
            .renew(id, nonce, lease, end)
            .await
            .expect("renew failed")
    }

    async fn peek(&self, id: &RecordId) -> Option<Record> {
        self.store.peek(id).await.expect("peek failed")
    }

    fn now(&self) -> Timestamp {
        Timestamp::of(&self.clock)
    }

    /// Removes a caller's answers page by page; returns how many there were.
    async fn purge(&self, id: &RecordId) -> u64 {
        let (mut removed, mut page) = (0, None);
        for _ in 0..100_000 {
            let purged = self.store.purge(id.scope(), page).await.expect("purge");
            removed += purged.removed;
            page = purged.next;
            if page.is_none() {
                return removed;
            }
        }
        panic!("a purge comes to no end");
    }
}

fn body_of(record: Option<Record>) -> Vec<u8> {
    match record.map(|record| record.content) {
        Some(Content::Full(answer)) => answer.body.to_vec(),
        other => panic!("expected an answer, got {other:?}"),
    }
}
