//! Records in this process: each method is a closure under the lock of the key's shard.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{Begin, Claim, Cursor, IdempotencyStore, Owned, Purged, Resolution, Resolved};
use crate::backend::memory::{Entry, EntryKey, Full, MemoryStore, Part, PartSetup, Slot, Table};
use crate::core::{StoreError, StoreErrorKind, StoreFuture, Timestamp};
use crate::idempotency::packed::Packed;
use crate::idempotency::policy::LeaseEnd;
use crate::idempotency::record::{
    Answer, Content, Fence, Head, Nonce, Record, RecordId, ScopeTag, State, UNKNOWN_KEPT,
};

/// A record under lock. It is never evicted: that would be a second run.
struct Kept {
    scope: ScopeTag,
    head: Head,
    answer: Option<Box<Packed>>,
}

/// A claim holds this much room, so that the tombstone of an answer too large always fits.
const RESERVED: usize = 256;

impl Entry for Kept {
    fn weight(&self) -> usize {
        let heap = self.answer.as_ref().map_or(0, |answer| answer.weight());
        size_of::<Self>() + heap.max(RESERVED)
    }
}

impl Kept {
    fn record(&self, now: Timestamp) -> Record {
        let answer = self.answer.as_ref();
        Record {
            head: self.head(now),
            content: answer.map_or(Content::Claimed, |answer| answer.content()),
        }
    }

    const fn head(&self, now: Timestamp) -> Head {
        Head {
            read_at: now,
            ..self.head
        }
    }

    fn is_claim_of(&self, nonce: Nonce) -> bool {
        self.head.state == State::Claimed && self.head.nonce == nonce
    }
}

/// The last fence of the store: it rises over all lives of all keys, also where a key is claimed,
/// released and claimed again within one microsecond, and where the clock goes back.
struct LastFence(AtomicU64);

impl Part for LastFence {
    fn build(_: &PartSetup) -> Self {
        Self(AtomicU64::new(0))
    }
}

impl LastFence {
    fn next(&self, now_micros: u64) -> Fence {
        let next = |last: u64| now_micros.max(last.saturating_add(1));
        let update = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                Some(next(last))
            });
        Fence(next(update.unwrap_or_else(|last| last)))
    }
}

/// Where one key's record is, and what time it is.
struct Place<'a> {
    table: &'a Table<Kept>,
    fences: &'a LastFence,
    key: EntryKey,
    scope: ScopeTag,
    now_micros: u64,
    now: Timestamp,
}

impl<'a> Place<'a> {
    fn of(store: &'a MemoryStore, id: &RecordId) -> Self {
        let now_micros = store.now_micros();
        Self {
            table: store.table(),
            fences: store.part(),
            key: store.hash(|hasher| hasher.part(id.as_bytes())),
            scope: id.scope(),
            now_micros,
            now: Timestamp::from_millis(now_micros / 1_000),
        }
    }

    fn update<R>(&self, change: impl FnOnce(&mut Slot<'_, Kept>) -> R) -> R {
        self.table.update_one(self.key, self.now_micros, change)
    }
}

impl IdempotencyStore for MemoryStore {
    fn begin(&self, key: &RecordId, claim: &Claim) -> StoreFuture<Begin> {
        let place = Place::of(self, key);
        StoreFuture::ready(place.update(|slot| begin(slot, &place, claim).map_err(Into::into)))
    }

    fn renew(
        &self,
        key: &RecordId,
        nonce: Nonce,
        lease: Duration,
        end: LeaseEnd,
    ) -> StoreFuture<Owned> {
        let place = Place::of(self, key);
        StoreFuture::ok(place.update(|slot| {
            let Some(kept) = slot.get_mut().filter(|kept| kept.is_claim_of(nonce)) else {
                return Owned::Lost;
            };
            kept.head.lease_until = place.now + lease;
            kept.head.at_lease_end = end;
            if end == LeaseEnd::Indeterminate {
                kept.head.expires_at = kept.head.expires_at.max(place.now + UNKNOWN_KEPT);
            }
            let expires_at = kept.head.expires_at.as_micros();
            slot.set_expiry(expires_at);
            Owned::Yes
        }))
    }

    fn complete(
        &self,
        key: &RecordId,
        nonce: Nonce,
        answer: Answer,
        ttl: Duration,
    ) -> StoreFuture<Owned> {
        let place = Place::of(self, key);
        let Answer {
            fingerprint,
            content,
        } = answer;
        // Before the lock is taken: others wait for that.
        let packed = Packed::of(&content);
        StoreFuture::ready(place.update(|slot| {
            let before = match slot.get() {
                Some(kept) if kept.head.nonce == nonce => kept.head,
                Some(_) => return Ok(Owned::Lost),
                None => Head {
                    state: State::Claimed,
                    at_lease_end: LeaseEnd::Reexecute,
                    nonce,
                    fence: place.fences.next(place.now_micros),
                    fingerprint,
                    created: place.now,
                    lease_until: place.now,
                    expires_at: place.now,
                    read_at: place.now,
                },
            };
            let kept = (place.scope, before);
            write(slot, kept, packed, place.now + ttl).map(|()| Owned::Yes)
        }))
    }

    fn release(&self, key: &RecordId, nonce: Nonce) -> StoreFuture<Owned> {
        let place = Place::of(self, key);
        StoreFuture::ok(place.update(|slot| match slot.get() {
            Some(kept) if !kept.is_claim_of(nonce) => Owned::Lost,
            _ => {
                slot.remove();
                Owned::Yes
            }
        }))
    }

    fn peek(&self, key: &RecordId) -> StoreFuture<Option<Record>> {
        let place = Place::of(self, key);
        StoreFuture::ok(place.update(|slot| slot.get().map(|kept| kept.record(place.now))))
    }

    fn resolve(&self, key: &RecordId, fence: Fence, to: Resolution) -> StoreFuture<Resolved> {
        let place = Place::of(self, key);
        StoreFuture::ready(place.update(|slot| {
            let head = match slot.get() {
                Some(kept) if kept.head.fence == fence => kept.head(place.now),
                _ => return Ok(Resolved::Changed),
            };
            if head.is_leased() {
                return Ok(Resolved::Live);
            }
            match to {
                Resolution::Release => drop(slot.remove()),
                Resolution::Answer(answer, ttl) => {
                    // Without its nonce the old owner cannot overwrite what the operator said.
                    let head = Head {
                        nonce: Nonce([0; 16]),
                        ..head
                    };
                    let packed = Packed::of(&answer.content);
                    write(slot, (place.scope, head), packed, place.now + ttl)?;
                }
            }
            Ok(Resolved::Done)
        }))
    }

    /// A page is a shard.
    fn purge(&self, scope: ScopeTag, page: Option<Cursor>) -> StoreFuture<Purged> {
        let shard = page.map_or(0, |Cursor(bytes)| usize::from(bytes[0]));
        let is_gone = |kept: &Kept| kept.scope == scope && kept.head.state != State::Claimed;
        let table = self.table::<Kept>();
        let removed = table.remove_where(shard, self.now_micros(), is_gone);
        let next = u8::try_from(shard + 1).ok().map(|next| {
            let mut bytes = [0; 32];
            bytes[0] = next;
            Cursor(bytes)
        });
        StoreFuture::ok(Purged {
            removed: removed.unwrap_or(0),
            next: next.filter(|_| removed.is_some() && shard + 1 < table.shards()),
        })
    }
}

fn begin(slot: &mut Slot<'_, Kept>, place: &Place<'_>, claim: &Claim) -> Result<Begin, Full> {
    let before = match slot.get() {
        None => None,
        Some(kept) => {
            let head = kept.head(place.now);
            if head.fingerprint.contradicts(&claim.fingerprint) {
                return Ok(Begin::Mismatch(head));
            }
            if head.state != State::Claimed {
                return Ok(Begin::Done(kept.record(place.now)));
            }
            if head.nonce == claim.nonce {
                return Ok(Begin::Run(head.fence));
            }
            if head.is_leased() {
                return Ok(Begin::Running(head));
            }
            if head.at_lease_end == LeaseEnd::Indeterminate {
                return Ok(Begin::Unknown(head));
            }
            Some(head)
        }
    };
    if before.is_some() {
        super::took_over();
    }
    let fence = place.fences.next(place.now_micros);
    let head = Head {
        state: State::Claimed,
        at_lease_end: claim.at_lease_end,
        nonce: claim.nonce,
        fence,
        fingerprint: claim.fingerprint,
        created: before.map_or(place.now, |head| head.created),
        lease_until: place.now + claim.lease,
        expires_at: place.now + claim.keep,
        read_at: place.now,
    };
    slot.set(
        Kept {
            scope: place.scope,
            head,
            answer: None,
        },
        head.expires_at.as_micros(),
    )?;
    Ok(Begin::Run(fence))
}

fn write(
    slot: &mut Slot<'_, Kept>,
    (scope, before): (ScopeTag, Head),
    answer: Box<Packed>,
    expires_at: Timestamp,
) -> Result<(), StoreError> {
    let head = Head {
        state: answer.state(),
        expires_at,
        ..before
    };
    let kept = Kept {
        scope,
        head,
        answer: Some(answer),
    };
    slot.set(kept, expires_at.as_micros())
        .map_err(|full| StoreError::with_source(StoreErrorKind::TooLarge, full))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;
    use crate::idempotency::record::{AnswerContent, Fingerprint, StoredAnswer};

    #[tokio::test]
    async fn a_usual_record_accounts_for_less_than_half_a_kilobyte_and_its_body() {
        let (store, nonce) = (MemoryStore::new(), Nonce([1; 16]));
        let fingerprint = Fingerprint {
            rule: 1,
            hash: [2; 32],
        };
        let id = RecordId::from_bytes([3; 32]);
        let claim = Claim {
            nonce,
            fingerprint,
            lease: Duration::from_secs(30),
            keep: Duration::from_secs(600),
            at_lease_end: LeaseEnd::Reexecute,
        };
        store.begin(&id, &claim).await.unwrap();
        let claimed = store.size().bytes;
        let mut fields = HeaderMap::new();
        fields.insert("content-type", HeaderValue::from_static("application/json"));
        let body = Bytes::from(vec![b'{'; 200]);
        let answer = Answer {
            fingerprint,
            content: AnswerContent::Full(Arc::new(StoredAnswer {
                status: StatusCode::CREATED,
                fields,
                body: body.clone(),
                trailers: None,
            })),
        };
        let ttl = Duration::from_secs(600);
        store.complete(&id, nonce, answer, ttl).await.unwrap();
        let answered = store.size().bytes;
        assert!(claimed <= 432, "{claimed}");
        assert!(answered <= 512, "{answered}");
    }
}
