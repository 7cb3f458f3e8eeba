//! tower-keep, on its memory store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use http::StatusCode;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{Principal, StoreError, StoreErrorKind, StoreFuture};
use tower_keep::session::store::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionRef,
    Target, UserId, Whose,
};
use tower_keep::session::{Session, SessionError, SessionLayer, SessionRejection, SessionStore};

use crate::{Gate, Subject};

/// While it fails, no call is answered.
#[derive(Clone, Debug)]
struct Store {
    inner: MemoryStore,
    fails: Arc<AtomicBool>,
}

impl Store {
    fn call<T>(&self, call: impl FnOnce(&dyn SessionStore) -> StoreFuture<T>) -> StoreFuture<T> {
        if self.fails.load(Ordering::SeqCst) {
            return StoreFuture::ready(Err(StoreError::new(StoreErrorKind::Unavailable)));
        }
        call(&self.inner)
    }
}

impl SessionStore for Store {
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

async fn login(session: Session) -> Result<(), SessionRejection> {
    session.login(Principal::new("u1")).await
}

async fn me(session: Session) -> Result<String, SessionError> {
    let who = session.principal().await?;
    Ok(who.map_or_else(|| "nobody".to_owned(), |who| who.id().to_owned()))
}

async fn set(session: Session, Path(key): Path<String>) -> Result<(), SessionError> {
    session.insert(key, &1)
}

async fn slow(
    State(gate): State<Gate>,
    session: Session,
    Path(key): Path<String>,
) -> Result<(), SessionError> {
    session.insert(key, &1)?;
    gate.pass().await;
    Ok(())
}

async fn value(session: Session, Path(key): Path<String>) -> Result<String, SessionError> {
    let value: Option<u64> = session.get(key).await?;
    Ok(value.map_or_else(|| "none".to_owned(), |value| value.to_string()))
}

async fn logout(session: Session) -> Result<(), SessionError> {
    session.logout().await
}

async fn rotate(
    State(gate): State<Gate>,
    session: Session,
    Path(how): Path<String>,
) -> Result<StatusCode, SessionError> {
    session.rotate().await?;
    Ok(match &*how {
        "fail" => StatusCode::INTERNAL_SERVER_ERROR,
        "wait" => {
            gate.pass().await;
            StatusCode::OK
        }
        _ => StatusCode::OK,
    })
}

pub fn subject() -> Subject {
    let fails = Arc::new(AtomicBool::new(false));
    let store = Store {
        inner: MemoryStore::new(),
        fails: Arc::clone(&fails),
    };
    let app = move |gate| {
        Router::new()
            .route("/login", get(login))
            .route("/me", get(me))
            .route("/set/{key}", get(set))
            .route("/slow/{key}", get(slow))
            .route("/get/{key}", get(value))
            .route("/logout", get(logout))
            .route("/rotate/{how}", get(rotate))
            .layer(SessionLayer::new(store.clone()))
            .with_state(gate)
    };
    Subject::new("tower-keep", app, fails)
}
