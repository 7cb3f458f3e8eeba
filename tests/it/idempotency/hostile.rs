//! What a hostile reader found: answers of another payload, leases that are over before they begin, and what is printed.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;
use tokio::sync::Notify;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{
    IdempotencyOutcome, ManualClock, StoreError, StoreFailure, SystemClock, Timestamp,
};
use tower_keep::idempotency::{
    Answer, AnswerContent, Begin, Claim, Directive, Fence, Fingerprint, IdempotencyLayer,
    IdempotencyStore, IdempotentRun, LeaseEnd, Nonce, Owned, RecordId, Resolution, Resolved,
    ScopeId, StoredAnswer, Twins,
};
use tower_keep::{HOUR, MINUTE, SECOND};

use super::leaving::TimerClock;
use super::{App, clock, layer, memory, post};
use crate::support::redis::{fresh_prefix, shared};
use crate::support::wayward::{Step, Wayward, away};

/// A store on the timers' clock.
pub fn timed() -> MemoryStore {
    let clock = TimerClock(tokio::time::Instant::now());
    MemoryStore::builder().clock(clock).build()
}

pub fn id_of(layer: &IdempotencyLayer, key: &str) -> RecordId {
    layer.admin().id(&ScopeId::global(), key)
}

/// A claim of somebody else's.
fn claim(fingerprint: Fingerprint) -> Claim {
    Claim {
        nonce: Nonce([9; 16]),
        fingerprint,
        lease: 30 * SECOND,
        keep: HOUR,
        at_lease_end: LeaseEnd::Reexecute,
    }
}

fn answer_of(body: &'static str) -> AnswerContent {
    AnswerContent::Full(Arc::new(StoredAnswer {
        status: StatusCode::CREATED,
        fields: HeaderMap::new(),
        body: Bytes::from_static(body.as_bytes()),
        trailers: None,
    }))
}

pub async fn turns() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

/// A handler that says when it began, and answers so once it may go on.
pub fn gated(layer: IdempotencyLayer, status: u16) -> (App, Arc<Notify>, Arc<Notify>) {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, wait) = (Arc::clone(&entered), Arc::clone(&go));
    let app = App::with(layer, move |_, run| {
        let (inside, wait) = (Arc::clone(&inside), Arc::clone(&wait));
        async move {
            inside.notify_one();
            wait.notified().await;
            let answer = Response::builder().status(status);
            answer.body(Full::from(format!("run {run}"))).unwrap()
        }
    });
    (app, entered, go)
}

#[tokio::test(start_paused = true)]
async fn a_twin_that_looks_from_elsewhere_never_gets_the_answer_of_another_payload() {
    let store = memory(&clock());
    let (first, entered, go) = gated(layer(store.clone()), 500);
    let elsewhere = App::new(layer(store.clone()).twins(Twins::Attach(10 * SECOND)));
    let id = id_of(&first.layer, "k");
    let failing = tokio::spawn(first.future(post("/pay", "k", "{}")));
    entered.notified().await;
    let twins = [(); 2].map(|()| tokio::spawn(elsewhere.future(post("/pay", "k", "{}"))));
    turns().await;
    let mut fingerprint = store.peek(&id).await.unwrap().unwrap().head.fingerprint;
    go.notify_one();
    assert_eq!(failing.await.unwrap().status, 500);
    // Free again: another payload is quicker than the twins.
    fingerprint.hash[0] ^= 1;
    let other = claim(fingerprint);
    assert!(matches!(
        store.begin(&id, &other).await.unwrap(),
        Begin::Run(_)
    ));
    let answer = Answer {
        fingerprint,
        content: answer_of("another's"),
    };
    let done = store.complete(&id, other.nonce, answer, HOUR).await;
    assert_eq!(done.unwrap(), Owned::Yes);
    for twin in twins {
        let twin = twin.await.unwrap();
        twin.check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    }
    assert_eq!(elsewhere.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn another_payload_is_not_refused_for_a_twin_that_only_looks_at_another_process() {
    let store = memory(&clock());
    let (first, entered, go) = gated(layer(store.clone()), 500);
    let (other, entered_next, go_next) = gated(layer(store.clone()), 201);
    let app = App::new(layer(store).twins(Twins::Attach(10 * SECOND)));
    let failing = tokio::spawn(first.future(post("/pay", "k", "{}")));
    entered.notified().await;
    let twin = tokio::spawn(app.future(post("/pay", "k", "{}")));
    turns().await;
    let wrong = app.post("k", "other").await;
    wrong.check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    go.notify_one();
    assert_eq!(failing.await.unwrap().status, 500);
    // Free again: the other payload is quicker than the twin, which sleeps between two looks.
    let owner = tokio::spawn(other.future(post("/pay", "k", "other")));
    entered_next.notified().await;
    let others = [(); 2].map(|()| tokio::spawn(app.future(post("/pay", "k", "other"))));
    turns().await;
    go_next.notify_one();
    let answer = owner.await.unwrap();
    assert_eq!(answer.status, 201);
    for other in others {
        let other = other.await.unwrap();
        assert_eq!(other.outcome(), IdempotencyOutcome::Attached);
        assert_eq!(other.body, answer.body);
    }
    let wrong = twin.await.unwrap();
    wrong.check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(app.runs(), 0);
}

#[tokio::test(start_paused = true)]
async fn another_payload_is_not_refused_for_a_run_that_lost_its_key() {
    let store = timed();
    let silent = Wayward::new(store.clone()).before(no_writes);
    let (app, entered, go) = gated(layer(silent).twins(Twins::Attach(10 * SECOND)), 201);
    let lost = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    tokio::time::sleep(40 * SECOND).await;
    // Another process takes over and fails; then the key is another payload's.
    let failing = App::with(layer(store.clone()), |_, _| async {
        let answer = Response::builder().status(500);
        answer.body(Full::default()).unwrap()
    });
    assert_eq!(failing.post("k", "{}").await.status, 500);
    let owner = App::new(layer(store)).post("k", "other").await;
    assert_eq!(owner.status, 201);
    let replay = app.post("k", "other").await;
    assert!(replay.is_replay(), "{replay:?}");
    go.notify_one();
    let late = lost.await.unwrap();
    assert_eq!(late.outcome(), IdempotencyOutcome::Unrecorded);
}

#[tokio::test]
async fn who_left_before_the_store_failed_is_not_run_unprotected() {
    let (go, wait) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (gone, told) = (Arc::clone(&go), Arc::clone(&wait));
    let store = Wayward::new(memory(&clock())).before(move |step| {
        let (gone, told) = (Arc::clone(&gone), Arc::clone(&told));
        async move {
            if step != Step::Begin {
                return Ok(());
            }
            gone.notified().await;
            told.notify_one();
            away()
        }
    });
    let app = App::new(layer(store).on_store_failure(StoreFailure::Open));
    let mut leaving = app.future(post("/pay", "k", "{}"));
    let is_over = poll_fn(|cx| Poll::Ready(leaving.as_mut().poll(cx).is_ready())).await;
    assert!(!is_over);
    drop(leaving);
    go.notify_one();
    wait.notified().await;
    turns().await;
    assert_eq!(app.runs(), 0);
    go.notify_one();
    let stayed = app.post("k", "{}").await;
    assert_eq!(stayed.outcome(), IdempotencyOutcome::Unprotected);
}

/// A store that claims at once and says so only after `pause`.
fn late(store: MemoryStore, pause: Duration) -> Wayward {
    Wayward::new(store).after(move |step| async move {
        if step == Step::Begin {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    })
}

/// Neither an answer nor a renewal can be written.
async fn no_writes(step: Step) -> Result<(), StoreError> {
    match step {
        Step::Renew | Step::Complete(_) => away(),
        _ => Ok(()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_whose_lease_is_over_when_its_reply_comes_is_renewed_before_the_handler_starts() {
    let store = timed();
    let layer = layer(late(store.clone(), 31 * SECOND)).report_status();
    let id = id_of(&layer, "k");
    let app = App::with(layer, move |request, _| {
        let store = store.clone();
        async move {
            let head = store.peek(&id).await.unwrap().unwrap().head;
            assert!(head.is_leased(), "the handler runs under a lease");
            let run = request.extensions().get::<IdempotentRun>().unwrap();
            assert!(!run.is_lost());
            Response::new(Full::default())
        }
    });
    let answer = app.post("k", "{}").await;
    assert_eq!(answer.outcome(), IdempotencyOutcome::First);
    let end = &answer.headers["idempotency-expires"];
    let replay = app.post("k", "{}").await;
    assert_eq!(&replay.headers["idempotency-expires"], end);
}

#[tokio::test(start_paused = true)]
async fn a_late_claim_that_cannot_be_renewed_does_not_run_and_is_released() {
    let store = timed();
    let layer = layer(late(store.clone(), 31 * SECOND).before(no_writes));
    let id = id_of(&layer, "k");
    let app = App::new(layer);
    let refused = app.post("k", "{}").await;
    refused.check_refused(503, "STORE_UNAVAILABLE");
    assert_eq!(app.runs(), 0);
    tokio::time::sleep(SECOND).await;
    assert!(store.peek(&id).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_was_taken_over_before_its_reply_came_does_not_run() {
    let store = timed();
    let app = App::new(layer(late(store.clone(), 31 * SECOND)));
    let late = tokio::spawn(app.future(post("/pay", "k", "{}")));
    tokio::time::sleep(30 * SECOND + Duration::from_millis(500)).await;
    let (other, _, go) = gated(layer(store), 201);
    let other_run = tokio::spawn(other.future(post("/pay", "k", "{}")));
    let late = late.await.unwrap();
    late.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
    assert_eq!((app.runs(), other.runs()), (0, 1));
    go.notify_one();
    assert_eq!(other_run.await.unwrap().status, 201);
    assert!(app.post("k", "{}").await.is_replay());
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_reckoned_from_when_it_was_asked_for() {
    let store = timed();
    let app = App::with(layer(late(store.clone(), 25 * SECOND)), |_, _| async {
        tokio::time::sleep(8 * SECOND).await;
        Response::new(Full::default())
    });
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    tokio::time::sleep(31 * SECOND).await;
    let elsewhere = App::new(layer(store));
    let twin = elsewhere.post("k", "{}").await;
    twin.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
    assert_eq!(first.await.unwrap().outcome(), IdempotencyOutcome::First);
    assert_eq!((app.runs(), elsewhere.runs()), (1, 0));
}

/// How many answers of its caller were removed.
async fn purged(store: &impl IdempotencyStore, id: &RecordId) -> u64 {
    let (mut removed, mut page) = (0, None);
    loop {
        let purged = store.purge(id.scope(), page).await.unwrap();
        removed += purged.removed;
        page = purged.next;
        if page.is_none() {
            return removed;
        }
    }
}

/// What the next owner is told by a clock that is behind.
async fn next_begin(prefix: &str, id: RecordId, next: &Claim) -> Begin {
    let behind = ManualClock::at(Timestamp::of(&SystemClock).minus(10 * SECOND));
    let server = shared().await;
    let slow = server.builder(prefix).clock(behind).open().await.unwrap();
    slow.begin(&id, next).await.unwrap()
}

#[tokio::test]
async fn a_fence_rises_over_a_release_though_the_next_server_is_behind() {
    let fingerprint = Fingerprint {
        rule: 1,
        hash: [7; 32],
    };
    let first = claim(fingerprint);
    let next = Claim {
        nonce: Nonce([8; 16]),
        ..first
    };
    for way in ["release", "resolve", "answer", "purge"] {
        let (prefix, id) = (fresh_prefix(), RecordId::from_bytes([3; 32]));
        let store = shared().await.store_with(&prefix).await;
        let Begin::Run(fence) = store.begin(&id, &first).await.unwrap() else {
            panic!("the key is free");
        };
        match way {
            "release" => {
                let released = store.release(&id, first.nonce).await.unwrap();
                assert_eq!(released, Owned::Yes);
            }
            "answer" => {
                let answer = Answer {
                    fingerprint,
                    content: answer_of("{}"),
                };
                let ttl = Duration::from_millis(1);
                let written = store.complete(&id, first.nonce, answer, ttl).await;
                assert_eq!(written.unwrap(), Owned::Yes);
                while store.peek(&id).await.unwrap().is_some() {
                    tokio::time::sleep(ttl).await;
                }
            }
            "purge" => {
                let answer = Answer {
                    fingerprint,
                    content: answer_of("{}"),
                };
                let written = store.complete(&id, first.nonce, answer, HOUR).await;
                assert_eq!(written.unwrap(), Owned::Yes);
                for removed in [1, 0] {
                    assert_eq!(purged(&store, &id).await, removed);
                }
            }
            _ => {
                let end = LeaseEnd::Reexecute;
                let given = store.renew(&id, first.nonce, Duration::ZERO, end).await;
                assert_eq!(given.unwrap(), Owned::Yes);
                let resolved = store.resolve(&id, fence, Resolution::Release).await;
                assert_eq!(resolved.unwrap(), Resolved::Done);
            }
        }
        assert!(store.peek(&id).await.unwrap().is_none());
        // By that clock an answer may still count: then there is no run at all.
        match next_begin(&prefix, id, &next).await {
            Begin::Run(later) => assert!(later > fence && way != "answer", "{way}"),
            Begin::Done(_) => assert_eq!(way, "answer"),
            other => panic!("{way}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_claim_is_released_on_a_server_that_is_full() {
    let server = crate::support::redis::RedisServer::start().await;
    let (store, mut raw) = (server.store_with("full").await, server.raw().await);
    let fingerprint = Fingerprint {
        rule: 1,
        hash: [7; 32],
    };
    let claim = claim(fingerprint);
    let mut limit = async |bytes: u32| {
        let mut set = redis::cmd("CONFIG");
        set.arg("SET").arg("maxmemory").arg(bytes);
        let _: () = set.query_async(&mut raw).await.unwrap();
    };
    let [released, resolved, answered] = [3, 4, 5].map(|n| RecordId::from_bytes([n; 32]));
    let mut fence = Fence(0);
    for id in [answered, released, resolved] {
        let Begin::Run(given) = store.begin(&id, &claim).await.unwrap() else {
            panic!("the key is free");
        };
        fence = given;
    }
    let end = LeaseEnd::Reexecute;
    let given = store.renew(&resolved, claim.nonce, Duration::ZERO, end);
    assert_eq!(given.await.unwrap(), Owned::Yes);
    let answer = Answer {
        fingerprint,
        content: answer_of("{}"),
    };
    let written = store.complete(&answered, claim.nonce, answer, HOUR).await;
    assert_eq!(written.unwrap(), Owned::Yes);
    limit(1).await;
    assert_eq!(
        store.release(&released, claim.nonce).await.unwrap(),
        Owned::Yes
    );
    let done = store.resolve(&resolved, fence, Resolution::Release).await;
    assert_eq!(done.unwrap(), Resolved::Done);
    assert_eq!(purged(&store, &answered).await, 1);
    for id in [released, resolved, answered] {
        assert!(store.peek(&id).await.unwrap().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_printed_of_a_layer_holds_nothing_of_its_answers() {
    let layer = layer(Wayward::new(memory(&clock())).before(no_writes));
    let app = App::with(layer.clone(), |request: super::Inner, _| async move {
        let mut answer = Response::builder()
            .header("location", "/hidden-place")
            .header("x-token", "hidden-field")
            .body(Full::from("hidden-body"))
            .unwrap();
        if request.uri().path() == "/tombstone" {
            answer.extensions_mut().insert(Directive::NoStore);
        }
        answer
    });
    for path in ["/pay", "/tombstone"] {
        let answer = app.send(post(path, path, "{}")).await;
        assert_eq!(answer.outcome(), IdempotencyOutcome::Unrecorded);
    }
    let printed = format!("{layer:?} {layer:#?}");
    // A body is printed as text, or as the numbers of its bytes.
    for secret in ["hidden", "104, 105, 100"] {
        assert!(!printed.contains(secret), "{printed}");
    }
    let answer = StoredAnswer {
        status: StatusCode::OK,
        fields: HeaderMap::new(),
        body: Bytes::from_static(b"hidden"),
        trailers: None,
    };
    let printed = format!("{answer:?}");
    assert!(printed.contains("200") && !printed.contains("hidden"));
}

#[tokio::test(start_paused = true)]
async fn an_attached_twin_is_told_the_same_end_as_the_first() {
    let layer = layer(timed()).twins(Twins::Attach(MINUTE)).report_status();
    let app = App::with(layer, |_, _| async {
        tokio::time::sleep(20 * SECOND).await;
        Response::new(Full::default())
    });
    let (first, twin) = tokio::join!(
        app.future(post("/pay", "k", "{}")),
        app.future(post("/pay", "k", "{}"))
    );
    assert_eq!(
        (first.outcome(), twin.outcome()),
        (IdempotencyOutcome::First, IdempotencyOutcome::Attached)
    );
    let field = |answer: &super::Answer| answer.headers["idempotency-expires"].clone();
    assert_eq!(field(&first), field(&twin));
    assert_eq!(field(&app.post("k", "{}").await), field(&first));
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_another_process_are_counted_with_the_others() {
    const MORE: usize = 4_096 + 4;
    let store = memory(&clock());
    let app = App::with(layer(store.clone()), |_, _| pending());
    let elsewhere = App::new(layer(store).twins(Twins::Attach(10 * SECOND)));
    let mut runs = Vec::new();
    for n in 0..MORE {
        runs.push(tokio::spawn(app.future(post("/pay", &n.to_string(), "{}"))));
    }
    while app.runs() < MORE {
        tokio::task::yield_now().await;
    }
    let mut twins = Vec::new();
    for n in 0..MORE {
        let twin = elsewhere.future(post("/pay", &n.to_string(), "{}"));
        twins.push(tokio::spawn(twin));
    }
    // Each round lets some of them take their turn.
    for _ in 0..MORE {
        tokio::task::yield_now().await;
    }
    let mut refused = 0;
    for twin in &mut twins {
        if twin.is_finished() {
            let twin = twin.await.unwrap();
            twin.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
            refused += 1;
        } else {
            twin.abort();
        }
    }
    assert_eq!(refused, MORE - 4_096);
    for _ in 0..MORE {
        tokio::task::yield_now().await;
    }
    // Their places are free again.
    let mut again = tokio::spawn(elsewhere.future(post("/pay", "1", "{}")));
    turns().await;
    assert!(!again.is_finished());
    let waited = (&mut again).await.unwrap();
    waited.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
    for run in runs {
        run.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_counts_from_the_run_that_runs_not_from_the_first_of_its_key() {
    let store = timed();
    let (app, entered, go) = gated(layer(store.clone()), 201);
    // One run of 80 s: the mean is (7 × 1 + 80) / 8, eleven seconds.
    let long = tokio::spawn(app.future(post("/pay", "long", "{}")));
    entered.notified().await;
    let id = id_of(&app.layer, "long");
    let fingerprint = store.peek(&id).await.unwrap().unwrap().head.fingerprint;
    tokio::time::sleep(80 * SECOND).await;
    go.notify_one();
    long.await.unwrap();
    // Somebody else claims the key and is gone; much later we take over.
    let key = id_of(&app.layer, "k");
    store.begin(&key, &claim(fingerprint)).await.unwrap();
    tokio::time::sleep(MINUTE).await;
    let run = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    for after in ["11", "7"] {
        let twin = app.post("k", "{}").await;
        assert_eq!(twin.headers["retry-after"], after);
        tokio::time::sleep(4 * SECOND).await;
    }
    go.notify_one();
    assert_eq!(run.await.unwrap().status, 201);
}

#[tokio::test]
async fn in_a_transaction_too_retry_after_counts_from_the_start_of_the_run() {
    let place = super::transactional::Place::sqlite().await;
    let (app, entered, go) = gated(place.layer(), 201);
    let long = tokio::spawn(app.future(post("/pay", "long", "{}")));
    entered.notified().await;
    // With this run the mean is more than a second.
    tokio::time::sleep(SECOND + SECOND / 5).await;
    go.notify_one();
    long.await.unwrap();
    let run = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    let less = async {
        loop {
            let twin = app.post("k", "{}").await;
            twin.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
            if twin.headers["retry-after"] == "1" {
                return;
            }
            tokio::time::sleep(SECOND / 50).await;
        }
    };
    let told = tokio::time::timeout(20 * SECOND, less).await;
    assert!(told.is_ok(), "the time that is left grows shorter");
    go.notify_one();
    assert_eq!(run.await.unwrap().status, 201);
}
