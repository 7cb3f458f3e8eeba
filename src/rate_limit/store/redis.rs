//! Limits on a Redis server: each method is one script, so one command.
//!
//! Keys are `prefix:rl:{tag}:policy:quota:key:s` for states and `prefix:rl:{tag}:policy:key:b` for blocks; the
//! tag is the group, or group and key where all policies of a group partition by the same thing. On one server the
//! keys are the same, so that moving to a cluster keeps the counts.

mod scripts;

use std::sync::Arc;
use std::time::Duration;

use scripts::{BLOCK, CHECK, CHECK_AND_RECORD, RECORD, REFUND, RESET, number_of};
use smallvec::SmallVec;

use super::super::quota::{Algorithm, Quota};
use super::deny_cache::{Asked, DenyCache, Payload};
use super::groups::Groups;
use super::{
    Bucket, Charge, Entry, Mode, Outcome, PolicyState, RateLimitStore, Receipt, ReceiptPart,
    Refunded, Source, Tag, Verdict,
};
use crate::backend::memory::MemoryStore;
use crate::backend::redis::{Call, RedisStore, Reply, Script};
use crate::core::telemetry::{count, measured};
use crate::core::{StoreError, StoreErrorKind, StoreFuture};

/// Entries of the store that stands in for this one inside the process.
const LOCAL_ENTRIES: usize = 100_000;
/// Blocks end within a hundred years, so that all numbers stay below 2^53.
const LONGEST_BLOCK: u128 = 100 * 366 * 86_400 * 1_000_000;

/// The store that stands in, by a name of its own among what is kept beside a handle.
struct StandIn(MemoryStore);

/// A handle with a deadline of its own for each call, and the keys that are known to be refused.
#[derive(Clone, Debug)]
struct Hasty {
    store: RedisStore,
    denied: Arc<DenyCache>,
    timeout: Option<Duration>,
}

impl RateLimitStore for RedisStore {
    fn check_and_record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        Hasty::of(self).check_and_record(charges)
    }

    fn check(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        Hasty::of(self).check(charges)
    }

    fn record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        Hasty::of(self).record(charges)
    }

    fn refund(&self, receipt: &Receipt) -> StoreFuture<Refunded> {
        Hasty::of(self).refund(receipt)
    }

    fn reset(&self, buckets: &[Bucket<'_>]) -> StoreFuture<()> {
        Hasty::of(self).reset(buckets)
    }

    fn block(&self, bucket: &Bucket<'_>, duration: Duration) -> StoreFuture<()> {
        Hasty::of(self).block(bucket, duration)
    }

    fn within(&self, timeout: Duration) -> Option<Arc<dyn RateLimitStore>> {
        Some(Arc::new(Hasty {
            timeout: Some(timeout),
            ..Hasty::of(self)
        }))
    }

    fn splits(&self, group: &str, tag: Tag) -> bool {
        self.beside(Groups::default).splits(group, tag)
    }

    /// One for all layers on this handle, so that they share their limits in an outage too. A passed clock rules there.
    fn local(&self) -> Option<Arc<dyn RateLimitStore>> {
        let store = self.beside(|| {
            let builder = MemoryStore::builder().max_entries(LOCAL_ENTRIES);
            StandIn(match self.clock() {
                Some(clock) => builder.clock(clock).build(),
                None => builder.build(),
            })
        });
        Some(Arc::new(store.0.clone()))
    }
}

impl Hasty {
    fn of(store: &RedisStore) -> Self {
        Self {
            denied: DenyCache::of(store),
            store: store.clone(),
            timeout: None,
        }
    }

    fn call(&self, script: &'static Script, keys: &[String]) -> Call {
        // Any call may mend states after a passed clock was set back: what is known of them is over then.
        self.denied.now();
        let call = self.store.script(script, keys);
        match self.timeout {
            Some(timeout) => call.timeout(timeout),
            None => call,
        }
    }

    fn decide(
        &self,
        (op, script): (&'static str, &'static Script),
        charges: &[Charge<'_>],
        asked: Option<Asked>,
    ) -> StoreFuture<Verdict> {
        let keys: SmallVec<[String; 6]> = charges
            .iter()
            .flat_map(|charge| {
                [
                    self.state_key(&charge.bucket),
                    self.block_key(&charge.bucket),
                ]
            })
            .collect();
        let mut call = self.call(script, &keys);
        for charge in charges {
            let quota = charge.bucket.scope.quota();
            call = call.arg(numbers(quota, charge.mode, charge.limit, charge.cost));
        }
        let limits: SmallVec<[u32; 4]> = charges.iter().map(|charge| charge.limit).collect();
        let answer = call.run(move |reply| {
            let (verdict, blocks) = verdict(reply, &limits)?;
            if let Some(asked) = asked {
                asked.answered(&verdict, &blocks);
            }
            Ok(verdict)
        });
        let group = charges.first().map(|charge| charge.bucket);
        observed(op, group, answer)
    }

    fn give_back(&self, parts: &[ReceiptPart]) -> StoreFuture<Refunded> {
        let keys: SmallVec<[String; 3]> = parts
            .iter()
            .map(|part| self.state_key(&part.bucket()))
            .collect();
        let mut call = self.call(&REFUND, &keys);
        for part in parts {
            let scope = part.bucket().scope;
            // Where limits differ, a key that is not full at ours may be known as full at a lower one.
            let full = if scope.is_varied() { 0 } else { part.limit() };
            let entry = part.entry().numbers().map(u64::to_be_bytes);
            call = call
                .arg(numbers(scope.quota(), Mode::Enforced, full, 0))
                .arg(entry.as_flattened());
        }
        let freed = self.freeing(parts.iter().map(ReceiptPart::bucket));
        let answer = self.publishing(call, &freed).run(move |reply| {
            if reply.int()? == 0 {
                return Ok(Refunded::TooLate);
            }
            freed.forget();
            Ok(Refunded::Applied)
        });
        observed("refund", parts.first().map(ReceiptPart::bucket), answer)
    }

    fn reset_tag(&self, buckets: &[Bucket<'_>]) -> StoreFuture<()> {
        let keys: SmallVec<[String; 2]> = buckets
            .iter()
            .flat_map(|bucket| [self.state_key(bucket), self.block_key(bucket)])
            .collect();
        let call = self.call(&RESET, &keys);
        let freed = self.freeing(buckets.iter().copied());
        let answer = self.publishing(call, &freed).run(move |reply| {
            freed.forget();
            reply.int().map(drop)
        });
        observed("reset", buckets.first().copied(), answer)
    }

    fn freeing<'a>(&self, buckets: impl Iterator<Item = Bucket<'a>>) -> Freeing {
        Freeing {
            denied: Arc::clone(&self.denied),
            payloads: buckets.map(|bucket| DenyCache::payload(&bucket)).collect(),
        }
    }

    /// Appends the channel, and for each bucket what is published where it is freed early.
    fn publishing(&self, call: Call, freeing: &Freeing) -> Call {
        let call = call.arg(DenyCache::channel(&self.store));
        freeing.payloads.iter().fold(call, Call::arg)
    }

    fn state_key(&self, bucket: &Bucket<'_>) -> String {
        let (scope, key) = (bucket.scope, bucket.key.text());
        self.tagged(bucket, &key)
            .plain(scope.policy())
            .plain(scope.quota_text())
            .segment(&key)
            .plain('s')
            .finish()
    }

    fn block_key(&self, bucket: &Bucket<'_>) -> String {
        let key = bucket.key.text();
        self.tagged(bucket, &key)
            .plain(bucket.scope.policy())
            .segment(&key)
            .plain('b')
            .finish()
    }

    fn tagged(&self, bucket: &Bucket<'_>, key: &str) -> crate::core::KeyBuilder {
        let builder = self.store.key("rl");
        match bucket.scope.tag() {
            Tag::Group => builder.tag([bucket.scope.group()]),
            Tag::Key => builder.tag([bucket.scope.group(), key]),
        }
    }
}

impl RateLimitStore for Hasty {
    /// A key that is known to be full or blocked is refused without a command.
    fn check_and_record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.denied.listen(&self.store);
        if let Some(verdict) = self.denied.refuse(charges) {
            return StoreFuture::ok(verdict);
        }
        let asked = self.denied.asked(charges);
        self.decide(("check_and_record", &CHECK_AND_RECORD), charges, asked)
    }

    /// Always asks the server: who checks wants to know, and a refusal would tell less.
    fn check(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.decide(("check", &CHECK), charges, None)
    }

    fn record(&self, charges: &[Charge<'_>]) -> StoreFuture<Verdict> {
        self.decide(("record", &RECORD), charges, None)
    }

    /// A refund whose outcome is unknown is sent once more where every part is a log: its stamps make that harmless.
    fn refund(&self, receipt: &Receipt) -> StoreFuture<Refunded> {
        let Some(parts) = receipt.spend() else {
            return StoreFuture::ok(Refunded::AlreadySpent);
        };
        if parts.is_empty() {
            return StoreFuture::ok(Refunded::TooLate);
        }
        let first = self.give_back(parts);
        let only_logs = parts
            .iter()
            .all(|part| matches!(part.bucket().scope.quota().algorithm(), Algorithm::Log));
        if !only_logs {
            return first;
        }
        let (again, parts) = (self.clone(), parts.to_vec());
        StoreFuture::boxed(async move {
            match first.await {
                Err(error) if error.is_unknown() => again.give_back(&parts).await,
                answer => answer,
            }
        })
    }

    /// One command for each hash tag: a cluster knows no step over several.
    fn reset(&self, buckets: &[Bucket<'_>]) -> StoreFuture<()> {
        let mut tags: SmallVec<[SmallVec<[Bucket<'_>; 1]>; 1]> = SmallVec::new();
        for bucket in buckets {
            match tags.iter_mut().find(|tag| tag[0].shares_tag(bucket)) {
                Some(tag) => tag.push(*bucket),
                None => tags.push(SmallVec::from_iter([*bucket])),
            }
        }
        if let [tag] = tags.as_slice() {
            return self.reset_tag(tag);
        }
        let answers: Vec<_> = tags.iter().map(|tag| self.reset_tag(tag)).collect();
        StoreFuture::boxed(async move {
            let mut answered = Ok(());
            for answer in answers {
                // What can be forgotten is, whatever became of the others.
                answered = answered.and(answer.await);
            }
            answered
        })
    }

    fn block(&self, bucket: &Bucket<'_>, duration: Duration) -> StoreFuture<()> {
        let micros = duration.as_micros().min(LONGEST_BLOCK) as u64;
        let answer = self
            .call(&BLOCK, &[self.block_key(bucket)])
            .num(micros)
            .run(|reply| reply.int().map(drop));
        observed("block", Some(*bucket), answer)
    }
}

/// Buckets that are about to be freed early, as they are published.
struct Freeing {
    denied: Arc<DenyCache>,
    payloads: SmallVec<[Payload; 1]>,
}

impl Freeing {
    /// Here nobody has to wait for the notice.
    fn forget(&self) {
        for payload in &self.payloads {
            self.denied.freed(payload);
        }
    }
}

/// Measures a call that leaves the process, inside a span.
fn observed<T: Send + 'static>(
    op: &'static str,
    bucket: Option<Bucket<'_>>,
    answer: StoreFuture<T>,
) -> StoreFuture<T> {
    let group = bucket.map_or("", |bucket| bucket.scope.group());
    measured!(
        answer,
        "keep_rate_limit_store_seconds",
        "rate_limit_store",
        group,
        op
    )
}

/// A policy's numbers as the scripts take them: one argument instead of eight, which saves the server a tenth of a call.
fn numbers(quota: &Quota, mode: Mode, limit: u32, cost: u32) -> [u8; 38] {
    let (num, den) = match quota.algorithm() {
        Algorithm::Gcra { num, den, .. } => (num, den),
        _ => (1, 1),
    };
    let mut bytes = [0; 38];
    bytes[0] = number_of(quota.algorithm());
    bytes[1] = u8::from(mode == Mode::Enforced);
    bytes[2..6].copy_from_slice(&limit.to_be_bytes());
    bytes[6..10].copy_from_slice(&quota.capacity().to_be_bytes());
    bytes[10..18].copy_from_slice(&quota.window_micros().to_be_bytes());
    bytes[18..26].copy_from_slice(&num.to_be_bytes());
    bytes[26..34].copy_from_slice(&den.to_be_bytes());
    bytes[34..].copy_from_slice(&cost.to_be_bytes());
    bytes
}

/// The microseconds that the block of each policy has left.
type Blocks = SmallVec<[Option<u64>; 4]>;

/// Reads the reply: three numbers in 13 bytes, then eight per policy in 57.
fn verdict(reply: Reply, limits: &[u32]) -> Result<(Verdict, Blocks), StoreError> {
    let bytes = reply.bytes()?;
    let (head, rows) = bytes
        .split_first_chunk::<13>()
        .filter(|(_, rows)| rows.len() == 57 * limits.len())
        .ok_or_else(|| StoreError::new(StoreErrorKind::Failed))?;
    let admitted = head[0] == 1;
    let now = number(&head[1..9]);
    let undecodable = number(&head[9..]);
    if undecodable > 0 {
        count!("keep_rate_limit_undecodable_total", undecodable);
    }
    let (mut states, mut blocks) = (SmallVec::new(), Blocks::new());
    for (limit, row) in limits.iter().zip(rows.chunks_exact(57)) {
        let state = state(row, *limit);
        // A blocked policy was not charged (but for a record): what is left of the block stands in its entry's place.
        let is_blocked = state.outcome == Outcome::Blocked && state.entry.is_none();
        blocks.push(Some(number(&row[25..33])).filter(|left| is_blocked && *left > 0));
        states.push(state);
    }
    let verdict = Verdict {
        admitted,
        states,
        now,
        source: Source::Store,
    };
    Ok((verdict, blocks))
}

fn state(row: &[u8], limit: u32) -> PolicyState {
    // Negative: none.
    let duration = |at| {
        let micros = i64::try_from(number(&row[at..at + 8])).ok();
        micros.map(|micros| Duration::from_micros(micros.unsigned_abs()))
    };
    let used = u32::try_from(number(&row[1..9])).unwrap_or(u32::MAX);
    let outcome = match row[0] {
        0 => Outcome::Admitted,
        1 => Outcome::Denied,
        2 => Outcome::Blocked,
        _ => Outcome::Never,
    };
    let [a, b, c, amount] = [25, 33, 41, 49].map(|at| number(&row[at..at + 8]));
    PolicyState::new(
        (outcome, duration(17)),
        limit,
        (used, duration(9)),
        Entry::new(a, b, c, amount),
    )
}

/// A number of at most eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}
