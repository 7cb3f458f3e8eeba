//! Calls of one request that are asked again after they failed or were dropped, and those that its answer has to wait for.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use axum::Router;
use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::routing::get;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tower::ServiceExt;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Principal, StoreFuture};
use tower_keep::session::store::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionRef,
    Target, UserId, Whose,
};
use tower_keep::session::{Session, SessionErrorKind, SessionId, SessionLayer, SessionStore};

use super::app::{App, Browser, Probe, clock, memory};

/// Asks a handler behind `layer` with the cookie of `browser`.
async fn ask<H, T>(layer: &SessionLayer, browser: &Browser, handler: H) -> Response<Body>
where
    H: axum::handler::Handler<T, ()>,
    T: 'static,
{
    let routes = Router::new().route("/", get(handler)).layer(layer.clone());
    let mut request = Request::get("/");
    if let Some(cookie) = browser.cookie() {
        request = request.header("cookie", cookie);
    }
    let response = routes.oneshot(request.body(Body::empty()).unwrap()).await;
    response.unwrap().map(Body::new)
}

/// Answers a call that is `held` only when it is given leave; the step is done before.
#[derive(Clone, Debug)]
struct Held {
    store: MemoryStore,
    held: Arc<Semaphore>,
    waiting: Arc<AtomicU64>,
}

impl Held {
    fn new() -> Self {
        Self {
            store: memory(&clock()),
            held: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            waiting: Arc::default(),
        }
    }

    fn hold(&self) {
        self.held.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn let_go(&self) {
        self.held.add_permits(100);
    }

    fn step<T: Send + 'static>(&self, answer: StoreFuture<T>) -> StoreFuture<T> {
        let me = self.clone();
        StoreFuture::boxed(async move {
            me.waiting.fetch_add(1, Ordering::SeqCst);
            me.held.acquire().await.unwrap().forget();
            answer.await
        })
    }
}

impl SessionStore for Held {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.step(self.store.load(at, read))
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        self.step(self.store.patch(at, patch))
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        self.step(self.store.establish(order))
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        self.step(self.store.list(of))
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.step(self.store.assign_roles(user, roles))
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        // Asked first, done when it is let go.
        let me = self.clone();
        StoreFuture::boxed(async move {
            me.waiting.fetch_add(1, Ordering::SeqCst);
            me.held.acquire().await.unwrap().forget();
            me.store.revoke(target).await
        })
    }
}

/// Polls a call once, while the store does not answer, and drops it.
async fn drop_at_the_store(call: impl Future) {
    let mut call = pin!(call);
    let pending = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending())).await;
    assert!(pending, "the store is asked");
}

#[tokio::test]
async fn a_logout_that_failed_is_asked_of_the_store_again() {
    let store = Probe::new(memory(&clock()));
    let layer = SessionLayer::new(store.clone());
    let browser = App::new(layer.clone()).browser();
    for ends_by_id in [false, true] {
        browser.get("/login/u1").await;
        let thief = browser.copy();
        let probe = store.clone();
        let response = ask(&layer, &browser, async move |session: Session| {
            let id = session.list().await.unwrap()[0].id;
            let end = async || match ends_by_id {
                true => session.revoke(id).await.map_err(|why| why.status()),
                false => session
                    .logout()
                    .await
                    .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)
                    .map(|()| true),
            };
            probe.fail(true);
            assert_eq!(end().await, Err(StatusCode::SERVICE_UNAVAILABLE));
            assert_eq!(end().await, Err(StatusCode::SERVICE_UNAVAILABLE));
            probe.fail(false);
            assert_eq!(end().await, Ok(true));
            // Once it has answered nothing is left to ask.
            probe.calls();
            session.logout().await.unwrap();
            assert_eq!(probe.calls(), 0);
        });
        assert_eq!(response.await.status(), 200);
        assert_eq!(thief.body("/me").await, "nobody", "{ends_by_id}");
    }
}

#[tokio::test]
async fn a_logout_that_was_dropped_is_asked_of_the_store_again_also_behind_a_new_login() {
    for logs_in in [false, true] {
        let store = Held::new();
        let layer = SessionLayer::new(store.clone());
        let browser = App::new(layer.clone()).browser();
        browser.get("/login/u1").await;
        let thief = browser.copy();
        let held = store.clone();
        let response = ask(&layer, &browser, async move |session: Session| {
            held.hold();
            drop_at_the_store(session.logout()).await;
            held.let_go();
            if logs_in {
                session.login(Principal::new("u2")).await.unwrap();
            }
            session.logout().await.unwrap();
            assert_eq!(session.principal().await.unwrap(), None);
        });
        let response = response.await;
        assert_eq!(response.status(), 200);
        let cookie = response.headers()["set-cookie"].to_str().unwrap();
        assert!(cookie.contains("Max-Age=0"), "{cookie}");
        assert_eq!(thief.body("/me").await, "nobody", "{logs_in}");
        let left = layer.directory();
        assert_eq!(left.list("u2").await.unwrap().len(), 0, "{logs_in}");
    }
}

#[tokio::test]
async fn ending_by_its_id_what_a_dropped_logout_was_to_end_leaves_a_new_login_alone() {
    let store = Held::new();
    let layer = SessionLayer::new(store.clone());
    let browser = App::new(layer.clone()).browser();
    browser.get("/login/u1").await;
    let thief = browser.copy();
    let held = store.clone();
    let response = ask(&layer, &browser, async move |session: Session| {
        let id = session.list().await.unwrap()[0].id;
        held.hold();
        drop_at_the_store(session.logout()).await;
        held.let_go();
        session.login(Principal::new("u2")).await.unwrap();
        assert!(session.revoke(id).await.unwrap());
        assert!(session.principal().await.unwrap().is_some());
    });
    let response = response.await;
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    assert!(!cookie.contains("Max-Age=0"), "{cookie}");
    assert_eq!(thief.body("/me").await, "nobody");
    let left = layer.directory();
    assert_eq!(left.list("u2").await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_stamp_that_was_being_checked_is_checked_again() {
    let store = Held::new();
    let layer = SessionLayer::new(store.clone());
    let browser = App::new(layer.clone()).browser();
    browser.get("/login/u1?stamp=old").await;
    let thief = browser.copy();
    let held = store.clone();
    let response = ask(&layer, &browser, async move |session: Session| {
        session.principal().await.unwrap();
        held.hold();
        drop_at_the_store(session.check_auth_stamp("new")).await;
        held.let_go();
        let refused = session.check_auth_stamp("new").await.unwrap_err();
        assert_eq!(refused.status(), 401);
    });
    let response = response.await;
    assert!(
        response.headers()["set-cookie"]
            .to_str()
            .unwrap()
            .contains("Max-Age=0")
    );
    assert_eq!(thief.body("/me").await, "nobody");
}

#[tokio::test]
async fn a_stamp_that_does_not_fit_any_more_leaves_the_cookie_of_a_login_beside_it_alone() {
    let layer = SessionLayer::new(memory(&clock()));
    let browser = App::new(layer.clone()).browser();
    browser.get("/login/u1?stamp=old").await;
    let (before, other) = (browser.copy(), browser.clone());
    let response = ask(&layer, &before, async move |session: Session| {
        session.principal().await.unwrap();
        // The password was changed, and the user logged in with it, between the read and the check.
        assert_eq!(other.status("/login/u1?stamp=new").await, 200);
        let refused = session.check_auth_stamp("new").await.unwrap_err();
        assert_eq!(refused.status(), 401);
        assert_eq!(session.principal().await.unwrap(), None);
    });
    let response = response.await;
    assert_eq!(response.headers().get("set-cookie"), None);
    assert_eq!(browser.body("/me").await, "u1");
    assert_eq!(browser.status("/stamp/new").await, 204);
    // A login of this very request is asked for its own stamp.
    let response = ask(&layer, &browser, async move |session: Session| {
        session.principal().await.unwrap();
        let login = tower_keep::session::Login::new(Principal::new("u1")).auth_stamp("third");
        let (login, check) = tokio::join!(session.login(login), session.check_auth_stamp("third"));
        login.unwrap();
        check.unwrap();
    });
    assert_eq!(response.await.status(), 200);
}

#[tokio::test]
async fn a_commit_after_one_that_failed_or_was_dropped_fails() {
    let unavailable = |answer: Result<(), tower_keep::session::SessionError>| {
        answer.map_err(|error| error.kind()) == Err(SessionErrorKind::Unavailable)
    };
    let store = Probe::new(memory(&clock()));
    let layer = SessionLayer::new(store.clone());
    let browser = App::new(layer.clone()).browser();
    browser.get("/set/a/1").await;
    let probe = store.clone();
    let response = ask(&layer, &browser, async move |session: Session| {
        session.insert("a", &2).unwrap();
        probe.fail(true);
        assert!(unavailable(session.commit().await));
        probe.fail(false);
        assert!(unavailable(session.commit().await));
        session.insert("b", &2).unwrap();
        assert!(unavailable(session.commit().await));
    });
    assert_eq!(
        response.await.status(),
        200,
        "the handler knows, and decides"
    );
    let store = Held::new();
    let layer = SessionLayer::new(store.clone());
    let app = App::new(layer.clone());
    // A patch of a session, and the first write of a new one; then also what is buffered after it.
    for is_new in [false, true] {
        for (writes_more, status) in [(false, 200), (true, 503)] {
            let browser = app.browser();
            if !is_new {
                browser.get("/set/a/1").await;
            }
            let held = store.clone();
            let response = ask(&layer, &browser, async move |session: Session| {
                session.insert("a", &2).unwrap();
                held.hold();
                drop_at_the_store(session.commit()).await;
                held.let_go();
                assert!(unavailable(session.commit().await));
                if writes_more {
                    session.insert("b", &2).unwrap();
                }
            });
            assert_eq!(response.await.status(), status, "{is_new}");
        }
    }
}

#[tokio::test]
async fn an_answer_waits_for_a_login_or_rotation_that_is_under_way_and_carries_its_token() {
    for what in ["rotate", "login", "update", "commit"] {
        // The task that was spawned is at the store when the handler answers, or has not begun.
        for begins in [true, false] {
            let store = Held::new();
            let layer = SessionLayer::new(store.clone());
            let browser = App::new(layer.clone()).browser();
            if what == "rotate" {
                browser.get("/login/u1").await;
            }
            let (held, late) = (store.clone(), Arc::new(Mutex::new(None)));
            let ended = Arc::clone(&late);
            let answers = Arc::new(AtomicBool::new(false));
            let has_answered = Arc::clone(&answers);
            store.hold();
            store.waiting.store(0, Ordering::SeqCst);
            let mut response = pin!(ask(&layer, &browser, async move |session: Session| {
                session.insert("lost", &1).unwrap();
                let task = tokio::spawn(async move {
                    match what {
                        "rotate" => session.rotate().await.map_err(|error| error.kind()),
                        "login" => session.login(Principal::new("u1")).await.map_err(|why| {
                            assert_ne!(why.status(), 503);
                            SessionErrorKind::Sealed
                        }),
                        "update" => session
                            .update("n", |n: &mut u64| *n += 1)
                            .await
                            .map_err(|error| error.kind()),
                        _ => session.commit().await.map_err(|error| error.kind()),
                    }
                });
                *late.lock() = Some(task);
                while begins && held.waiting.load(Ordering::SeqCst) == 0 {
                    tokio::task::yield_now().await;
                }
                answers.store(true, Ordering::SeqCst);
                StatusCode::INTERNAL_SERVER_ERROR
            }));
            let mut early = Poll::Pending;
            while early.is_pending() && !has_answered.load(Ordering::SeqCst) {
                early = poll_fn(|cx| Poll::Ready(response.as_mut().poll(cx))).await;
                tokio::task::yield_now().await;
            }
            assert_eq!(early.is_pending(), begins, "{what}: the headers wait");
            store.let_go();
            let response = match early {
                Poll::Ready(response) => response,
                Poll::Pending => response.await,
            };
            assert_eq!(response.status(), 500);
            let task = ended.lock().take().unwrap();
            let done = task.await.unwrap();
            let cookie = response.headers().get("set-cookie");
            // Nothing is left that a late commit could send.
            if begins || what != "commit" {
                assert_eq!(done.is_ok(), cookie.is_some(), "{what}: {done:?}");
            }
            if begins {
                let cookie = cookie.unwrap().to_str().unwrap();
                browser.plant(cookie.split(';').next().unwrap());
                let user = if what == "rotate" || what == "login" {
                    "u1"
                } else {
                    "nobody"
                };
                assert_eq!(browser.body("/me").await, user, "{what}");
            }
        }
    }
}

/// Knows the ids that are drawn, and says of the first ones that they are taken.
#[derive(Clone, Debug)]
struct Taking {
    store: MemoryStore,
    left: Arc<AtomicU64>,
    drawn: Arc<Mutex<Vec<SessionId>>>,
}

impl SessionStore for Taking {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.store.load(at, read)
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        self.store.patch(at, patch)
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        self.drawn.lock().push(order.fresh);
        let left = self.left.load(Ordering::SeqCst);
        if left > 0 {
            self.left.store(left - 1, Ordering::SeqCst);
            return StoreFuture::ok(Established::Taken);
        }
        self.store.establish(order)
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        self.store.list(of)
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.store.assign_roles(user, roles)
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        self.store.revoke(target)
    }
}

#[tokio::test]
async fn an_id_that_is_taken_is_drawn_again_three_times_at_most() {
    for path in ["/set/a/1", "/update/a", "/login/u1"] {
        for (taken, draws) in [(0, 1), (2, 3), (3, 3), (9, 3)] {
            let store = Taking {
                store: memory(&clock()),
                left: Arc::new(AtomicU64::new(taken)),
                drawn: Arc::default(),
            };
            let browser = App::new(SessionLayer::new(store.clone())).browser();
            let reply = browser.get(path).await;
            let drawn: std::collections::BTreeSet<_> = store.drawn.lock().iter().copied().collect();
            assert_eq!(
                (drawn.len(), store.drawn.lock().len()),
                (draws, draws),
                "{path}, {taken}"
            );
            if taken < 3 {
                assert!(reply.status.is_success(), "{path}: {reply:?}");
                assert!(browser.cookie().is_some(), "{path}");
            } else {
                assert_eq!(
                    (reply.status.as_u16(), browser.cookie()),
                    (503, None),
                    "{path}"
                );
            }
        }
    }
}

/// Polls a handler once and answers 408 where that was not enough, as a timeout does; the handler stays in its future.
#[derive(Clone)]
struct Impatient<H>(H);

struct Given<F> {
    handler: std::pin::Pin<Box<F>>,
}

impl<F: Future<Output = ()>> Future for Given<F> {
    type Output = Result<Response<Body>, std::convert::Infallible>;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Self::Output> {
        assert!(self.handler.as_mut().poll(cx).is_pending());
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::REQUEST_TIMEOUT;
        Poll::Ready(Ok(response))
    }
}

impl<H, F> tower::Service<Request<Body>> for Impatient<H>
where
    H: FnMut(Session) -> F,
    F: Future<Output = ()>,
{
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Given<F>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Result<(), std::convert::Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut parts = request.into_parts().0;
        let session = Session::from_request_parts(&mut parts, &()).now_or_never();
        let session = session.unwrap().unwrap();
        Given {
            handler: Box::pin((self.0)(session)),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_leaves_although_its_service_gave_up_a_handler_in_a_login() {
    for keeps in [false, true] {
        let store = Held::new();
        let layer = SessionLayer::new(store.clone());
        store.hold();
        let kept = Arc::new(Mutex::new(None));
        let keeper = Arc::clone(&kept);
        let service = Impatient(move |session: Session| {
            let mut login = Box::pin(async move { session.login(Principal::new("u1")).await });
            let keeper = Arc::clone(&keeper);
            async move {
                let begun = poll_fn(|cx| Poll::Ready(login.as_mut().poll(cx).is_pending())).await;
                assert!(begun, "it is at the store");
                if keeps {
                    // As a body that goes on with it once the headers have left.
                    *keeper.lock() = Some(login);
                    std::future::pending().await
                } else {
                    drop(login.await);
                }
            }
        });
        let answer = tower::Layer::layer(&layer, service);
        let answer = answer.oneshot(Request::get("/").body(Body::empty()).unwrap());
        // By the paused clock; the second kind waits for whom it cannot see, but not for ever.
        let longest = std::time::Duration::from_secs(if keeps { 60 } else { 1 });
        let answer = tokio::time::timeout(longest, answer).await;
        let response = answer.expect("the headers leave").unwrap();
        assert_eq!(response.status(), 408);
        drop(kept.lock().take());
    }
}

#[tokio::test(start_paused = true)]
async fn headers_do_not_wait_for_ever_for_a_login_that_their_body_goes_on_with() {
    for has_session in [false, true] {
        let store = Held::new();
        let layer = SessionLayer::new(store.clone());
        let browser = App::new(layer.clone()).browser();
        if has_session {
            assert_eq!(browser.status("/login/u1").await, 200);
        }
        let kept = Arc::new(Mutex::new(None));
        let (keeper, held) = (Arc::clone(&kept), store.clone());
        let answer = ask(&layer, &browser, async move |session: Session| {
            held.hold();
            let stuck = session.clone();
            let mut login = Box::pin(async move { stuck.login(Principal::new("u1")).await });
            let begun = poll_fn(|cx| Poll::Ready(login.as_mut().poll(cx).is_pending())).await;
            assert!(begun, "it is at the store");
            *keeper.lock() = Some(login);
            // Whoever asks later is answered.
            held.let_go();
            session.insert("n", &1).unwrap();
            StatusCode::NO_CONTENT
        });
        // By the paused clock: once for the token, not again for what is buffered.
        let longest = std::time::Duration::from_secs(20);
        let answer = tokio::time::timeout(longest, answer).await;
        let response = answer.expect("the headers leave");
        assert_eq!(response.status(), 503, "nobody knows what became of it");
        drop(kept.lock().take());
    }
}
