//! Calls of one request that overlap, and handles that outlive it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, mpsc};
use std::task::Poll;

use axum::Router;
use axum::body::Body;
use axum::routing::get;
use http::Request;
use parking_lot::Mutex;
use tower::ServiceExt;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Principal, StoreFuture};
use tower_keep::session::store::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionRef,
    Target, UserId, Whose,
};
use tower_keep::session::{Session, SessionErrorKind, SessionLayer, SessionStore};

use super::app::{clock, memory};

/// Waits once before each step of the store and once after it, so that calls overlap.
#[derive(Clone, Debug)]
struct Yielding(MemoryStore);

impl Yielding {
    fn slow<T: Send + 'static>(
        &self,
        step: impl FnOnce(MemoryStore) -> StoreFuture<T> + Send + 'static,
    ) -> StoreFuture<T> {
        let store = self.0.clone();
        StoreFuture::boxed(async move {
            tokio::task::yield_now().await;
            let answer = step(store).await;
            tokio::task::yield_now().await;
            answer
        })
    }
}

impl SessionStore for Yielding {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.slow(move |store| store.load(at, read))
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        let patch = patch.clone();
        self.slow(move |store| store.patch(at, &patch))
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        self.slow(move |store| store.establish(order))
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        self.slow(move |store| store.list(of))
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.slow(move |store| store.assign_roles(user, roles))
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        self.slow(move |store| store.revoke(target))
    }
}

/// Sends one request, then reads `a`, `b` and the user with the cookie it got.
async fn left_by<H, T>(handler: H) -> [String; 3]
where
    H: axum::handler::Handler<T, ()>,
    T: 'static,
{
    let layer = SessionLayer::new(Yielding(memory(&clock())));
    let routes = Router::new().route("/overlap", get(handler));
    let request = Request::get("/overlap").body(Body::empty()).unwrap();
    let app = routes.layer(layer.clone());
    let response = app.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let reads = Router::new().route(
        "/",
        get(async |session: Session| {
            let a = session.get::<u64>("a").await.unwrap();
            let b = session.get::<u64>("b").await.unwrap();
            let user = session.principal().await.unwrap();
            let user = user.map(|user| user.id().to_owned());
            format!("{a:?},{b:?},{user:?}")
        }),
    );
    let request = Request::get("/").header("cookie", cookie);
    let app = reads.layer(layer);
    let response = app
        .oneshot(request.body(Body::empty()).unwrap())
        .await
        .unwrap();
    let body = axum::body::to_bytes(response.into_body(), 1_024)
        .await
        .unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    let mut parts = text.split(',').map(str::to_owned);
    std::array::from_fn(|_| parts.next().unwrap())
}

/// Answers at once; the one who sets up a session while it is armed is held until told to go on, after the step was done.
#[derive(Clone, Debug)]
struct Holding {
    store: MemoryStore,
    armed: Arc<Mutex<Option<Armed>>>,
}

/// Tells that the step was done, and hears when to go on.
type Armed = (mpsc::Sender<()>, mpsc::Receiver<()>);

impl SessionStore for Holding {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.store.load(at, read)
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        self.store.patch(at, patch)
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        let answer = self.store.establish(order);
        let armed = self.armed.lock().take();
        if let Some((done, go_on)) = armed {
            done.send(()).unwrap();
            go_on.recv().unwrap();
        }
        answer
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

/// Reads while a login of the same request, on another thread, was done and has not heard of it yet.
async fn read_beside_a_login(store: Holding, session: Session) -> String {
    let (done, is_done) = mpsc::channel();
    let (go_on, goes_on) = mpsc::channel();
    *store.armed.lock() = Some((done, goes_on));
    let other = session.clone();
    let login = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let login = other.login(Principal::new("u2"));
        runtime.unwrap().block_on(login).unwrap();
    });
    is_done.recv().unwrap();
    let mut reading = pin!(session.principal());
    let early = poll_fn(|cx| Poll::Ready(reading.as_mut().poll(cx))).await;
    go_on.send(()).unwrap();
    let user = match early {
        Poll::Ready(user) => user,
        Poll::Pending => reading.await,
    };
    login.join().unwrap();
    let user = user.unwrap().map(|user| user.id().to_owned());
    format!("{user:?}")
}

#[tokio::test]
async fn who_lists_or_revokes_beside_a_login_asks_with_its_new_secret() {
    left_by(|session: Session| async move {
        session.login(Principal::new("u")).await.unwrap();
        let (login, list, live, others) = tokio::join!(
            session.login(Principal::new("u")),
            session.list(),
            session.is_live(),
            session.revoke_others(),
        );
        login.unwrap();
        assert_eq!(list.unwrap().len(), 1);
        assert!(live.unwrap());
        assert_eq!(others.unwrap(), 0);
        "ok"
    })
    .await;
}

#[tokio::test]
async fn a_read_beside_a_login_on_another_thread_sees_the_user_who_logged_in() {
    let store = Holding {
        store: memory(&clock()),
        armed: Arc::default(),
    };
    let beside = store.clone();
    let routes = Router::new()
        .route(
            "/login",
            get(async |session: Session| session.login(Principal::new("u1")).await.unwrap()),
        )
        .route(
            "/both",
            get(move |session: Session| read_beside_a_login(beside.clone(), session)),
        )
        .layer(SessionLayer::new(store));
    let request = Request::get("/login").body(Body::empty()).unwrap();
    let response = routes.clone().oneshot(request).await.unwrap();
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    let cookie = cookie.split(';').next().unwrap().to_owned();
    let request = Request::get("/both").header("cookie", cookie);
    let request = request.body(Body::empty()).unwrap();
    let response = routes.oneshot(request).await.unwrap();
    let body = axum::body::to_bytes(response.into_body(), 1_024).await;
    assert_eq!(body.unwrap(), "Some(\"u2\")");
}

#[tokio::test]
async fn two_updates_at_once_of_a_new_visitor_are_one_session() {
    let left = left_by(async |session: Session| {
        let (a, b) = tokio::join!(
            session.update("a", |n: &mut u64| *n += 1),
            session.update("b", |n: &mut u64| *n += 1)
        );
        assert_eq!((a.is_ok(), b.is_ok()), (true, true));
    });
    assert_eq!(left.await, ["Some(1)", "Some(1)", "None"]);
}

#[tokio::test]
async fn a_commit_and_an_update_at_once_of_a_new_visitor_are_one_session() {
    let left = left_by(async |session: Session| {
        session.insert("a", &1).unwrap();
        let other = session.clone();
        let (a, b) = tokio::join!(session.commit(), async {
            tokio::task::yield_now().await;
            other.update("b", |n: &mut u64| *n += 1).await
        });
        assert_eq!((a.is_ok(), b.is_ok()), (true, true));
    });
    assert_eq!(left.await, ["Some(1)", "Some(1)", "None"]);
}

#[tokio::test]
async fn a_commit_beside_a_login_undoes_neither() {
    let left = left_by(async |session: Session| {
        session.insert("a", &1).unwrap();
        let (a, b) = tokio::join!(session.commit(), session.login(Principal::new("u1")));
        assert_eq!((a.is_ok(), b.is_ok()), (true, true));
        session.insert("b", &1).unwrap();
    });
    assert_eq!(left.await, ["Some(1)", "Some(1)", "Some(\"u1\")"]);
}

#[tokio::test]
async fn an_update_beside_a_login_or_a_rotation_is_applied() {
    // Each shift meets the other call at another moment.
    for shift in 0..8 {
        let shifted = async move || {
            for _ in 0..shift {
                tokio::task::yield_now().await;
            }
        };
        let left = left_by(async move |session: Session| {
            session.insert("a", &1).unwrap();
            session.commit().await.unwrap();
            let login = async {
                shifted().await;
                session.login(Principal::new("u1")).await.is_ok()
            };
            let update = session.update("a", |n: &mut u64| *n += 1);
            let (a, b) = tokio::join!(update, login);
            assert_eq!((a.is_ok(), b), (true, true), "{shift}");
            let rotation = async {
                shifted().await;
                session.rotate().await.is_ok()
            };
            let update = session.update("b", |n: &mut u64| *n += 1);
            let (a, b) = tokio::join!(update, rotation);
            assert_eq!((a.is_ok(), b), (true, true), "{shift}");
        });
        assert_eq!(
            left.await,
            ["Some(2)", "Some(1)", "Some(\"u1\")"],
            "{shift}"
        );
    }
}

#[tokio::test]
async fn a_commit_beside_a_rotation_is_applied() {
    let left = left_by(async |session: Session| {
        session.login(Principal::new("u1")).await.unwrap();
        session.insert("a", &1).unwrap();
        session.insert("b", &1).unwrap();
        // The second round of polls starts with the second: the rotation comes first.
        let (a, b) = tokio::join!(session.commit(), session.rotate());
        assert_eq!((a.is_ok(), b.is_ok()), (true, true));
    });
    assert_eq!(left.await, ["Some(1)", "Some(1)", "Some(\"u1\")"]);
}

fn keeping(kept: &Arc<Mutex<Option<Session>>>, layer: SessionLayer, waits: bool) -> Router {
    let keep = Arc::clone(kept);
    let handler = async move |session: Session| {
        session.insert("a", &1).unwrap();
        *keep.lock() = Some(session);
        if waits {
            std::future::pending::<()>().await;
        }
    };
    Router::new().route("/", get(handler)).layer(layer)
}

#[tokio::test]
async fn what_comes_after_the_last_commit_began_is_refused_and_not_lost() {
    let kept = Arc::new(Mutex::new(None));
    let layer = SessionLayer::new(Yielding(memory(&clock())));
    let app = keeping(&kept, layer, false);
    let request = Request::get("/").body(Body::empty()).unwrap();
    let mut sent = Box::pin(app.oneshot(request));
    while kept.lock().is_none() {
        let pending = poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx).is_pending())).await;
        assert!(pending, "the commit waits for the store");
    }
    let session: Session = kept.lock().take().unwrap();
    let late = session.insert("b", &1).map_err(|error| error.kind());
    assert_eq!(late, Err(SessionErrorKind::Sealed));
    let late = session.increment("c", 1).map_err(|error| error.kind());
    assert_eq!(late, Err(SessionErrorKind::Sealed));
    assert_eq!(
        sent.await
            .unwrap()
            .headers()
            .get_all("set-cookie")
            .iter()
            .count(),
        1
    );
}

#[tokio::test]
async fn a_handle_of_a_request_that_was_dropped_is_sealed() {
    let kept = Arc::new(Mutex::new(None));
    let app = keeping(&kept, SessionLayer::new(memory(&clock())), true);
    let request = Request::get("/").body(Body::empty()).unwrap();
    let mut sent = Box::pin(app.oneshot(request));
    while kept.lock().is_none() {
        poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx).is_pending())).await;
    }
    drop(sent);
    let session: Session = kept.lock().take().unwrap();
    let late = session.insert("b", &1).map_err(|error| error.kind());
    assert_eq!(late, Err(SessionErrorKind::Sealed));
    let late = session.login(Principal::new("u1")).await;
    assert!(late.is_err(), "nobody is left to get the token");
}
