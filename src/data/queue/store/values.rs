//! What queue stores are asked and what they answer.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::core::size::{KIB, MIB};
use crate::core::{Key, Timestamp};

/// The name of a queue, checked by the service.
pub type QueueName = Arc<str>;

/// A job's number in its queue: 16 hexadecimal digits, rising with each new job. It stays the same over all attempts,
/// for whoever must do the work once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is no job's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAJobId;

impl fmt::Display for NotAJobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a job's number of 16 hexadecimal digits")
    }
}

impl std::error::Error for NotAJobId {}

impl FromStr for JobId {
    type Err = NotAJobId;

    fn from_str(text: &str) -> Result<Self, NotAJobId> {
        if text.len() != 16 || text.starts_with('+') {
            return Err(NotAJobId);
        }
        u64::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| NotAJobId)
    }
}

impl Serialize for JobId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Which jobs come first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before all others.
    High,
    /// The usual.
    #[default]
    Normal,
    /// After all others.
    Low,
}

impl Priority {
    /// Returns 0 for high, 1 for normal, 2 for low.
    #[must_use]
    pub const fn rank(self) -> u8 {
        self as u8
    }

    /// Returns the priority of a rank; what is above 2 is low.
    #[must_use]
    pub const fn of_rank(rank: u8) -> Self {
        match rank {
            0 => Self::High,
            1 => Self::Normal,
            _ => Self::Low,
        }
    }
}

/// When a job may first be delivered, by the store's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// This much after it is enqueued.
    After(Duration),
    /// At this moment; one in the past is now.
    At(Timestamp),
}

/// What a job with a known id does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// Nothing.
    Keep,
    /// It takes the place of one that was never leased.
    Replace,
}

/// A job that may join others of its recipient.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DigestWish {
    /// Which digest.
    pub key: Key,
    /// How long it collects.
    pub window: Duration,
    /// How many items make it full.
    pub max: u32,
}

/// A job to be added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// For whom.
    pub recipient: Key,
    /// How urgent.
    pub priority: Priority,
    /// When.
    pub due: Due,
    /// The encoded item.
    pub item: Bytes,
    /// SHA-256 of an id under which it is added once.
    pub once: Option<[u8; 32]>,
    /// What happens where that id is known.
    pub again: Again,
    /// Whether it may join others.
    pub digest: Option<DigestWish>,
}

/// The most bytes of a digest's items.
pub const DIGEST_BYTES: usize = 256 * KIB;
/// The most bytes that one lease hands out beyond its first job.
pub const LEASE_BYTES: usize = MIB;
/// Dead letters kept, and for how long.
pub const DEAD_KEPT: u64 = 10_000;
/// For how long dead letters are kept.
pub const DEAD_KEPT_FOR: Duration = Duration::from_secs(7 * 86_400);
/// The most jobs of each kind that one call tidies up.
pub const SWEPT_AT_ONCE: usize = 100;
/// The longest error kept with a job, in bytes.
pub const LONGEST_ERROR: usize = 500;

/// Returns an error as it is kept: cut, and without what Postgres takes in no text.
pub(super) fn kept_error(mut error: String) -> String {
    if error.contains('\0') {
        error = error.replace('\0', " ");
    }
    error.truncate(error.floor_char_boundary(LONGEST_ERROR));
    error
}

/// What a queue is set up with; the same at everybody who uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The most jobs, dead letters aside.
    pub capacity: u64,
    /// The most jobs of one recipient.
    pub per_recipient: u64,
    /// Tries until a job is dead.
    pub attempts: u32,
    /// How long after it was due a job is dead.
    pub expire_after: Duration,
    /// How long an id is known after enqueueing.
    pub remember_for: Duration,
    /// How much longer a job must have waited to overtake the next higher priority; zero is never.
    pub aging: Duration,
}

/// What became of a job that was to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EnqueueOutcome {
    /// It was added.
    New(JobId),
    /// Its id is known: this job has it, or had it.
    Duplicate(JobId),
    /// It took the place of the job with its id.
    Replaced(JobId),
    /// It joined a digest.
    Joined(JobId),
}

impl EnqueueOutcome {
    /// Returns the job that delivers, or delivered, the item.
    #[must_use]
    pub const fn id(self) -> JobId {
        match self {
            Self::New(id) | Self::Duplicate(id) | Self::Replaced(id) | Self::Joined(id) => id,
        }
    }
}

/// Packs items behind one another, each behind its length.
#[cfg(any(feature = "redis", feature = "sqlite", feature = "postgres"))]
pub(super) fn pack(items: &[Bytes]) -> Vec<u8> {
    let size = items.iter().map(|item| item.len() + 4).sum();
    let mut packed = Vec::with_capacity(size);
    for item in items {
        let length = u32::try_from(item.len()).unwrap_or(u32::MAX);
        packed.extend_from_slice(&length.to_be_bytes());
        packed.extend_from_slice(item);
    }
    packed
}

/// Unpacks items; what is cut off is left out.
#[cfg(any(feature = "redis", feature = "sqlite", feature = "postgres"))]
pub(super) fn unpack(mut packed: Bytes) -> Vec<Bytes> {
    use bytes::Buf as _;
    let mut items = Vec::new();
    while packed.len() >= 4 {
        let length = packed.get_u32() as usize;
        if length > packed.len() {
            break;
        }
        items.push(packed.split_to(length));
    }
    items
}

/// Names one lease; drawn by the caller.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Token(pub [u8; 16]);

impl fmt::Debug for Token {
    /// Whoever knows it can ack.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// Who asks for jobs, and how many.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The name of the lease.
    pub token: Token,
    /// The most jobs, at least 1.
    pub most: usize,
    /// How long they are the caller's.
    pub lease: Duration,
    /// Only jobs of this recipient.
    pub recipient: Option<Key>,
}

/// What [`QueueStore::lease`](super::QueueStore::lease) gave.
#[derive(Clone, Debug)]
pub struct Leased {
    /// The recipient of all jobs, and the jobs; without any, nothing is ready.
    pub recipient: Option<Key>,
    /// The jobs, in order.
    pub jobs: Vec<Attempt>,
    /// When the lease ends.
    pub until: Timestamp,
    /// The store's time.
    pub now: Timestamp,
    /// When the next job may become ready, if that is known.
    pub next_due: Option<Timestamp>,
    /// What was tidied up.
    pub swept: Swept,
    /// How many jobs there are now, where that costs nothing to say.
    pub depth: Option<Depth>,
}

/// One leased job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its number.
    pub id: JobId,
    /// How urgent.
    pub priority: Priority,
    /// The number of this try, from 1.
    pub attempt: u32,
    /// When it was due.
    pub due: Timestamp,
    /// Its encoded items.
    pub items: Vec<Bytes>,
}

/// What a step tidied up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Leases that ended without an answer.
    pub lost: u64,
    /// Jobs that died of their last attempt.
    pub dead: u64,
    /// Jobs that expired.
    pub expired: u64,
    /// Dead letters that were dropped over the limits.
    pub dropped: u64,
}

/// How a job is given back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Try again this much later.
    After(Duration, String),
    /// Try again then.
    At(Timestamp, String),
    /// Never try again.
    Dead(String),
    /// As if it had not been leased.
    GiveBack,
}

/// What became of a job under a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Done.
    Done,
    /// Done, and the job is a dead letter.
    Died,
    /// The lease was over or another's; nothing was changed.
    Lost,
    /// There is no such job any more.
    Gone,
}

/// What to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The first jobs of a recipient.
    Of(Key, usize),
    /// These, dead letters too; those that are gone are left out.
    Ids(Vec<JobId>),
    /// The last dead letters.
    Dead(usize),
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// A worker has it.
    Leased,
    /// It may be leased.
    Ready,
    /// It waits for its time.
    Delayed,
    /// It will not be tried again.
    Dead,
}

/// A job as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub id: JobId,
    /// For whom.
    pub recipient: Key,
    /// Where it stands.
    pub state: JobState,
    /// How urgent.
    pub priority: Priority,
    /// Tries so far, the running one included.
    pub attempts: u32,
    /// When it is or was due.
    pub due: Timestamp,
    /// Its encoded items.
    pub items: Vec<Bytes>,
    /// Why its last try failed.
    pub last_error: Option<String>,
}

/// How many jobs there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    /// Ready to be leased.
    pub ready: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// At a worker.
    pub leased: u64,
    /// Dead letters.
    pub dead: u64,
    /// When the ready job that waits longest was due; known to `count` only.
    pub oldest: Option<Timestamp>,
}

impl Depth {
    /// Returns all jobs that will be tried.
    #[must_use]
    pub const fn waiting(&self) -> u64 {
        self.ready + self.delayed + self.leased
    }
}
