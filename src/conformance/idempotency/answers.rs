//! What is told to those who come again.

use super::{LEASE, Suite, TTL, answer, body_of, claim, fresh_id, fresh_nonce, print, tombstone};
use crate::idempotency::{AnswerContent, Begin, Content, Fingerprint, LeaseEnd, Owned, State};

impl Suite {
    pub(super) async fn a_repeated_call_gives_the_same_result(&self) {
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

    pub(super) async fn another_payload_is_told_first_also_while_the_first_runs(&self) {
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

    pub(super) async fn an_answer_comes_back_byte_for_byte(&self) {
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

    pub(super) async fn a_tombstone_can_be_replaced_by_its_owner_only(&self) {
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

    pub(super) async fn a_finished_record_cannot_be_released(&self) {
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

    pub(super) async fn a_lost_record_is_written_back(&self) {
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

    pub(super) async fn another_rule_is_not_compared(&self) {
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
}
