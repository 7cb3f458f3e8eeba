//! Claim, effect and answer in one transaction: all of them or none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::sync::Notify;
use tower_keep::SECOND;
use tower_keep::backend::sql::{Postgres, RequestTransaction, SqlStore, Sqlite};
use tower_keep::core::{Ending, IdempotencyOutcome};
use tower_keep::idempotency::{
    Directive, IdempotencyLayer, IdempotencyStore, LeaseEnd, Scope, StatusPolicy, Transactional,
    Twins,
};

use super::{App, Inner, post};
use crate::rate_limit::metered::Metered;
use crate::support::sql::{execute, number};

/// A database with a table of effects; SQLite's is a file.
pub struct Place {
    pub db: SqlStore,
    pub url: String,
    _folder: Option<tempfile::TempDir>,
}

impl Place {
    pub async fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("t.db").display());
        Self::open(url, Some(folder)).await
    }

    pub async fn postgres() -> Self {
        let url = crate::support::postgres::shared().await.database().await;
        Self::open(url, None).await
    }

    pub async fn both() -> [Self; 2] {
        [Self::sqlite().await, Self::postgres().await]
    }

    async fn open(url: String, folder: Option<tempfile::TempDir>) -> Self {
        let db = connect(&url).await;
        execute(&db, "create table effects (n text)").await;
        Self {
            db,
            url,
            _folder: folder,
        }
    }

    pub fn layer(&self) -> IdempotencyLayer {
        layer(&self.db)
    }

    pub async fn effects(&self) -> i64 {
        number(&self.db, "select count(*) from effects").await
    }
}

pub async fn connect(url: &str) -> SqlStore {
    // A loaded machine may take its time to start a session.
    let db = SqlStore::builder(url).acquire_timeout(20 * SECOND);
    db.lock_timeout(20 * SECOND).open().await.unwrap()
}

fn layer(db: &SqlStore) -> IdempotencyLayer {
    IdempotencyLayer::transactional(db.clone(), Scope::global())
}

/// Runs a statement in the request's transaction; says whether it worked.
pub async fn run(request: &Inner, db: &SqlStore, sql: &str) -> bool {
    let own = RequestTransaction::find(request.extensions(), db).expect("a transaction");
    let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()));
    if db.pool::<Sqlite>().is_some() {
        let Ok(mut lease) = own.lease::<Sqlite>().await else {
            return false;
        };
        return sql.execute(&mut *lease).await.is_ok();
    }
    let Ok(mut lease) = own.lease::<Postgres>().await else {
        return false;
    };
    sql.execute(&mut *lease).await.is_ok()
}

const EFFECT: &str = "insert into effects values ('x')";

/// A handler that writes one effect and answers as it is told.
fn app(
    place: &Place,
    layer: IdempotencyLayer,
    answer: impl Fn(usize) -> Response<Full<Bytes>> + Send + Sync + 'static,
) -> App {
    let (db, answer) = (place.db.clone(), Arc::new(answer));
    App::with(layer, move |request, n| {
        let (db, answer) = (db.clone(), Arc::clone(&answer));
        async move {
            assert!(run(&request, &db, EFFECT).await);
            answer(n)
        }
    })
}

fn status(code: u16, n: usize) -> Response<Full<Bytes>> {
    let answer = Response::builder().status(code);
    answer.body(Full::from(format!("run {n}"))).unwrap()
}

#[tokio::test]
async fn effect_and_answer_are_there_together_and_the_answer_is_given_again() {
    for place in Place::both().await {
        let app = app(&place, place.layer().report_status(), |n| status(201, n));
        let first = app.post("k", "{}").await;
        assert_eq!(
            (first.status.as_u16(), first.outcome()),
            (201, IdempotencyOutcome::First)
        );
        assert!(first.headers.contains_key("idempotency-expires"));
        let again = app.post("k", "{}").await;
        assert_eq!((again.is_replay(), &again.body), (true, &first.body));
        let other = app.post("k", "other").await;
        other.check_refused(422, "IDEMPOTENCY_KEY_REUSED");
        assert_eq!((app.runs(), place.effects().await), (1, 1));
    }
}

/// Status, what the handler says of its answer and of the transaction, effects, what a retry gets.
type Case = (u16, Option<Directive>, Option<Ending>, (i64, &'static str));

/// Every end there is: whether the effect stays, what a retry gets, how often the handler ran by then.
#[tokio::test]
async fn each_end_keeps_or_undoes_the_effect_and_keeps_or_forgets_the_answer() {
    use Directive::{NoStore, Release, Store, Unknown};
    #[rustfmt::skip]
    let table: [Case; 17] = [
        (201, None, None, (1, "replay")),
        (303, None, None, (1, "replay")),
        (404, None, None, (0, "replay")),
        (409, Some(Store), None, (0, "replay")),
        (500, None, None, (0, "run")),
        (429, None, None, (0, "run")),
        (500, Some(Store), None, (0, "replay")),
        (500, Some(Unknown), None, (0, "run")),
        (404, Some(NoStore), None, (0, "IDEMPOTENCY_NOT_REPLAYABLE")),
        (201, Some(NoStore), None, (1, "IDEMPOTENCY_NOT_REPLAYABLE")),
        (201, Some(Release), None, (1, "run")),
        (201, Some(Unknown), None, (1, "IDEMPOTENCY_OUTCOME_UNKNOWN")),
        (404, None, Some(Ending::Commit), (1, "replay")),
        (500, None, Some(Ending::Commit), (1, "run")),
        (200, None, Some(Ending::Rollback), (0, "replay")),
        (200, Some(Release), Some(Ending::Rollback), (0, "run")),
        (101, None, None, (0, "IDEMPOTENCY_NOT_REPLAYABLE")),
    ];
    let metered = Metered::start();
    for place in Place::both().await {
        for (line, (code, directive, ending, (effects, retry))) in table.into_iter().enumerate() {
            let app = app(&place, place.layer(), move |n| {
                let mut answer = status(code, n);
                if let Some(directive) = directive {
                    answer.extensions_mut().insert(directive);
                }
                if let Some(ending) = ending {
                    answer.extensions_mut().insert(ending);
                }
                answer
            });
            execute(&place.db, "delete from effects").await;
            let key = format!("k{line}");
            let first = app.post(&key, "{}").await;
            let at = format!("line {line}: {code} {directive:?} {ending:?}");
            assert_eq!(
                (first.status.as_u16(), first.outcome()),
                (code, IdempotencyOutcome::First),
                "{at}"
            );
            assert_eq!(place.effects().await, effects, "{at}");
            let again = app.post(&key, "{}").await;
            match retry {
                "replay" => assert!(again.is_replay() && again.body == first.body, "{at}"),
                "run" => assert_eq!((again.is_replay(), app.runs()), (false, 2), "{at}"),
                refusal => again.check_refused(409, refusal),
            }
        }
    }
    // On either engine, those that ran twice counted twice; what is rewound is committed with its answer.
    for (end, times) in [("commit", 15), ("rewind", 6), ("rollback", 8)] {
        let name = format!("keep_idempotency_transactions_total{{end={end}}}");
        assert_eq!(metered.counter(&name), 2 * times, "{end}");
    }
}

#[tokio::test]
async fn a_failed_statement_never_ends_in_a_success_and_a_refusal_is_kept_all_the_same() {
    let place = Place::postgres().await;
    let code = Arc::new(AtomicUsize::new(200));
    let (db, wanted) = (place.db.clone(), Arc::clone(&code));
    let app = App::with(place.layer(), move |request, n| {
        let (db, wanted) = (db.clone(), Arc::clone(&wanted));
        async move {
            assert!(run(&request, &db, EFFECT).await);
            assert!(!run(&request, &db, "insert into nowhere values (1)").await);
            status(wanted.load(Ordering::SeqCst) as u16, n)
        }
    });
    let failed = app.post("k", "{}").await;
    failed.check_refused(500, "TRANSACTION_FAILED");
    assert_eq!(failed.problem()["retryable"], true);
    code.store(409, Ordering::SeqCst);
    let refused = app.post("k", "{}").await;
    assert_eq!((refused.status.as_u16(), app.runs()), (409, 2));
    assert!(app.post("k", "{}").await.is_replay(), "healed by the mark");
    assert_eq!((app.runs(), place.effects().await), (2, 0));
}

#[tokio::test]
async fn a_handler_that_ends_the_transaction_itself_gets_no_success() {
    for place in Place::both().await {
        let db = place.db.clone();
        let app = App::with(place.layer(), move |request, n| {
            let db = db.clone();
            async move {
                assert!(run(&request, &db, EFFECT).await);
                run(&request, &db, "commit").await;
                status(200, n)
            }
        });
        app.post("k", "{}")
            .await
            .check_refused(500, "TRANSACTION_FAILED");
        // The stray commit kept the claim, which is a leased one now: nobody runs twice.
        app.post("k", "{}")
            .await
            .check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
        assert_eq!((app.runs(), place.effects().await), (1, 1));
    }
}

#[tokio::test]
async fn an_answer_too_large_or_streamed_commits_with_a_tombstone() {
    for place in Place::both().await {
        for (key, kind, size) in [
            ("large", "text/plain", 3_000_000),
            ("sse", "text/event-stream", 10),
        ] {
            let app = app(&place, place.layer(), move |_| {
                let answer = Response::builder()
                    .header("content-type", kind)
                    .header("location", "/orders/1");
                answer.body(Full::from(vec![b'x'; size])).unwrap()
            });
            let first = app.post(key, "{}").await;
            assert_eq!((first.status.as_u16(), first.body.len()), (200, size));
            let again = app.post(key, "{}").await;
            again.check_refused(409, "IDEMPOTENCY_NOT_REPLAYABLE");
            assert_eq!(again.headers["location"], "/orders/1");
            assert_eq!(app.runs(), 1);
        }
        assert_eq!(place.effects().await, 2);
    }
}

#[tokio::test]
async fn panics_run_limits_and_timeouts_undo_everything_and_free_the_key() {
    for place in Place::both().await {
        let fail = Arc::new(AtomicBool::new(true));
        let (db, failing) = (place.db.clone(), Arc::clone(&fail));
        let layer = place.layer().run_limit(Duration::from_millis(300));
        let app = App::with(layer, move |request, n| {
            let (db, failing) = (db.clone(), Arc::clone(&failing));
            async move {
                assert!(run(&request, &db, EFFECT).await);
                let slow = request.headers()["idempotency-key"] == "slow";
                if failing.load(Ordering::SeqCst) {
                    assert!(slow, "the handler panics");
                    std::future::pending::<()>().await;
                }
                status(200, n)
            }
        });
        let panicked = tokio::spawn(app.future(post("/pay", "panic", "{}"))).await;
        assert!(panicked.unwrap_err().is_panic());
        app.post("slow", "{}")
            .await
            .check_refused(503, "IDEMPOTENCY_RUN_LIMIT");
        assert_eq!(place.effects().await, 0);
        fail.store(false, Ordering::SeqCst);
        for key in ["panic", "slow"] {
            let retry = app.post(key, "{}").await;
            assert_eq!(retry.outcome(), IdempotencyOutcome::First, "{key}");
        }
        assert_eq!(place.effects().await, 2);
    }
}

/// A handler that says when it wrote its effect and waits until it may go on.
fn gated(place: &Place, layer: IdempotencyLayer) -> (App, Arc<Notify>, Arc<Notify>) {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (db, inside, wait) = (place.db.clone(), Arc::clone(&entered), Arc::clone(&go));
    let app = App::with(layer, move |request, n| {
        let (db, inside, wait) = (db.clone(), Arc::clone(&inside), Arc::clone(&wait));
        async move {
            assert!(run(&request, &db, EFFECT).await);
            inside.notify_one();
            wait.notified().await;
            let fails = request.headers().contains_key("x-fail");
            status(if fails { 500 } else { 201 }, n)
        }
    });
    (app, entered, go)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_twins_are_compared_and_refused_or_wait_for_the_commit() {
    for place in Place::both().await {
        let (app, entered, go) = gated(&place, place.layer());
        let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
        entered.notified().await;
        let twin = app.post("k", "{}").await;
        twin.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
        app.post("k", "other")
            .await
            .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
        go.notify_one();
        assert_eq!(first.await.unwrap().status.as_u16(), 201);
        assert!(app.post("k", "{}").await.is_replay());

        let waiting = App {
            layer: place.layer().twins(Twins::Attach(60 * SECOND)),
            ..app.clone()
        };
        let first = tokio::spawn(waiting.future(post("/pay", "attach", "{}")));
        entered.notified().await;
        let twins: Vec<_> = (0..20)
            .map(|_| tokio::spawn(waiting.future(post("/pay", "attach", "{}"))))
            .collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        go.notify_one();
        let body = first.await.unwrap().body;
        for twin in twins {
            let twin = twin.await.unwrap();
            assert_eq!((twin.status.as_u16(), &twin.body), (201, &body));
        }
        assert_eq!((app.runs(), place.effects().await), (2, 2));
    }
}

/// Two handles know nothing of each other, as two processes do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_twin_waits_for_the_commit_or_runs_after_the_rollback() {
    for place in Place::both().await {
        let other = connect(&place.url).await;
        for (key, fails) in [("commits", false), ("fails", true)] {
            let attach = Twins::Attach(60 * SECOND);
            let (app, entered, go) = gated(&place, place.layer().twins(attach));
            let foreign = Place {
                db: other.clone(),
                url: place.url.clone(),
                _folder: None,
            };
            let twin = self::app(&foreign, layer(&other).twins(attach), |n| {
                status(200, n + 10)
            });
            execute(&place.db, "delete from effects").await;
            let mut request = post("/pay", key, "{}");
            if fails {
                request.headers_mut().insert("x-fail", "1".parse().unwrap());
            }
            let first = tokio::spawn(app.future(request));
            entered.notified().await;
            let second = tokio::spawn(twin.future(post("/pay", key, "{}")));
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(!second.is_finished(), "the twin waits");
            go.notify_one();
            let (first, second) = (first.await.unwrap(), second.await.unwrap());
            let expected = if fails { (500, 200) } else { (201, 201) };
            assert_eq!((first.status.as_u16(), second.status.as_u16()), expected);
            assert_eq!(second.is_replay(), !fails, "{key}");
            assert_eq!(place.effects().await, 1, "{key}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_twin_is_refused_while_the_first_runs_and_told_its_payload_afterwards() {
    let place = Place::postgres().await;
    let (app, entered, go) = gated(&place, place.layer());
    let other = layer(&connect(&place.url).await);
    let foreign = App {
        layer: other,
        ..app.clone()
    };
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    for body in ["{}", "other"] {
        let twin = foreign.post("k", body).await;
        twin.check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
    }
    go.notify_one();
    first.await.unwrap();
    assert!(foreign.post("k", "{}").await.is_replay());
    foreign
        .post("k", "other")
        .await
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    assert_eq!(app.runs(), 1);
}

/// Refuses a COMMIT with `state` as long as there are tickets.
async fn refuse_commits(place: &Place, state: &str, times: u32) {
    let text = format!(
        "create sequence tickets; \
         create function refuse() returns trigger language plpgsql as $$ begin \
           if nextval('tickets') <= {times} then raise exception using errcode = '{state}'; end if; \
           return null; end $$; \
         create constraint trigger refuse after insert on effects \
           deferrable initially deferred for each row execute function refuse()"
    );
    execute(&place.db, &text).await;
}

#[tokio::test]
async fn contention_at_commit_is_told_as_such_or_run_again_where_that_is_allowed() {
    let metered = Metered::start();
    let place = Place::postgres().await;
    refuse_commits(&place, "40001", 2).await;
    let never = app(&place, place.layer(), |n| status(201, n));
    let refused = never.post("k", "{}").await;
    refused.check_refused(503, "CONTENTION");
    assert_eq!((never.runs(), place.effects().await), (1, 0));
    execute(&place.db, "alter sequence tickets restart").await;
    let mode = Transactional::new(place.db.clone()).reruns(2);
    let thrice = IdempotencyLayer::transactional(mode, Scope::global());
    let thrice = app(&place, thrice, |n| status(201, n));
    let done = thrice.post("k", "{}").await;
    assert_eq!((done.status.as_u16(), &done.body[..]), (201, &b"run 3"[..]));
    assert!(thrice.post("k", "{}").await.is_replay());
    assert_eq!((thrice.runs(), place.effects().await), (3, 1));
    assert_eq!(metered.counter("keep_idempotency_reruns_total"), 2);
}

#[tokio::test]
async fn a_deferred_constraint_refused_at_commit_leaves_nothing() {
    let place = Place::postgres().await;
    refuse_commits(&place, "23514", 1).await;
    let app = app(&place, place.layer(), |n| status(201, n));
    app.post("k", "{}")
        .await
        .check_refused(500, "TRANSACTION_FAILED");
    assert_eq!(place.effects().await, 0);
    let retry = app.post("k", "{}").await;
    assert_eq!((retry.status.as_u16(), app.runs()), (201, 2));
}

#[tokio::test]
async fn without_a_connection_nothing_is_run() {
    let place = Place::postgres().await;
    let db = SqlStore::builder(&place.url)
        .max_connections(1)
        .acquire_timeout(Duration::from_millis(100));
    let db = db.open().await.unwrap();
    let app = App::new(layer(&db));
    app.post("warm", "{}").await;
    let held = db.pool::<Postgres>().unwrap().acquire().await.unwrap();
    app.post("k", "{}")
        .await
        .check_refused(503, "STORE_UNAVAILABLE");
    drop(held);
    assert_eq!(
        app.post("k", "{}").await.outcome(),
        IdempotencyOutcome::First
    );
    assert_eq!(app.runs(), 2);
}

#[tokio::test]
async fn a_claim_left_behind_alone_acts_as_a_leased_one() {
    for place in Place::both().await {
        for (end, code) in [
            (LeaseEnd::Reexecute, None),
            (LeaseEnd::Indeterminate, Some("IDEMPOTENCY_OUTCOME_UNKNOWN")),
        ] {
            let app = app(&place, place.layer().at_lease_end(end), |n| status(201, n));
            let key = format!("{end:?}");
            app.post(&key, "{}").await;
            let back = format!(
                "update keep_idempotency set state = 1, answer = null, at_end = {}",
                if code.is_some() { 2 } else { 1 }
            );
            execute(&place.db, &back).await;
            app.post(&key, "{}")
                .await
                .check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
            app.post(&key, "other")
                .await
                .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
            execute(&place.db, "update keep_idempotency set lease_until = 1").await;
            let later = app.post(&key, "{}").await;
            match code {
                Some(code) => later.check_refused(409, code),
                None => assert_eq!(later.outcome(), IdempotencyOutcome::First),
            }
            execute(&place.db, "delete from keep_idempotency").await;
        }
    }
}

#[tokio::test]
async fn what_preset_payments_calls_unknown_is_undone_and_runs_again() {
    for place in Place::both().await {
        let layer = place
            .layer()
            .preset(tower_keep::idempotency::Preset::Payments);
        let layer = layer.statuses(StatusPolicy::default());
        let app = app(&place, layer, |n| status(if n == 1 { 503 } else { 201 }, n));
        assert_eq!(app.post("k", "{}").await.status.as_u16(), 503);
        assert_eq!(app.post("k", "{}").await.status.as_u16(), 201);
        assert_eq!((app.runs(), place.effects().await), (2, 1));
    }
}

/// Polls through real waits: from when `counts` says so `polls` times more, then the client is gone.
pub async fn leave_after<F: Future + ?Sized>(
    mut future: std::pin::Pin<Box<F>>,
    mut polls: usize,
    counts: impl Fn() -> bool,
) -> bool {
    loop {
        if counts() {
            if polls == 0 {
                return false;
            }
            polls -= 1;
        }
        let mut polled = false;
        let over = std::future::poll_fn(|cx| {
            // The first poll of a turn may wait; the second tells that we were woken.
            if std::mem::replace(&mut polled, true) {
                return std::task::Poll::Ready(false);
            }
            future.as_mut().poll(cx).map(|_| true)
        });
        if over.await {
            return true;
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_at_any_await_leaves_one_effect_at_most_and_its_answer() {
    for place in Place::both().await {
        for after_the_effect in [false, true] {
            let mut without = 0;
            for polls in 0.. {
                let (layer, db) = (place.layer(), place.db.clone());
                let reached = Arc::new(AtomicBool::new(!after_the_effect));
                let reaching = Arc::clone(&reached);
                let app = App::with(layer.clone(), move |request, n| {
                    let (db, reaching) = (db.clone(), Arc::clone(&reaching));
                    async move {
                        assert!(run(&request, &db, EFFECT).await);
                        reaching.store(true, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        status(201, n)
                    }
                });
                let key = format!("{after_the_effect} {polls}").replace(' ', "-");
                execute(&place.db, "delete from effects").await;
                let sent = app.future(post("/pay", &key, "{}"));
                let counts = || reached.load(Ordering::SeqCst);
                let ended = leave_after(sent, polls, counts).await;
                assert_eq!(layer.drain(60 * SECOND).await.abandoned, 0);
                let ran = app.runs();
                assert!(ran == 1 || !after_the_effect);
                let effects = place.effects().await;
                assert_eq!(effects, ran as i64, "{key}: a run goes on to its end");
                let retry = app.post(&key, "{}").await;
                assert_eq!(
                    (retry.status.as_u16(), retry.is_replay()),
                    (201, ran == 1),
                    "{key}: the committed ones are replayed"
                );
                assert_eq!(place.effects().await, 1, "{key}");
                without += usize::from(ran == 0);
                if ended {
                    assert!(polls > 0 && (without > 0 || after_the_effect));
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn a_lease_mode_claim_of_the_same_table_is_respected() {
    for place in Place::both().await {
        let leased = IdempotencyLayer::new(place.db.clone(), Scope::global());
        let (app, entered, go) = {
            let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let (inside, wait) = (Arc::clone(&entered), Arc::clone(&go));
            let app = App::with(leased, move |_, n| {
                let (inside, wait) = (Arc::clone(&inside), Arc::clone(&wait));
                async move {
                    inside.notify_one();
                    wait.notified().await;
                    status(201, n)
                }
            });
            (app, entered, go)
        };
        let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
        entered.notified().await;
        let other = self::app(&place, place.layer(), |n| status(201, n));
        other
            .post("k", "{}")
            .await
            .check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
        go.notify_one();
        first.await.unwrap();
        assert!(other.post("k", "{}").await.is_replay());
        assert_eq!((other.runs(), place.effects().await), (0, 0));
        let id = place
            .layer()
            .admin()
            .id(&tower_keep::idempotency::ScopeId::global(), "k");
        assert!(
            IdempotencyStore::peek(&place.db, &id)
                .await
                .unwrap()
                .is_some()
        );
    }
}

/// `sqlite::memory:` has one connection: whoever looks while another runs must wait for it, and nobody for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_single_connection_many_keys_and_their_twins_take_turns() {
    for twins in [Twins::Reject, Twins::Attach(60 * SECOND)] {
        let place = Place::open("sqlite::memory:".to_owned(), None).await;
        let db = place.db.clone();
        let app = App::with(place.layer().twins(twins), move |request, n| {
            let db = db.clone();
            async move {
                assert!(run(&request, &db, EFFECT).await);
                tokio::time::sleep(Duration::from_millis(2)).await;
                status(201, n)
            }
        });
        let sent: Vec<_> = (0..60)
            .map(|n| tokio::spawn(app.future(post("/pay", &format!("k{}", n % 12), "{}"))))
            .collect();
        for sent in sent {
            let answer = sent.await.unwrap();
            let refused = answer.status.as_u16() == 409 && twins == Twins::Reject;
            assert!(answer.status.as_u16() == 201 || refused, "{answer:?}");
        }
        assert_eq!((app.runs(), place.effects().await), (12, 12));
    }
}
