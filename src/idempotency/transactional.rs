//! Transactional mode: the claim, what the handler writes and the answer commit together, or none of them does.

mod ending;

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::Body as HttpBody;
use tower_service::Service;

use self::ending::{Outcome, Turn};
use super::claim::{Question, give, refuse, tell_unknown};
use super::config::Config;
use super::intake::Gist;
use super::key::ClientKey;
use super::nonce::draw_nonce;
use super::policy::{self, LeaseEnd, Twins};
use super::record::{Content, Record, State};
use super::rejection::{IdempotencyRejection, RejectionCause};
use super::run_state::RunState;
use super::running::jitter;
use super::seats::{Enter, Found, Seat};
use super::service::Shared;
use super::store::sql::{Entry, register};
use super::store::{Begin, Claim, IdempotencyStore};
use crate::backend::sql::{
    Dialect, Finisher, RequestTransaction, SqlStore, TransactionError, TransactionErrorKind,
};
use crate::core::telemetry::{Once, count, warn};
use crate::core::{
    Body, Clock, IdempotencyOutcome, RollbackCause, StoreError, SystemClock, Timestamp, emptied,
    monotonic,
};

/// How long a claim waits for a twin in another process before it is refused.
#[cfg(feature = "postgres")]
const FOREIGN_TWIN: Duration = Duration::from_millis(250);
/// The longest such wait where twins attach.
#[cfg(feature = "postgres")]
const FOREIGN_TWIN_LONGEST: Duration = Duration::from_secs(10);
/// How often a claim is tried that collides with others.
const TRIES: u32 = 3;

/// The database of [`IdempotencyLayer::transactional`](super::IdempotencyLayer::transactional).
#[derive(Clone, Debug)]
#[must_use]
pub struct Transactional {
    db: SqlStore,
    reruns: u32,
}

impl Transactional {
    /// Keeps claims and answers in `db`, in the transaction of the request.
    pub fn new(db: SqlStore) -> Self {
        Self { db, reruns: 0 }
    }

    /// Lets a handler whose transaction collided with another's (a deadlock, a serialisation failure, a
    /// COMMIT proven lost) run again this often (0), in a new transaction. Only for handlers that act
    /// nowhere else.
    pub fn reruns(mut self, times: u32) -> Self {
        self.reruns = times;
        self
    }

    pub(super) const fn db(&self) -> &SqlStore {
        &self.db
    }

    /// Names the table to the handle, so that it is there before the first transaction.
    pub(super) fn register(&self) {
        register(&self.db);
    }

    /// How long a claim's row acts as a claim, should something commit it alone; and the longest run.
    fn longest(&self, config: &Config) -> Duration {
        config.run_limit.min(self.db.transaction_timeout())
    }

    /// How long a claim waits for a foreign twin. SQLite has one writer for all keys: the wait for its turn
    /// says nothing about this key, and is the handle's own.
    fn patience(&self, twins: Twins) -> Option<Duration> {
        match self.db.dialect() {
            #[cfg(feature = "sqlite")]
            Dialect::Sqlite => {
                let _ = twins;
                None
            }
            #[cfg(feature = "postgres")]
            Dialect::Postgres => Some(match twins {
                Twins::Reject => FOREIGN_TWIN,
                Twins::Attach(most) => most
                    .min(FOREIGN_TWIN_LONGEST)
                    .min(self.db.statement_timeout().mul_f32(0.9)),
            }),
        }
    }

    /// Says whether a claim waited in vain for a twin, and not for its turn.
    fn met_a_twin(&self, error: &TransactionError) -> bool {
        self.patience(Twins::Reject).is_some() && error.kind() == TransactionErrorKind::LockTimeout
    }
}

impl From<SqlStore> for Transactional {
    fn from(db: SqlStore) -> Self {
        Self::new(db)
    }
}

/// What is there for a request that wants to run.
enum Entered {
    Run(Box<Turn>),
    Answer(Found, IdempotencyOutcome),
    Refused(RejectionCause),
}

/// What one look came to.
enum Look {
    Entered(Entered),
    /// Another process has the key, or may have it.
    Foreign(Timestamp, Timestamp),
    /// A twin of this process gave its place up.
    Again,
}

/// Everything a guarded request goes through once its body was read.
pub(super) async fn guarded<S, B, R>(
    mode: &Transactional,
    mut inner: S,
    mut gist: Box<Gist>,
    question: Question,
    (shared, state): (&Arc<Shared>, &Arc<RunState>),
    key: Option<ClientKey>,
) -> Result<Response<Body<R>>, S::Error>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send,
    R: HttpBody<Data = Bytes> + Send + 'static,
{
    let config = &*shared.config;
    let refused = |cause, key| Ok(refuse(config, IdempotencyRejection::new(cause, key)));
    let (started, mut reruns) = (SystemClock.now_micros(), mode.reruns);
    loop {
        if shared.runs.has_given_up(state) {
            return refused(RejectionCause::Draining, key);
        }
        let spare = (reruns > 0).then(|| gist.clone());
        let entered = enter(mode, shared, &question, &mut gist.parts.extensions).await;
        let turn = match entered {
            Entered::Run(turn) => turn,
            Entered::Answer(found, outcome) => {
                let spare = emptied(&mut gist.parts.extensions);
                return Ok(give(config, found, outcome, key, spare));
            }
            Entered::Refused(cause) => return refused(cause, key),
        };
        let limit = mode.longest(config);
        match turn.run(&mut inner, gist, (shared, state), limit).await {
            Outcome::Answer(answer) => return answer,
            Outcome::Refused(cause) => return refused(cause, key),
            Outcome::Contention => {}
        }
        let took = Duration::from_micros(SystemClock.now_micros().saturating_sub(started));
        let Some(spare) = spare.filter(|_| took < limit) else {
            return refused(RejectionCause::Contention, key);
        };
        count!("keep_idempotency_reruns_total", 1);
        (gist, reruns) = (spare, reruns - 1);
        inner = inner.clone();
        poll_fn(|cx| inner.poll_ready(cx)).await?;
    }
}

/// Claims the key in a transaction, waiting for twins where the layer attaches.
async fn enter(
    mode: &Transactional,
    shared: &Arc<Shared>,
    question: &Question,
    extensions: &mut Extensions,
) -> Entered {
    let Twins::Attach(most) = shared.config.twins else {
        return match look(mode, shared, question, extensions).await {
            Look::Entered(entered) => entered,
            Look::Foreign(now, since) => Entered::Refused(in_progress(shared, now, since)),
            Look::Again => Entered::Refused(RejectionCause::InProgress(1)),
        };
    };
    let attaching = async {
        let mut pause = Duration::from_millis(25);
        loop {
            match look(mode, shared, question, extensions).await {
                Look::Entered(entered) => return entered,
                Look::Again => {}
                Look::Foreign(..) => {
                    tokio::time::sleep(jitter(pause)).await;
                    pause = (pause * 2).min(Duration::from_millis(500));
                }
            }
        }
    };
    match tokio::time::timeout(most, attaching).await {
        Ok(entered) => entered,
        // Only waiting is cut: what was begun is rolled back, and nobody's claim was touched.
        Err(_elapsed) => Entered::Refused(RejectionCause::InProgress(1)),
    }
}

fn in_progress(shared: &Shared, now: Timestamp, since: Timestamp) -> RejectionCause {
    let mean = shared.runs.mean_run();
    RejectionCause::InProgress(policy::retry_after(mean, now.since(since)))
}

/// Looks once at the record, at this process's own runs, and at last into the transaction.
async fn look(
    mode: &Transactional,
    shared: &Arc<Shared>,
    question: &Question,
    extensions: &mut Extensions,
) -> Look {
    let is_member = RequestTransaction::find(extensions, &mode.db).is_some();
    // Whoever owns the transaction may hold the only connection: a member looks inside it only. And who is
    // known to run here has nothing to show yet.
    if !is_member && !shared.runs.table.is_held(&question.id) {
        match mode.db.peek(&question.id).await {
            Ok(None) => {}
            Ok(Some(record)) => {
                if let Some(look) = decided(question, record, None) {
                    return look;
                }
            }
            Err(error) => return refused(RejectionCause::of_store(&error)),
        }
    }
    let (runs, twins) = (&shared.runs, shared.config.twins);
    let seat = match runs.table.enter(question.id, question.fingerprint) {
        Enter::Own(seat) => seat,
        // Nobody only looks here; and who asks the store for itself has just done so.
        Enter::Unseated => return Look::Foreign(Timestamp::EPOCH, Timestamp::EPOCH),
        Enter::Mismatch => return refused(RejectionCause::KeyReused),
        Enter::Crowded => return refused(RejectionCause::InProgress(1)),
        Enter::Wait(waiter) if twins != Twins::Reject => {
            return match waiter.wait().await {
                Some(found) => Look::Entered(Entered::Answer(found, IdempotencyOutcome::Attached)),
                None => Look::Again,
            };
        }
        Enter::Wait(twin) => {
            let after = policy::retry_after(runs.mean_run(), twin.elapsed());
            return refused(RejectionCause::InProgress(after));
        }
    };
    claim(mode, shared, question, extensions, seat).await
}

/// Claims the key inside the transaction; tried again where others collide with it.
async fn claim(
    mode: &Transactional,
    shared: &Arc<Shared>,
    question: &Question,
    extensions: &mut Extensions,
    seat: Seat,
) -> Look {
    let mut tries = 1;
    loop {
        let (request, finisher) = RequestTransaction::join(extensions, &mode.db);
        let is_member = finisher.is_none();
        let waits_for_rows = !is_member && mode.patience(shared.config.twins).is_some();
        if is_member {
            static INVERTED: Once = Once::new();
            if INVERTED.first() {
                warn!(
                    "idempotency: stands inside the layer that ends the transaction; it should stand outside"
                );
            }
        }
        match begin(mode, shared, question, (request, finisher)).await {
            Ok(Claimed::Won(mut turn)) => {
                seat.hold(monotonic());
                turn.seat = Some(seat);
                return Look::Entered(Entered::Run(turn));
            }
            Ok(Claimed::Found(record)) => {
                return decided(question, record, Some(seat)).unwrap_or(Look::Again);
            }
            Err(error) if mode.met_a_twin(&error) => {
                return Look::Foreign(Timestamp::EPOCH, Timestamp::EPOCH);
            }
            // On SQLite the handle's own patience is over by now.
            Err(error) if waits_for_rows && error.is_retryable() && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(jitter(Duration::from_millis(25))).await;
            }
            Err(error) => return refused(RejectionCause::of_store(&StoreError::from(error))),
        }
    }
}

/// What one attempt to claim came to.
enum Claimed {
    Won(Box<Turn>),
    Found(Record),
}

async fn begin(
    mode: &Transactional,
    shared: &Arc<Shared>,
    question: &Question,
    (request, mut finisher): (RequestTransaction, Option<Finisher>),
) -> Result<Claimed, TransactionError> {
    let config = &*shared.config;
    let wish = Claim {
        nonce: draw_nonce(),
        fingerprint: question.fingerprint,
        lease: mode.db.transaction_timeout(),
        keep: config.keep(),
        at_lease_end: config.at_lease_end,
    };
    let active = shared.runs.enter();
    let entry = Entry::new(mode.db.clone(), request.clone(), question.id, wish.nonce);
    let claiming = async {
        if let (Some(finisher), Some(patience)) = (&finisher, mode.patience(config.twins)) {
            finisher.begin(patience).await?;
        }
        entry.claim(wish).await
    };
    let begun = claiming.await;
    let fence = match (begun, &mut finisher) {
        (Ok(Begin::Run(fence)), Some(finisher)) => {
            finisher.proof(entry.proof(fence));
            finisher.mark().await?;
            fence
        }
        (Ok(Begin::Run(fence)), None) => fence,
        (other, finisher) => {
            if let Some(finisher) = finisher.take() {
                // Awaited, so that nothing is locked when the client asks again.
                finisher.rollback(RollbackCause::Conflict).await;
            }
            return other.map(found);
        }
    };
    Ok(Claimed::Won(Box::new(Turn {
        question: *question,
        fence,
        entry,
        request,
        finisher,
        seat: None,
        active,
    })))
}

fn found(begin: Begin) -> Claimed {
    Claimed::Found(match begin {
        Begin::Done(record) => record,
        Begin::Mismatch(head) | Begin::Running(head) | Begin::Unknown(head) => Record {
            head,
            content: Content::Claimed,
        },
        // Handled before; should it come here, nothing may run.
        Begin::Run(_) => Record::unreadable(Timestamp::EPOCH),
    })
}

/// Answers by what is there; `None` if it may be taken over.
fn decided(question: &Question, record: Record, seat: Option<Seat>) -> Option<Look> {
    let head = record.head;
    if head.state != State::Unreadable && head.fingerprint.contradicts(&question.fingerprint) {
        return Some(refused(RejectionCause::KeyReused));
    }
    if head.state != State::Claimed {
        let (found, outcome) = super::claim::found(question, record, seat);
        return Some(Look::Entered(Entered::Answer(found, outcome)));
    }
    if head.is_leased() {
        return Some(Look::Foreign(head.read_at, head.fence.time()));
    }
    if head.at_lease_end == LeaseEnd::Reexecute {
        return None;
    }
    tell_unknown(question.id);
    Some(refused(RejectionCause::OutcomeUnknown))
}

const fn refused(cause: RejectionCause) -> Look {
    Look::Entered(Entered::Refused(cause))
}

/// Says whether doing it all again may succeed at once.
fn is_contention(error: &TransactionError) -> bool {
    error.is_retryable() || error.kind() == TransactionErrorKind::LockTimeout
}
