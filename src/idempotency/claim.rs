//! From a request to a claim: whose key it is, which payload, and what is already there.

use std::sync::Arc;

use bytes::Bytes;
use http::{Extensions, Request, Response};
use http_body::Body as HttpBody;
use tower_service::Service;

use super::answer;
use super::backlog::Waiting;
use super::config::Config;
use super::fingerprint::path_of;
use super::intake::{self, Gist, Stream};
use super::key::ClientKey;
use super::mac::Hasher;
use super::nonce::draw_nonce;
use super::patience::{Patience, look};
use super::policy;
use super::record::{Content, Fingerprint, Head, Nonce, Record, RecordId, ScopeTag};
use super::rejection::{IdempotencyRejection, RejectionCause};
use super::run;
use super::run_state::RunState;
use super::running::timed;
use super::scope::ScopeId;
use super::seats::{Enter, Found, Seat};
use super::service::Shared;
use super::store::{Begin, Claim};
use super::unguarded::{is_within, unprotected, within};
use crate::core::telemetry::{Seldom, count, error};
use crate::core::{
    Body, IdempotencyOutcome, Inner, StoreError, StoreFailure, Timestamp, emptied, monotonic,
};

/// Which record a request means, and what it would write.
#[derive(Clone, Copy)]
pub(super) struct Question {
    pub(super) id: RecordId,
    pub(super) fingerprint: Fingerprint,
}

/// What there is under the key.
enum Claimed {
    /// The key is ours: run, and tell the local twins.
    Run(Box<run::Ticket>),
    Answer(Found, IdempotencyOutcome),
    Refused(RejectionCause),
    StoreFailed(StoreError),
}

/// Everything a guarded request goes through; the order of refusals is the order of this function.
pub(super) async fn guarded<S, B, R>(
    inner: S,
    (mut gist, body): (Box<Gist>, B),
    key: Option<ClientKey>,
    shared: Arc<Shared>,
    state: Arc<RunState>,
) -> Result<Response<Body<R>>, S::Error>
where
    S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send,
    S::Future: Send,
    B: HttpBody<Data = Bytes> + Send + 'static,
    R: HttpBody<Data = Bytes> + Send + 'static,
{
    let config = &*shared.config;
    let refused = |cause, key| Ok(refuse(config, IdempotencyRejection::new(cause, key)));
    let opens = config.on_store_failure == StoreFailure::Open;
    let is_open = || opens && !shared.runs.has_given_up(&state);
    let scope = match config.scope.of(&gist.parts).await {
        Ok(Some(scope)) => scope,
        Ok(None) => return refused(RejectionCause::ScopeMissing, key),
        Err(_) if is_open() => {
            let request = Request::from_parts(gist.parts, Body::pass(body));
            return Box::pin(unprotected(config, Inner::new(inner), request)).await;
        }
        Err(error) => return refused(RejectionCause::of_store(&error), key),
    };
    let stream = match take_in(&shared, &mut gist, body).await {
        Ok(stream) => stream,
        Err(cause) => return refused(cause, key),
    };
    let question = match ask(&shared, &scope, key.as_ref(), &gist) {
        Ok(question) => question,
        Err(cause) => return refused(cause, key),
    };
    if is_within(&gist, &question) {
        return Box::pin(within(inner, gist, stream)).await;
    }
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    if let Some(mode) = &config.transactional {
        let run = (&shared, &state);
        // In a box of its own: the usual request pays for no room of this one.
        let run = super::transactional::guarded(mode, inner, gist, question, run, key);
        return Box::pin(run).await;
    }
    let mut inner = Inner::new(inner);
    match claimed(&shared, &question, &state, &mut inner).await? {
        // In a box of its own: a replay pays for no room of a run.
        Claimed::Run(ticket) => {
            let gist = (gist, stream);
            Box::pin(run::run(&mut inner, gist, ticket, &shared, &state, key)).await
        }
        Claimed::Answer(found, outcome) => {
            let spare = emptied(&mut gist.parts.extensions);
            Ok(give(config, found, outcome, key, spare))
        }
        Claimed::Refused(cause) => refused(cause, key),
        // A stream that may turn out wrong needs somebody to drop its handler; and whose client left needs no effect.
        Claimed::StoreFailed(_) if stream.is_none() && !state.has_client_left() && is_open() => {
            Box::pin(unprotected(config, inner, gist.request())).await
        }
        Claimed::StoreFailed(error) => refused(RejectionCause::of_store(&error), key),
    }
}

/// Makes the response of a refusal.
pub(super) fn refuse<R>(config: &Config, rejection: IdempotencyRejection) -> Response<Body<R>> {
    let outcome = rejection.cause().outcome();
    count!("keep_idempotency_refusals_total", 1, "code" => rejection.code());
    let mut response = rejection.response(config).map(Body::bytes);
    answer::mark(config, &mut response, outcome, None);
    response
}

fn ask(
    shared: &Shared,
    scope: &ScopeId,
    key: Option<&ClientKey>,
    gist: &Gist,
) -> Result<Question, RejectionCause> {
    let config = &*shared.config;
    let path = path_of(&gist.parts);
    let endpoint = (gist.parts.method.as_str(), &*path);
    let id = record_id(config, scope, endpoint, |hasher| {
        match (key, &config.derive) {
            (Some(key), _) => {
                hasher.number(1).part(key.as_bytes());
                Ok(())
            }
            (None, Some(derive)) => {
                hasher.number(2);
                derive
                    .hash(hasher, &gist.parts, &gist.bytes)
                    .map_err(RejectionCause::FieldsInvalid)
            }
            (None, None) => Err(RejectionCause::KeyMissing),
        }
    })?;
    let fingerprint = shared.rule.of_request(
        &config.keyed.fingerprint,
        shared.rule_tag,
        &gist.parts,
        &gist.bytes,
    );
    super::span::of_key(&id);
    Ok(Question { id, fingerprint })
}

/// Makes the first half of the ids of a caller's records.
pub(super) fn scope_tag(config: &Config, scope: &ScopeId) -> ScopeTag {
    let hash = config.keyed.of_scope(scope);
    let mut tag = [0; 16];
    tag.copy_from_slice(&hash[..16]);
    ScopeTag(tag)
}

/// Makes the id: 16 bytes of a hash of the scope, 16 of one of scope, namespace, endpoint if asked for, source and key.
pub(super) fn record_id<E>(
    config: &Config,
    scope: &ScopeId,
    endpoint: (&str, &str),
    key: impl FnOnce(&mut Hasher) -> Result<(), E>,
) -> Result<RecordId, E> {
    let ScopeTag(scope_tag) = scope_tag(config, scope);
    let mut hasher = config.keyed.key.start();
    scope.put(&mut hasher);
    hasher.part(config.namespace.as_bytes());
    if config.per_endpoint {
        hasher
            .number(1)
            .part(endpoint.0.as_bytes())
            .part(endpoint.1.as_bytes());
    } else {
        hasher.number(0);
    }
    key(&mut hasher)?;
    let key_tag = hasher.finish();
    let mut id = [0; 32];
    id[..16].copy_from_slice(&scope_tag);
    id[16..].copy_from_slice(&key_tag[..16]);
    Ok(RecordId::from_bytes(id))
}

/// Claims the key, or says why not. Who has waited for a twin that left no answer first has the place again that was
/// given back meanwhile: whoever holds a claim runs at once.
async fn claimed<S, B>(
    shared: &Arc<Shared>,
    question: &Question,
    state: &RunState,
    inner: &mut Inner<S>,
) -> Result<Claimed, S::Error>
where
    S: Service<Request<Body<B>>> + Clone + Send,
{
    let patience = Patience::of(&shared.config);
    loop {
        if shared.runs.has_given_up(state) {
            return Ok(Claimed::Refused(RejectionCause::Draining));
        }
        let mut rest = || inner.rest();
        let claimed = claim(shared, question, state, patience, &mut rest).await;
        if let Some(claimed) = claimed {
            return Ok(claimed);
        }
        match Box::pin(patience.wait(inner.ready())).await {
            Some(ready) => ready?,
            None => return Ok(Claimed::Refused(RejectionCause::InProgress(1))),
        }
    }
}

/// Asks the store, waiting for a twin's answer where the layer attaches; `None` where that twin left none.
async fn claim(
    shared: &Arc<Shared>,
    question: &Question,
    state: &RunState,
    patience: Patience,
    rest: &mut (dyn FnMut() + Send),
) -> Option<Claimed> {
    if let Some((fingerprint, end)) = shared.runs.backlog.end(&question.id) {
        return Some(match end {
            _ if fingerprint.contradicts(&question.fingerprint) => {
                Claimed::Refused(RejectionCause::KeyReused)
            }
            Waiting::Answer(found) => Claimed::Answer(found, IdempotencyOutcome::Replayed),
            Waiting::Undecided => Claimed::Refused(RejectionCause::OutcomeUnknown),
        });
    }
    if !patience.attaches() {
        return Some(match begin(shared, question, state, None).await {
            Begun::Settled(claimed) => claimed,
            Begun::Running(head, _) => Claimed::Refused(in_progress(shared, &head)),
        });
    }
    let attached = Box::pin(attach(shared, question, state, rest));
    match patience.wait(attached).await {
        Some(claimed) => claimed,
        // Only waiting is cut: a claim that was won has been answered by then.
        None => Some(Claimed::Refused(RejectionCause::InProgress(1))),
    }
}

enum Begun {
    Settled(Claimed),
    Running(Head, Option<Seat>),
}

async fn begin(
    shared: &Arc<Shared>,
    question: &Question,
    state: &RunState,
    seat: Option<Seat>,
) -> Begun {
    let config = &*shared.config;
    let claim = Claim {
        nonce: draw_nonce(),
        fingerprint: question.fingerprint,
        lease: config.lease,
        keep: config.keep(),
        at_lease_end: config.at_lease_end,
    };
    let active = shared.runs.enter();
    state.claiming();
    let mut asked = Asked {
        shared,
        id: question.id,
        nonce: claim.nonce,
        open: true,
    };
    let asked_at = monotonic();
    let begun = timed("begin", config.store.begin(&question.id, &claim)).await;
    asked.open = false;
    let settled = match begun {
        Ok(Begin::Run(fence)) => {
            state.begun(question.id, fence);
            super::span::of_run(fence);
            if let Some(seat) = &seat {
                seat.hold(asked_at);
            }
            let ticket = run::Ticket {
                question: *question,
                nonce: claim.nonce,
                fence,
                asked_at,
                seat,
                _active: active,
            };
            return Begun::Settled(Claimed::Run(Box::new(ticket)));
        }
        Ok(Begin::Running(head)) => {
            state.idle();
            if let Some(seat) = &seat {
                seat.look();
            }
            return Begun::Running(head, seat);
        }
        Ok(Begin::Mismatch(_)) => Claimed::Refused(RejectionCause::KeyReused),
        Ok(Begin::Unknown(_)) => {
            tell_unknown(question.id);
            Claimed::Refused(RejectionCause::OutcomeUnknown)
        }
        Ok(Begin::Done(record)) => replayed(question, record, seat),
        Err(error) => {
            if error.is_unknown() {
                shared
                    .runs
                    .release_later(&config.store, question.id, claim.nonce);
            }
            Claimed::StoreFailed(error)
        }
    };
    state.idle();
    Begun::Settled(settled)
}

/// What is kept for this key, for this request and for those of this process that wait for it.
fn replayed(question: &Question, record: Record, seat: Option<Seat>) -> Claimed {
    let (found, outcome) = found(question, record, seat);
    Claimed::Answer(found, outcome)
}

pub(super) fn found(
    question: &Question,
    record: Record,
    seat: Option<Seat>,
) -> (Found, IdempotencyOutcome) {
    if record.head.fingerprint.rule != question.fingerprint.rule {
        count!("keep_idempotency_rule_skipped_total", 1);
    }
    let found = Found {
        content: record.content,
        expires_at: record.head.expires_at,
    };
    if let Some(seat) = seat {
        seat.publish(found.clone());
    }
    (found, IdempotencyOutcome::Replayed)
}

/// A claim under way: cut off by a time limit, it is released in the background, should it have been won.
struct Asked<'a> {
    shared: &'a Shared,
    id: RecordId,
    nonce: Nonce,
    open: bool,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.open {
            self.shared
                .runs
                .release_later(&self.shared.config.store, self.id, self.nonce);
        }
    }
}

/// Waits for the twin that runs, in this process by a channel, elsewhere by looking; then answers, or says that the key
/// may be free. Whoever waits rests: the place of the inner service may be one that another request needs.
async fn attach(
    shared: &Arc<Shared>,
    question: &Question,
    state: &RunState,
    rest: &mut (dyn FnMut() + Send),
) -> Option<Claimed> {
    let attached = |found| Some(Claimed::Answer(found, IdempotencyOutcome::Attached));
    let seat = match shared.runs.table.enter(question.id, question.fingerprint) {
        Enter::Own(seat) => Some(seat),
        Enter::Unseated => None,
        Enter::Mismatch => return Some(Claimed::Refused(RejectionCause::KeyReused)),
        Enter::Crowded => return Some(Claimed::Refused(RejectionCause::InProgress(1))),
        Enter::Wait(waiter) => {
            rest();
            return waiter.wait().await.and_then(attached);
        }
    };
    let seat = match begin(shared, question, state, seat).await {
        Begun::Settled(claimed) => return Some(claimed),
        Begun::Running(_, seat) => seat,
    };
    let Some(_place) = shared.runs.table.place() else {
        return Some(Claimed::Refused(RejectionCause::InProgress(1)));
    };
    rest();
    match look(shared, question).await {
        Ok(found) => {
            let found = found?;
            if let Some(seat) = seat {
                seat.publish(found.clone());
            }
            attached(found)
        }
        Err(error) => Some(Claimed::StoreFailed(error)),
    }
}

fn in_progress(shared: &Shared, head: &Head) -> RejectionCause {
    // Not since `created`, which outlives a takeover.
    let elapsed = head.read_at.since(head.fence.time());
    RejectionCause::InProgress(policy::retry_after(shared.runs.mean_run(), elapsed))
}

/// Gives a finished run's answer again, or says why that cannot be; `spare` is where it puts its extensions.
pub(super) fn give<R>(
    config: &Config,
    found: Found,
    outcome: IdempotencyOutcome,
    key: Option<ClientKey>,
    spare: Extensions,
) -> Response<Body<R>> {
    let expires_at = (found.expires_at != Timestamp::MAX).then_some(found.expires_at);
    let left = match found.content {
        Content::Full(stored) => {
            let mut response = answer::replay(config, stored, spare);
            answer::mark(config, &mut response, outcome, expires_at);
            return response;
        }
        Content::Tombstone(left) => Some(left),
        Content::Claimed | Content::Unreadable => {
            count!("keep_idempotency_unreadable_total", 1);
            None
        }
    };
    refuse(
        config,
        IdempotencyRejection::new(RejectionCause::NotReplayable(left), key),
    )
}

/// Reads the body into the gist; what is left to stream is checked on its way.
async fn take_in<B>(
    shared: &Shared,
    gist: &mut Gist,
    body: B,
) -> Result<Option<Box<Stream<B>>>, RejectionCause>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
{
    let config = &*shared.config;
    let (whole, stream) = match shared.rule.digest_of(&gist.parts.headers) {
        None => {
            let body = std::pin::pin!(body);
            (intake::read(config, body).await?, None)
        }
        Some(said) => Box::pin(intake::read_upload(config, Box::pin(body), said)).await?,
    };
    gist.fill(whole);
    Ok(stream)
}

/// Names the record to the operator, once a minute however often its client asks again; 64 places, so that other records
/// are still told.
pub(super) fn tell_unknown(record: RecordId) {
    static TOLD: [Seldom; 64] = [const { Seldom::new() }; 64];
    let place = usize::from(record.as_bytes()[31]) % TOLD.len();
    if let Some(silent) = TOLD[place].turn() {
        error!(%record, silent, "idempotency: a run did not report its end, an operator must resolve it");
        let _ = silent;
    }
}
