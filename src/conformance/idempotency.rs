//! What every store of idempotency records promises, and random histories held against a list of facts.
#![allow(clippy::panic)]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::core::{Clock, ManualClock, Timestamp};
use crate::idempotency::{
    Answer, AnswerContent, Begin, Claim, Content, Fence, Fingerprint, IdempotencyStore, LeaseEnd,
    Nonce, Owned, Record, RecordId, Resolution, Resolved, State, StoredAnswer, Tombstone,
    TombstoneReason, UNKNOWN_KEPT,
};

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

    async fn of_fifty_contenders_one_wins(&self) {
        assert_eq!(winners_of(50, &[Arc::clone(&self.store)]).await, 1);
    }

    async fn a_repeated_call_gives_the_same_result(&self) {
        let (id, claim) = (fresh_id(), claim(fresh_nonce(), print(1)));
        let fence = self.run(&id, &claim).await;
        assert_eq!(
            self.run(&id, &claim).await,
            fence,
            "begin with the same nonce is the same run"
        );
        for _ in 0..2 {
            let renewed = self
                .renew(&id, claim.nonce, LEASE, LeaseEnd::Reexecute)
                .await;
            assert_eq!(renewed, Owned::Yes);
        }
        for _ in 0..2 {
            assert_eq!(self.release(&id, claim.nonce).await, Owned::Yes);
        }
        self.run(&id, &claim).await;
        for _ in 0..2 {
            let done = self
                .complete(&id, claim.nonce, answer(print(1), b"a"))
                .await;
            assert_eq!(done, Owned::Yes);
        }
    }

    async fn another_payload_is_told_first_also_while_the_first_runs(&self) {
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        self.run(&id, &first).await;
        let other = claim(fresh_nonce(), print(2));
        assert!(
            matches!(self.begin(&id, &other).await, Begin::Mismatch(_)),
            "while it runs"
        );
        self.clock.advance(LEASE);
        assert!(
            matches!(self.begin(&id, &other).await, Begin::Mismatch(_)),
            "after its lease"
        );
        self.complete(&id, first.nonce, answer(print(1), b"a"))
            .await;
        assert!(
            matches!(self.begin(&id, &other).await, Begin::Mismatch(_)),
            "after its answer"
        );
    }

    async fn a_zombie_can_change_nothing(&self) {
        let (id, zombie) = (fresh_id(), claim(fresh_nonce(), print(1)));
        let old = self.run(&id, &zombie).await;
        self.clock.advance(LEASE);
        let heir = claim(fresh_nonce(), print(1));
        let new = self.run(&id, &heir).await;
        assert!(new > old, "a takeover has a higher fence");
        let renewed = self
            .renew(&id, zombie.nonce, LEASE, LeaseEnd::Reexecute)
            .await;
        assert_eq!(renewed, Owned::Lost);
        assert_eq!(self.release(&id, zombie.nonce).await, Owned::Lost);
        let stale = self
            .complete(&id, zombie.nonce, answer(print(1), b"stale"))
            .await;
        assert_eq!(stale, Owned::Lost);
        let third = claim(fresh_nonce(), print(1));
        assert!(
            matches!(self.begin(&id, &third).await, Begin::Running(_)),
            "the heir still runs"
        );
        assert_eq!(
            self.complete(&id, heir.nonce, answer(print(1), b"heir"))
                .await,
            Owned::Yes
        );
        let stale = self
            .complete(&id, zombie.nonce, answer(print(1), b"stale"))
            .await;
        assert_eq!(stale, Owned::Lost);
        assert_eq!(body_of(self.peek(&id).await), b"heir");
    }

    async fn a_takeover_keeps_the_payload_and_the_birthday(&self) {
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        let born = self.now();
        self.run(&id, &first).await;
        self.clock.advance(LEASE);
        self.run(&id, &claim(fresh_nonce(), print(1))).await;
        let other = claim(fresh_nonce(), print(2));
        assert!(matches!(self.begin(&id, &other).await, Begin::Mismatch(_)));
        let head = self.peek(&id).await.expect("a record").head;
        assert_eq!((head.created, head.fingerprint), (born, print(1)));
    }

    async fn an_indeterminate_run_is_never_taken_over(&self) {
        let (id, mut first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        first.at_lease_end = LeaseEnd::Indeterminate;
        self.run(&id, &first).await;
        let next = claim(fresh_nonce(), print(1));
        assert!(matches!(self.begin(&id, &next).await, Begin::Running(_)));
        self.clock.advance(LEASE);
        assert!(matches!(self.begin(&id, &next).await, Begin::Unknown(_)));
        let late = self
            .complete(&id, first.nonce, answer(print(1), b"late"))
            .await;
        assert_eq!(late, Owned::Yes, "its owner may complete late");
        assert!(matches!(self.begin(&id, &next).await, Begin::Done(_)));
    }

    async fn leases_and_records_end_to_the_millisecond(&self) {
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        self.run(&id, &first).await;
        self.clock.advance(LEASE - MS);
        let next = claim(fresh_nonce(), print(1));
        assert!(
            matches!(self.begin(&id, &next).await, Begin::Running(_)),
            "1 ms before its end"
        );
        self.clock.advance(MS);
        self.run(&id, &next).await;
        self.complete(&id, next.nonce, answer(print(1), b"a")).await;
        self.clock.advance(TTL - MS);
        let later = claim(fresh_nonce(), print(2));
        assert!(
            matches!(self.begin(&id, &later).await, Begin::Mismatch(_)),
            "1 ms before its end"
        );
        self.clock.advance(MS);
        assert!(
            self.peek(&id).await.is_none(),
            "at its end the record is gone"
        );
        self.run(&id, &later).await;
    }

    async fn a_renewal_moves_the_end_and_zero_gives_up(&self) {
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        self.run(&id, &first).await;
        self.clock.advance(LEASE - MS);
        self.renew(&id, first.nonce, LEASE, LeaseEnd::Reexecute)
            .await;
        self.clock.advance(LEASE - MS);
        let next = claim(fresh_nonce(), print(1));
        assert!(matches!(self.begin(&id, &next).await, Begin::Running(_)));
        let given_up = self
            .renew(&id, first.nonce, Duration::ZERO, LeaseEnd::Indeterminate)
            .await;
        assert_eq!(given_up, Owned::Yes);
        assert!(
            matches!(self.begin(&id, &next).await, Begin::Unknown(_)),
            "at once"
        );
        self.clock.advance(UNKNOWN_KEPT - MS);
        assert!(
            matches!(self.begin(&id, &next).await, Begin::Unknown(_)),
            "kept for 7 days"
        );
        self.clock.advance(MS);
        self.run(&id, &next).await;
    }

    async fn an_answer_comes_back_byte_for_byte(&self) {
        for body in [&b""[..], b"\xff\x00\xfe", &[b'x'; 100_000]] {
            let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
            self.run(&id, &first).await;
            let sent = answer(print(1), body);
            self.complete(&id, first.nonce, sent.clone()).await;
            let Begin::Done(record) = self.begin(&id, &claim(fresh_nonce(), print(1))).await else {
                panic!("expected the answer");
            };
            let (AnswerContent::Full(sent), Content::Full(kept)) = (&sent.content, &record.content)
            else {
                panic!("expected a whole answer, got {record:?}");
            };
            assert_eq!(sent, kept);
            assert_eq!(record.head.state, State::Answered);
            assert_eq!(record.head.expires_at, self.now() + TTL);
        }
    }

    async fn a_tombstone_can_be_replaced_by_its_owner_only(&self) {
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        self.run(&id, &first).await;
        let sent = tombstone(print(1));
        self.complete(&id, first.nonce, sent.clone()).await;
        let record = self.peek(&id).await.expect("a record");
        let (AnswerContent::Tombstone(sent), Content::Tombstone(kept)) =
            (&sent.content, &record.content)
        else {
            panic!("expected a tombstone, got {record:?}");
        };
        assert_eq!(sent, kept);
        let foreign = self
            .complete(&id, fresh_nonce(), answer(print(1), b"foreign"))
            .await;
        assert_eq!(foreign, Owned::Lost);
        assert_eq!(
            self.complete(&id, first.nonce, answer(print(1), b"own"))
                .await,
            Owned::Yes
        );
        assert_eq!(body_of(self.peek(&id).await), b"own");
    }

    async fn a_finished_record_cannot_be_released(&self) {
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        self.run(&id, &first).await;
        self.complete(&id, first.nonce, answer(print(1), b"a"))
            .await;
        assert_eq!(self.release(&id, first.nonce).await, Owned::Lost);
        let renewed = self
            .renew(&id, first.nonce, LEASE, LeaseEnd::Reexecute)
            .await;
        assert_eq!(renewed, Owned::Lost);
        assert_eq!(body_of(self.peek(&id).await), b"a");
    }

    async fn a_lost_record_is_written_back(&self) {
        let (id, nonce) = (fresh_id(), fresh_nonce());
        assert_eq!(
            self.complete(&id, nonce, answer(print(1), b"a")).await,
            Owned::Yes
        );
        assert_eq!(body_of(self.peek(&id).await), b"a");
        let other = claim(fresh_nonce(), print(2));
        assert!(
            matches!(self.begin(&id, &other).await, Begin::Mismatch(_)),
            "with its payload"
        );
    }

    async fn another_rule_is_not_compared(&self) {
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        self.run(&id, &first).await;
        self.complete(&id, first.nonce, answer(print(1), b"a"))
            .await;
        let other = Fingerprint {
            rule: 8,
            hash: [9; 32],
        };
        let begun = self.begin(&id, &claim(fresh_nonce(), other)).await;
        assert!(matches!(begun, Begin::Done(_)));
    }

    async fn an_operator_is_fenced(&self) {
        let (id, mut first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        first.at_lease_end = LeaseEnd::Indeterminate;
        let fence = self.run(&id, &first).await;
        let resolve = async |fence, to| self.store.resolve(&id, fence, to).await.expect("resolve");
        let put = || Resolution::Answer(answer(print(1), b"operator"), TTL);
        assert_eq!(resolve(fence, put()).await, Resolved::Live);
        self.clock.advance(LEASE);
        assert_eq!(resolve(Fence(fence.0 - 1), put()).await, Resolved::Changed);
        assert_eq!(resolve(fence, put()).await, Resolved::Done);
        assert_eq!(body_of(self.peek(&id).await), b"operator");
        let late = self
            .complete(&id, first.nonce, answer(print(1), b"late"))
            .await;
        assert_eq!(late, Owned::Lost, "the operator's word stands");
        assert_eq!(resolve(fence, Resolution::Release).await, Resolved::Done);
        assert!(self.peek(&id).await.is_none());
        assert_eq!(resolve(fence, Resolution::Release).await, Resolved::Changed);
    }

    async fn a_clock_that_went_back_frees_nothing(&self) {
        let (id, first) = (fresh_id(), claim(fresh_nonce(), print(1)));
        let old = self.run(&id, &first).await;
        let now = self.clock.now_micros();
        self.clock.set_micros(now - 3_600_000_000);
        let next = claim(fresh_nonce(), print(1));
        assert!(matches!(self.begin(&id, &next).await, Begin::Running(_)));
        self.renew(&id, first.nonce, Duration::ZERO, LeaseEnd::Reexecute)
            .await;
        let new = self.run(&id, &next).await;
        assert!(new > old, "the fence rises though the clock went back");
        assert_eq!(
            self.complete(&id, first.nonce, answer(print(1), b"a"))
                .await,
            Owned::Lost
        );
        self.clock.set_micros(now);
    }

    async fn a_purge_spares_claims_and_other_callers(&self) {
        let (first, other) = (fresh_id(), fresh_id());
        let of = |caller: &RecordId, n: u8| {
            let mut id = *caller.as_bytes();
            id[16..].fill(n);
            RecordId::from_bytes(id)
        };
        let mut fences = Vec::new();
        // At both ends of what a caller's ids can be, and in between.
        for n in [0, 1, 7, 200, 254, 255] {
            let id = of(&first, n);
            let own = claim(fresh_nonce(), print(1));
            fences.push((id, self.run(&id, &own).await));
            let done = answer(print(1), b"purged");
            assert_eq!(self.complete(&id, own.nonce, done).await, Owned::Yes);
        }
        let (left_behind, own) = (of(&first, 2), claim(fresh_nonce(), print(1)));
        self.run(&left_behind, &own).await;
        self.clock.advance(LEASE);
        let (running, own) = (of(&first, 3), claim(fresh_nonce(), print(1)));
        self.run(&running, &own).await;
        let others = of(&other, 1);
        let theirs = claim(fresh_nonce(), print(1));
        self.run(&others, &theirs).await;
        let done = answer(print(1), b"theirs");
        self.complete(&others, theirs.nonce, done).await;
        assert_eq!(self.purge(&first).await, fences.len() as u64);
        assert_eq!(self.purge(&first).await, 0, "it has been done");
        for (id, fence) in fences {
            assert!(self.peek(&id).await.is_none());
            let next = self.run(&id, &claim(fresh_nonce(), print(2))).await;
            assert!(next > fence, "the fence rises over what was removed");
        }
        for claimed in [left_behind, running] {
            let record = self.peek(&claimed).await.expect("a claim");
            assert!(matches!(record.content, Content::Claimed));
        }
        let done = answer(print(1), b"late");
        let completed = self.complete(&running, own.nonce, done).await;
        assert_eq!(completed, Owned::Yes, "its owner goes on");
        assert_eq!(body_of(self.peek(&others).await), b"theirs");
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
