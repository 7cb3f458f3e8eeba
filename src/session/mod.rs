//! Keeps who a visitor is, and a little data of the visit, behind one unguessable token in a cookie.
//!
//! ```
//! use axum::body::Body;
//! use axum::{Json, Router, routing::{get, post}};
//! use http::{Request, StatusCode};
//! use tower::ServiceExt;
//! use tower_keep::backend::memory::MemoryStore;
//! use tower_keep::core::Principal;
//! use tower_keep::session::{RequireLayer, Session, SessionError, SessionLayer, SessionRejection};
//!
//! async fn login(session: Session) -> Result<StatusCode, SessionRejection> {
//!     session.login(Principal::new("u1").roles(["admin"])).await?; // a new secret, whatever came before
//!     Ok(StatusCode::NO_CONTENT)
//! }
//!
//! async fn visits(session: Session) -> Result<Json<u64>, SessionError> {
//!     Ok(Json(session.update("visits", |visits: &mut u64| { *visits += 1; *visits }).await?))
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let app = Router::new()
//!     .route("/visits", get(visits))
//!     .route_layer(RequireLayer::role("admin"))
//!     .route("/login", post(login))
//!     .layer(SessionLayer::new(MemoryStore::new()));
//!
//! let refused = app.clone().oneshot(Request::get("/visits").body(Body::empty())?).await?;
//! assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
//!
//! let answer = app.clone().oneshot(Request::post("/login").body(Body::empty())?).await?;
//! let set_cookie = answer.headers()["set-cookie"].to_str()?;
//! assert!(set_cookie.starts_with("__Host-id="));
//!
//! let cookie = set_cookie.split(';').next().unwrap_or_default();
//! let visit = Request::get("/visits").header("cookie", cookie).body(Body::empty())?;
//! assert_eq!(app.oneshot(visit).await?.status(), StatusCode::OK);
//! # Ok(())
//! # }
//! ```
//!
//! One session has two parts: the *core* (user, roles, device, times) answers "who is it and may they" in one
//! read; the *data* (keyed values, 64 keys, 64 KiB) is read only when a handler asks for a value, and written key
//! by key. A request that leaves its session alone costs no store call, and its response leaves as it came.
//!
//! - Ids and secrets are made here only. The store keeps a hash of the secret; each login replaces it.
//! - Writes of different keys never undo each other; [`Session::update`] loses no update of the same key.
//! - What was revoked or logged out stays so, whatever was in flight.
//! - While the store is away, whatever needs a session is 503, never 401, never a new visitor.
//!
//! # In five minutes
//!
//! **1. The layer.** Put it around the router: one handle for every store (`tower_keep::store::open(url)` chooses by
//! URL), and what differs from the defaults. 15 minutes idle and a day at most are the defaults.
//!
//! ```
//! # use tower_keep::{HOUR, MINUTE};
//! # use tower_keep::session::{SessionCookie, SessionLayer, SessionLimit};
//! # let store = tower_keep::backend::memory::MemoryStore::new();
//! let sessions = SessionLayer::new(store)
//!     .idle_timeout(30 * MINUTE)
//!     .absolute_timeout(12 * HOUR)
//!     .cookie(SessionCookie::host("id")) // `__Host-id`; plain HTTP in development: `SessionCookie::insecure("id")`
//!     .limit(SessionLimit::evict_longest_idle(10)) // sessions of one user
//!     .passive(|parts| parts.uri.path() == "/ping"); // polling keeps nobody logged in
//! ```
//!
//! **2. Data.** A key and any serde type; a [`SessionKey`] fixes the type for everybody who uses the name. Reads load
//! once per request, blind writes load nothing and are sent once, before the headers leave, unless the answer is a 5xx.
//!
//! ```
//! # use tower_keep::session::{Session, SessionError, SessionKey};
//! const CART: SessionKey<Vec<String>> = SessionKey::new("cart");
//!
//! async fn shop(session: Session) -> Result<String, SessionError> {
//!     let theme: Option<String> = session.get("theme").await?; // one store call, the first time
//!     session.insert("seen", &true)?; // blind
//!     session.increment("pages", 1)?; // blind, and exact among parallel requests
//!     let items = session.update(CART, |cart| { cart.push("tea".into()); cart.len() }).await?; // compare and set
//!     Ok(format!("{theme:?}, {items} items"))
//! }
//! ```
//!
//! **3. Login and logout.** Check the password, then log in: the id stays or moves, the secret is new, the cart goes
//! along, another user's data does not. What the password hash was is remembered as a stamp, so that a change behind
//! our back ends the session ([`Session::check_auth_stamp`]).
//!
//! ```
//! # use std::time::Duration;
//! # use tower_keep::core::Principal;
//! # use tower_keep::session::{Login, Session, SessionError, SessionRejection};
//! # struct User { id: String, password_hash: String }
//! async fn login(session: Session, user: User, remember: bool) -> Result<(), SessionRejection> {
//!     let mut login = Login::new(Principal::new(&user.id).roles(["guest"])).auth_stamp(&user.password_hash);
//!     if remember {
//!         login = login.remember_for(Duration::from_secs(30 * 86_400));
//!     }
//!     session.login(login).await
//! }
//!
//! async fn logout(session: Session) -> Result<(), SessionError> {
//!     session.logout().await // final: nothing in flight brings it back
//! }
//! ```
//!
//! **4. Who may.** Extract [`Principal`](crate::core::Principal) (401 without one) or `Option<Principal>`, or guard a
//! whole router by [`RequireLayer`]. A role check is one read of the core, shared with the handler; a role taken away by
//! [`SessionDirectory::assign_roles`] is gone with the next request on every node.
//!
//! **5. Devices, step-up, passwords.** A page of devices, ending one of them, and what asks for a recent login:
//!
//! ```
//! # use tower_keep::MINUTE;
//! # use tower_keep::core::Principal;
//! # use tower_keep::session::{Login, Session, SessionId, SessionInfo, SessionRejection};
//! async fn devices(session: Session) -> Result<Vec<SessionInfo>, SessionRejection> {
//!     session.list().await // `Firefox on Linux`, address, last activity; no credential
//! }
//!
//! async fn end(session: Session, id: SessionId) -> Result<bool, SessionRejection> {
//!     session.require_fresh(10 * MINUTE).await?; // 401 REAUTHENTICATION_REQUIRED (RFC 9470) after that
//!     session.revoke(id).await // false: not theirs, so 404
//! }
//!
//! async fn new_password(session: Session, user: Principal, hash: &str) -> Result<(), SessionRejection> {
//!     session.login(Login::new(user).auth_stamp(hash).revoke_others()).await // one step
//! }
//! ```
//!
//! **6. Look at it.** `cargo run --example session` is all of this as a small site; [`SessionLayer::on_event`] tells of
//! logins, ends and signals (a replayed secret, another device), of which the log has one of a kind in a minute; the metrics
//! are `keep_session_*`.
//!
//! # Without axum
//!
//! The layer works on any `http` service: [`Session::of`] finds the handle in a request's extensions.
//!
//! # Where its promises stand
//!
//! | ASVS 5.0 | here |
//! |---|---|
//! | 3.3.1–3.3.5 cookie attributes | [`SessionCookie`]: `__Host-`, Secure, HttpOnly, SameSite, under 4,096 bytes; wrong combinations do not build |
//! | 7.1.1–7.1.3, 7.3.1, 7.3.2 lifetimes | [`Lifetimes`], [`SessionLayer::limit`]: idle and absolute end as facts of each session |
//! | 7.2.1–7.2.4 tokens | made here, 192 random bits, checked inside each store step, new at each login |
//! | 7.4.1–7.4.5, 7.5.1–7.5.3, 7.6.1 ends and step-up | `logout`, `revoke*`, [`SessionDirectory`], [`Session::require_fresh`] |
//! | 11.5.1, 14.2.1 secrets | the system's random source; never in a URL, a log, a list or the store |
//! | 14.2.2, 14.3.1, 14.3.2 caches | `Cache-Control`, `Vary`, `Clear-Site-Data`; the response cache never keeps a touched answer |
//! | 16.2.5, 16.5.2, 16.5.3 logs, failure | hashes and ids only; 503 when the store is away, never more access |
//!
//! # Coming from tower-sessions or Django
//!
//! What both do and this layer does as well: a route that asks nothing sends no cookie and no `Vary`; an id that a client
//! made up is never taken over; a login changes the token and keeps what the visitor had, but for another user's data; a
//! 5xx saves nothing that was only buffered; an ended session takes its cookie along, with every attribute repeated; what
//! ended meanwhile is not saved again. What is different, on purpose:
//!
//! | elsewhere | here |
//! |---|---|
//! | tower-sessions answers a malformed cookie at any route | at the first route that asks; before that nothing is looked at |
//! | `SameSite=Strict` and the name `id` are tower-sessions' defaults, no `Secure` is Django's | `__Host-id`, Secure, `SameSite=Lax`; [`SessionCookie::same_site`] |
//! | `Max-Age` says how long a session lasts, and is sent again with each change | the store decides; a cookie is sent with a new token only, `Max-Age` with [`Login::remember_for`] only |
//! | `set_expiry` of one session | [`Login::remember_for`]; what ends a session is fixed at its login, [`Session::expires_in`] tells it |
//! | `cycle_id`, `cycle_key` make a new id | [`Session::rotate`]: the id is public and stays, the secret is new |
//! | `flush` | [`Session::logout`]; [`Session::clear`] removes the values and keeps the login |
//! | an emptied session loses its cookie (Django) | it is a session still, with its login |
//! | the whole session is saved, the last one wins | key by key; [`Session::update`] and [`Session::increment`] lose nothing |
//! | a change inside a value needs `modified = True` (Django) | values are copies: `insert` or `update` says what changes |
//! | a save into a session that ended meanwhile is a 400 (Django) or brings it back (tower-sessions) | dropped and told ([`SessionEventKind::WriteDropped`]); the answer stands, `commit` knows |
//! | a 5xx saves nothing at all, and rolls a login back on one side only | what was committed by its call (`login`, `rotate`, `update`, `commit`) stays, and its cookie is sent |
//! | only changes keep a session alive, unless each request is saved | reads count as activity, recorded once a minute at most by the read itself; [`SessionLayer::passive`] |
//! | `SESSION_SAVE_EVERY_REQUEST`, `always_save` | not needed, and not there |
//! | the session key is the credential | [`SessionId`] opens nothing; the store holds a hash of the secret |
//! | `update_session_auth_hash` | a login again: [`Login::auth_stamp`], [`Login::revoke_others`] |
//! | `clearsessions`, `delete_expired` as a task | every engine forgets by itself |
//! | a failing store is a 500 | 503 with `Retry-After`; nothing is written after a failed read |
//! | `set_test_cookie`, sessions in signed cookies, a cache before the database | not there |
//!
//! # What it does not do
//!
//! It does not detect a stolen live token, nor protect from whoever operates the store. Sessions do not fall back to
//! another store while theirs is away. There is no CSRF token, no peppered verifiers. A revocation that failed
//! (503), refused ones too, is on Redis sent again by the process it failed in, before any other call for the same sessions:
//! 10,000 at most, and one asked in the name of a session that is over by then only if this process saw that session, and the store still
//! knows that it ended later. (A secret that was changed before the question and once more after it counts as right.) Sessions that began after
//! the question stay; [`SessionLayer::on_event`] hears of none of it, `keep_session_ended_total` counts it. If
//! that process ends first, and in SQL, it has to be asked for again. In SQL a read is one SELECT and each change a transaction. A
//! handler that holds a transaction of `sqlite::memory:`, which has one connection, asks its session before.

mod config;
mod cookie;
mod data;
mod device;
mod directory;
mod error;
mod event;
#[cfg(feature = "axum")]
mod extract;
mod future;
mod handle;
mod key;
mod layer;
mod limits;
mod observed;
mod policy;
mod record;
mod rejection;
mod require;
mod service;
pub mod store;
mod token;

pub use cookie::{SameSite, SessionCookie};
pub use device::{Browser, Device, DeviceKind, Os};
pub use directory::SessionDirectory;
pub use error::{SessionError, SessionErrorKind};
pub use event::{LoggedIn, SessionEvent, SessionEventKind, Signal};
pub use future::ResponseFuture;
pub use handle::{Login, Session};
pub use key::SessionKey;
pub use layer::SessionLayer;
pub use limits::{Lifetimes, SessionLimit};
pub use record::SessionInfo;
pub use rejection::SessionRejection;
pub use require::{Require, RequireFuture, RequireLayer};
pub use service::SessionService;
pub use store::{EndCause, SessionStore};
pub use token::{BearerToken, NotASessionId, SessionId};
