//! Ends of leases and records.

use std::time::Duration;

use super::{LEASE, MS, Suite, TTL, answer, body_of, claim, fresh_id, fresh_nonce, print};
use crate::core::Clock;
use crate::idempotency::{Begin, Content, LeaseEnd, Owned, RecordId};

impl Suite {
    pub(super) async fn leases_and_records_end_to_the_millisecond(&self) {
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

    pub(super) async fn a_clock_that_went_back_frees_nothing(&self) {
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

    pub(super) async fn a_purge_spares_claims_and_other_callers(&self) {
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
}
