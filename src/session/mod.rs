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
//! # What it does not do
//!
//! It does not detect a stolen live token, nor protect from whoever operates the store. Sessions do not fall back to
//! another store while theirs is away. There is no SQL store yet, no CSRF token, no peppered verifiers, and no
//! replay of a revocation that failed: it answered 503 and has to be sent again.

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
