//! An application with sessions, browsers for it, and a store that counts and fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower::ServiceExt;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{
    ManualClock, Principal, StoreError, StoreErrorKind, StoreFuture, Timestamp,
};
use tower_keep::session::store::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionRef,
    Target, UserId, Whose,
};
use tower_keep::session::{
    Login, Session, SessionError, SessionId, SessionLayer, SessionRejection, SessionStore,
};

pub fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00Z".parse::<Timestamp>().unwrap())
}

pub fn memory(clock: &ManualClock) -> MemoryStore {
    MemoryStore::builder().clock(clock.clone()).build()
}

/// Counts the calls of a store; fails them while told to, or loses one of them.
#[derive(Clone, Debug)]
pub struct Probe {
    store: Arc<dyn SessionStore>,
    calls: Arc<AtomicU64>,
    failing: Arc<AtomicBool>,
    to_lose: Arc<Mutex<Option<(u64, Lost)>>>,
}

/// What is lost of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It never came to the store.
    Request,
    /// It was done, and nobody learns of it.
    Reply,
}

impl Probe {
    pub fn new(store: impl SessionStore) -> Self {
        Self {
            store: Arc::new(store),
            calls: Arc::default(),
            failing: Arc::default(),
            to_lose: Arc::default(),
        }
    }

    /// Loses one call, after `before` others.
    pub fn lose(&self, what: Lost, before: u64) {
        *self.to_lose.lock() = Some((before, what));
    }

    /// Whether a call was lost since [`Probe::lose`]; none is lost any more.
    pub fn has_lost(&self) -> bool {
        self.to_lose.lock().take().is_none()
    }

    fn loses_now(&self) -> Option<Lost> {
        let mut to_lose = self.to_lose.lock();
        match to_lose.as_mut() {
            Some((0, what)) => {
                let what = *what;
                *to_lose = None;
                Some(what)
            }
            Some((before, _)) => {
                *before -= 1;
                None
            }
            None => None,
        }
    }

    /// The calls since the last question.
    pub fn calls(&self) -> u64 {
        self.calls.swap(0, Ordering::SeqCst)
    }

    pub fn fail(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }

    fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&dyn SessionStore) -> StoreFuture<T>,
    ) -> StoreFuture<T> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let after = std::time::Duration::from_secs(7);
        let error = StoreError::new(StoreErrorKind::Unavailable).retry_after(after);
        match self.loses_now() {
            _ if self.failing.load(Ordering::SeqCst) => StoreFuture::ready(Err(error)),
            None => call(&*self.store),
            Some(Lost::Request) => StoreFuture::ready(Err(error)),
            Some(Lost::Reply) => {
                let done = call(&*self.store);
                StoreFuture::boxed(async move {
                    done.await.map(drop).unwrap();
                    Err(error)
                })
            }
        }
    }
}

impl SessionStore for Probe {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.call(|store| store.load(at, read))
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        self.call(|store| store.patch(at, patch))
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        self.call(|store| store.establish(order))
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        self.call(|store| store.list(of))
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.call(|store| store.assign_roles(user, roles))
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        self.call(|store| store.revoke(target))
    }
}

/// Holds handlers at a door until a test opens it.
#[derive(Debug, Default)]
pub struct Door {
    pub waiting: AtomicU64,
    open: AtomicBool,
    opened: Notify,
}

impl Door {
    pub async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let opened = self.opened.notified();
        if !self.open.load(Ordering::SeqCst) {
            opened.await;
        }
    }

    pub fn open(&self) {
        self.open.store(true, Ordering::SeqCst);
        self.opened.notify_waiters();
    }
}

/// The application: routes named after what they do.
#[derive(Clone)]
pub struct App {
    router: Router,
    pub door: Arc<Door>,
}

type Answer<T> = Result<T, SessionRejection>;
type Params = Query<std::collections::BTreeMap<String, String>>;

impl App {
    pub fn new(layer: SessionLayer) -> Self {
        let door = Arc::new(Door::default());
        let router = Router::new()
            .route("/none", get(async |_: Session| "ok"))
            .route("/get/{key}", get(read))
            .route("/set/{key}/{value}", get(write))
            .route("/add/{key}/{by}", get(increment))
            .route("/update/{key}", get(update))
            .route("/remove/{key}", get(remove))
            .route("/clear", get(clear))
            .route("/me", get(me))
            .route("/user", get(async |user: Principal| user.id().to_owned()))
            .route(
                "/maybe",
                get(async |user: Option<Principal>| {
                    user.map_or("nobody".to_owned(), |user| user.id().to_owned())
                }),
            )
            .route("/login/{user}", get(login))
            .route("/rotate", get(rotate))
            .route("/logout", get(logout))
            .route("/role/{role}", get(role))
            .route("/fresh/{seconds}", get(fresh))
            .route("/list", get(list))
            .route("/revoke/{id}", get(revoke))
            .route(
                "/revoke_others",
                get(async |session: Session| -> Answer<String> {
                    Ok(session.revoke_others().await?.to_string())
                }),
            )
            .route(
                "/revoke_all",
                get(async |session: Session| -> Answer<String> {
                    Ok(session.revoke_all().await?.to_string())
                }),
            )
            .route("/stamp/{stamp}", get(stamp))
            .route("/expires", get(expires))
            .route("/fail/{what}", get(fail))
            .route("/slow_write/{key}", get(slow_write))
            .route("/slow_login/{user}", get(slow_login))
            .route("/read_then_write", get(read_then_write))
            .layer(layer)
            .with_state(Arc::clone(&door));
        Self { router, door }
    }

    pub fn router(&self) -> Router {
        self.router.clone()
    }

    pub fn browser(&self) -> Browser {
        Browser {
            app: self.clone(),
            cookie: Arc::default(),
        }
    }
}

async fn read(session: Session, Path(key): Path<String>) -> Answer<Json<Option<Value>>> {
    Ok(Json(session.get(key).await?))
}

async fn write(session: Session, Path((key, value)): Path<(String, String)>) -> Answer<StatusCode> {
    session.insert(key, &serde_json::from_str::<Value>(&value).unwrap())?;
    Ok(StatusCode::NO_CONTENT)
}

async fn increment(session: Session, Path((key, by)): Path<(String, i64)>) -> Answer<StatusCode> {
    session.increment(key, by)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn update(session: Session, Path(key): Path<String>) -> Answer<Json<u64>> {
    let next = |n: &mut u64| {
        *n += 1;
        *n
    };
    Ok(Json(session.update(key, next).await?))
}

async fn remove(session: Session, Path(key): Path<String>) -> Answer<StatusCode> {
    session.remove(key)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn clear(session: Session) -> Answer<StatusCode> {
    session.clear()?;
    Ok(StatusCode::NO_CONTENT)
}

async fn me(session: Session) -> Answer<String> {
    let principal = session.principal().await?;
    Ok(principal.map_or("nobody".to_owned(), |principal| principal.id().to_owned()))
}

async fn login(session: Session, Path(user): Path<String>, Query(wish): Params) -> Answer<String> {
    match wish.get("after").map(String::as_str) {
        Some("others") => drop(session.revoke_others().await?),
        Some("all") => drop(session.revoke_all().await?),
        _ => {}
    }
    let roles = wish.get("role");
    let mut login = Login::new(Principal::new(user).roles(roles));
    if let Some(stamp) = wish.get("stamp") {
        login = login.auth_stamp(stamp);
    }
    if wish.contains_key("others") {
        login = login.revoke_others();
    }
    if let Some(seconds) = wish.get("remember") {
        login = login.remember_for(std::time::Duration::from_secs(seconds.parse().unwrap()));
    }
    session.login(login).await?;
    Ok(session
        .bearer_token()
        .map_or_else(String::new, |token| token.expose().to_owned()))
}

async fn rotate(session: Session) -> Result<StatusCode, SessionError> {
    session.rotate().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn logout(session: Session) -> Result<StatusCode, SessionError> {
    session.logout().await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn role(session: Session, Path(role): Path<String>) -> Answer<StatusCode> {
    session.require_role(&role).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn fresh(session: Session, Path(seconds): Path<u64>) -> Answer<StatusCode> {
    session
        .require_fresh(std::time::Duration::from_secs(seconds))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn list(session: Session) -> Answer<Response> {
    Ok(Json(session.list().await?).into_response())
}

async fn revoke(session: Session, Path(id): Path<SessionId>) -> Answer<StatusCode> {
    let found = session.revoke(id).await?;
    Ok(if found {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    })
}

async fn stamp(session: Session, Path(stamp): Path<String>) -> Answer<StatusCode> {
    session.check_auth_stamp(stamp).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn expires(session: Session) -> Answer<Json<Value>> {
    let left = session.expires_in().await?;
    Ok(Json(json!(left.map(|left| left.as_millis() as u64))))
}

/// Does something, then answers 500.
async fn fail(session: Session, Path(what): Path<String>) -> Answer<StatusCode> {
    match what.as_str() {
        "rotate" => session.rotate().await?,
        "login" => session.login(Principal::new("u1")).await?,
        _ => session.insert("lost", &1)?,
    }
    Ok(StatusCode::INTERNAL_SERVER_ERROR)
}

/// Reads first, waits at the door, then writes.
async fn slow_write(
    State(door): State<Arc<Door>>,
    session: Session,
    Path(key): Path<String>,
) -> Answer<StatusCode> {
    let _ = session.get::<Value>("any").await?;
    door.pass().await;
    session.insert(key, &1)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn slow_login(
    State(door): State<Arc<Door>>,
    session: Session,
    Path(user): Path<String>,
) -> Answer<StatusCode> {
    door.pass().await;
    session.login(Principal::new(user)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Goes on after a failed read, as a careless handler would.
async fn read_then_write(session: Session) -> Answer<StatusCode> {
    let seen: u64 = session.get("n").await.ok().flatten().unwrap_or(0);
    session.insert("n", &(seen + 1))?;
    Ok(StatusCode::NO_CONTENT)
}

/// One browser: it keeps one cookie and sends it along.
#[derive(Clone)]
pub struct Browser {
    app: App,
    cookie: Arc<Mutex<Option<String>>>,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Reply {
    pub fn code(&self) -> String {
        let document: Value = serde_json::from_str(&self.body).unwrap_or_default();
        document["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn field(&self, name: &str) -> String {
        let value = self.headers.get(name);
        value.map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
    }

    pub fn removes_cookie(&self) -> bool {
        self.field("set-cookie").contains("Max-Age=0")
    }
}

impl Browser {
    /// Asks another node of the same application, with the same cookie.
    pub fn at(&self, app: &App) -> Self {
        Self {
            app: app.clone(),
            cookie: Arc::clone(&self.cookie),
        }
    }

    /// A browser with a copy of the cookie as it is now.
    pub fn copy(&self) -> Self {
        let cookie = Arc::new(Mutex::new(self.cookie()));
        Self {
            app: self.app.clone(),
            cookie,
        }
    }

    pub fn cookie(&self) -> Option<String> {
        self.cookie.lock().clone()
    }

    /// The token without the name of the cookie.
    pub fn token(&self) -> String {
        self.cookie().unwrap().split_once('=').unwrap().1.to_owned()
    }

    pub fn plant(&self, cookie: &str) {
        *self.cookie.lock() = Some(cookie.to_owned());
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Request::get(path)).await
    }

    pub async fn status(&self, path: &str) -> u16 {
        self.get(path).await.status.as_u16()
    }

    pub async fn body(&self, path: &str) -> String {
        let reply = self.get(path).await;
        assert!(reply.status.is_success(), "{path}: {reply:?}");
        reply.body
    }

    pub async fn send(&self, mut request: http::request::Builder) -> Reply {
        if let Some(cookie) = self.cookie() {
            request = request.header("cookie", cookie);
        }
        let response = self
            .app
            .router()
            .oneshot(request.body(Body::empty()).unwrap())
            .await;
        let (parts, body) = response.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        for line in parts.headers.get_all("set-cookie") {
            let line = line.to_str().unwrap();
            let pair = line.split(';').next().unwrap().to_owned();
            *self.cookie.lock() = (!line.contains("Max-Age=0")).then_some(pair);
        }
        let body = String::from_utf8(body.to_vec()).unwrap();
        Reply {
            status: parts.status,
            headers: parts.headers,
            body,
        }
    }
}
