//! tower-sessions and axum_session, each on a store in memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::get;
use axum_session::{DatabaseError, DatabasePool};
use http::StatusCode;
use tower_sessions::session::{Id, Record};
use tower_sessions::session_store::{self, SessionStore};
use tower_sessions::{MemoryStore, Session, SessionManagerLayer};

use crate::{Gate, Subject};

#[derive(Clone, Debug)]
struct Failing {
    inner: MemoryStore,
    fails: Arc<AtomicBool>,
}

#[async_trait]
impl SessionStore for Failing {
    async fn create(&self, record: &mut Record) -> session_store::Result<()> {
        self.inner.create(record).await
    }

    async fn save(&self, record: &Record) -> session_store::Result<()> {
        self.inner.save(record).await
    }

    async fn load(&self, id: &Id) -> session_store::Result<Option<Record>> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(session_store::Error::Backend("away".into()));
        }
        self.inner.load(id).await
    }

    async fn delete(&self, id: &Id) -> session_store::Result<()> {
        self.inner.delete(id).await
    }
}

const FAULT: StatusCode = StatusCode::INTERNAL_SERVER_ERROR;

async fn put(session: &Session, key: &str) -> Result<(), StatusCode> {
    session.insert(key, 1).await.map_err(|_| FAULT)
}

async fn wait(gate: &Gate, how: &str) -> StatusCode {
    if how == "wait" {
        gate.pass().await;
    }
    if how == "fail" { FAULT } else { StatusCode::OK }
}

pub fn tower_sessions() -> Subject {
    let fails = Arc::new(AtomicBool::new(false));
    let store = Failing {
        inner: MemoryStore::default(),
        fails: Arc::clone(&fails),
    };
    let app = move |gate| {
        Router::new()
            .route(
                "/login",
                get(|session: Session| async move {
                    session.insert("user", "u1").await.map_err(|_| FAULT)?;
                    session.cycle_id().await.map_err(|_| FAULT)
                }),
            )
            .route(
                "/me",
                get(|session: Session| async move {
                    let user: Option<String> = session.get("user").await.map_err(|_| FAULT)?;
                    Ok::<_, StatusCode>(user.unwrap_or_else(|| "nobody".to_owned()))
                }),
            )
            .route(
                "/set/{key}",
                get(|session: Session, Path(key): Path<String>| async move { put(&session, &key).await }),
            )
            .route(
                "/slow/{key}",
                get(|State(gate): State<Gate>, session: Session, Path(key): Path<String>| async move {
                    put(&session, &key).await?;
                    gate.pass().await;
                    Ok::<_, StatusCode>(())
                }),
            )
            .route(
                "/get/{key}",
                get(|session: Session, Path(key): Path<String>| async move {
                    let value: Option<u64> = session.get(&key).await.map_err(|_| FAULT)?;
                    Ok::<_, StatusCode>(value.map_or_else(|| "none".to_owned(), |n| n.to_string()))
                }),
            )
            .route(
                "/logout",
                get(|session: Session| async move { session.flush().await.map_err(|_| FAULT) }),
            )
            .route(
                "/rotate/{how}",
                get(|State(gate): State<Gate>, session: Session, Path(how): Path<String>| async move {
                    session.cycle_id().await.map_err(|_| FAULT)?;
                    Ok::<_, StatusCode>(wait(&gate, &how).await)
                }),
            )
            .layer(SessionManagerLayer::new(store.clone()))
            .with_state(gate)
    };
    Subject::new("tower-sessions 0.15", app, fails)
}

#[derive(Clone, Debug, Default)]
struct Pool {
    rows: Arc<Mutex<HashMap<String, String>>>,
    fails: Arc<AtomicBool>,
}

impl Pool {
    fn rows<R>(&self, act: impl FnOnce(&mut HashMap<String, String>) -> R) -> R {
        act(&mut self.rows.lock().expect("no panic before"))
    }

    fn check(&self) -> Result<(), DatabaseError> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(DatabaseError::GenericSelectError("away".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl DatabasePool for Pool {
    async fn initiate(&self, _: &str) -> Result<(), DatabaseError> {
        Ok(())
    }

    async fn count(&self, _: &str) -> Result<i64, DatabaseError> {
        Ok(self.rows(|rows| rows.len() as i64))
    }

    async fn store(&self, id: &str, session: &str, _: i64, _: &str) -> Result<(), DatabaseError> {
        self.rows(|rows| rows.insert(id.to_owned(), session.to_owned()));
        Ok(())
    }

    async fn load(&self, id: &str, _: &str) -> Result<Option<String>, DatabaseError> {
        self.check()?;
        Ok(self.rows(|rows| rows.get(id).cloned()))
    }

    async fn delete_one_by_id(&self, id: &str, _: &str) -> Result<(), DatabaseError> {
        self.rows(|rows| rows.remove(id));
        Ok(())
    }

    async fn exists(&self, id: &str, _: &str) -> Result<bool, DatabaseError> {
        self.check()?;
        Ok(self.rows(|rows| rows.contains_key(id)))
    }

    async fn delete_by_expiry(&self, _: &str) -> Result<Vec<String>, DatabaseError> {
        Ok(Vec::new())
    }

    async fn delete_all(&self, _: &str) -> Result<(), DatabaseError> {
        self.rows(HashMap::clear);
        Ok(())
    }

    async fn get_ids(&self, _: &str) -> Result<Vec<String>, DatabaseError> {
        Ok(self.rows(|rows| rows.keys().cloned().collect()))
    }

    fn auto_handles_expiry(&self) -> bool {
        true
    }
}

type Other = axum_session::Session<Pool>;

pub async fn axum_session() -> Subject {
    use axum_session::{SessionConfig, SessionLayer, SessionStore};
    let pool = Pool::default();
    let mut stores = Vec::new();
    for _ in 0..2 {
        let store = SessionStore::<Pool>::new(Some(pool.clone()), SessionConfig::default());
        stores.push(store.await.expect("a store"));
    }
    let stores = Mutex::new(stores);
    let app =
        move |gate| {
            let store = stores
                .lock()
                .expect("no panic before")
                .pop()
                .expect("one for each node");
            Router::new()
            .route(
                "/login",
                get(|session: Other| async move {
                    session.set("user", "u1");
                    session.renew();
                }),
            )
            .route(
                "/me",
                get(|session: Other| async move {
                    session.get::<String>("user").unwrap_or_else(|| "nobody".to_owned())
                }),
            )
            .route(
                "/set/{key}",
                get(|session: Other, Path(key): Path<String>| async move { session.set(&key, 1) }),
            )
            .route(
                "/slow/{key}",
                get(|State(gate): State<Gate>, session: Other, Path(key): Path<String>| async move {
                    session.set(&key, 1);
                    gate.pass().await;
                }),
            )
            .route(
                "/get/{key}",
                get(|session: Other, Path(key): Path<String>| async move {
                    session.get::<u64>(&key).map_or_else(|| "none".to_owned(), |n| n.to_string())
                }),
            )
            .route("/logout", get(|session: Other| async move { session.destroy() }))
            .route(
                "/rotate/{how}",
                get(|State(gate): State<Gate>, session: Other, Path(how): Path<String>| async move {
                    session.renew();
                    wait(&gate, &how).await
                }),
            )
            .layer(SessionLayer::new(store))
            .with_state(gate)
        };
    let fails = Arc::clone(&pool.fails);
    Subject::new("axum_session 0.22", app, fails)
}
