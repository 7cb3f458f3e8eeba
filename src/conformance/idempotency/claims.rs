//! Who may run, and who may say how it ended.

use std::sync::Arc;
use std::time::Duration;

use super::{
    LEASE, MS, Suite, TTL, answer, body_of, claim, fresh_id, fresh_nonce, print, winners_of,
};
use crate::idempotency::{Begin, Fence, LeaseEnd, Owned, Resolution, Resolved, UNKNOWN_KEPT};

impl Suite {
    pub(super) async fn of_fifty_contenders_one_wins(&self) {
        assert_eq!(winners_of(50, &[Arc::clone(&self.store)]).await, 1);
    }

    pub(super) async fn a_zombie_can_change_nothing(&self) {
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

    pub(super) async fn a_takeover_keeps_the_payload_and_the_birthday(&self) {
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

    pub(super) async fn an_indeterminate_run_is_never_taken_over(&self) {
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

    pub(super) async fn a_renewal_moves_the_end_and_zero_gives_up(&self) {
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

    pub(super) async fn an_operator_is_fenced(&self) {
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
}
