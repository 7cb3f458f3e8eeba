//! SessionLayer: login with a new token each time, logout that is final, a list of devices, revocation.
//!
//! Try it: `curl -i -c jar localhost:8080/api/login -H 'content-type: application/json' -d '{"email":"pat@clinic.test","password":"test"}'`
//!
//! Proof: `sessions`

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State as Extract};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::HOUR;
use tower_keep::MINUTE;
use tower_keep::core::{Principal, PrincipalRejection};
use tower_keep::session::{Session, SessionCookie, SessionLayer};

use crate::fault::{Fault, Input};
use crate::fixtures;
use crate::state::{App, State};

/// Core 15 minutes idle, a day at most; data an hour after its last use.
pub fn layer(state: &State) -> SessionLayer {
    let cookie = if state.options.test_hooks {
        SessionCookie::insecure("id")
    } else {
        SessionCookie::host("id")
    };
    SessionLayer::new(state.store.clone())
        .cookie(cookie)
        .idle_timeout(15 * MINUTE)
        .absolute_timeout(24 * HOUR)
        .extended_timeout(HOUR)
}

#[derive(Deserialize)]
pub struct Credentials {
    email: String,
    password: String,
}

/// `POST /api/login`: the same answer for an unknown address and a wrong password.
pub async fn login(
    Extract(app): Extract<App>,
    session: Session,
    Input(wish): Input<Credentials>,
) -> Result<Json<Value>, Fault> {
    let user = log_in(&app, &session, &wish).await?;
    Ok(Json(json!({ "user": user })))
}

/// Checks the password and begins a session with a new token.
pub async fn log_in(app: &App, session: &Session, wish: &Credentials) -> Result<Value, Fault> {
    const WRONG: Fault = Fault::Plain(
        StatusCode::UNAUTHORIZED,
        "INVALID_CREDENTIALS",
        "e-mail address or password is wrong",
    );
    let user = fixtures::authenticate(&wish.email, &wish.password).ok_or(WRONG)?;
    let record = app.db.user(user.id).await?.ok_or(WRONG)?;
    session
        .login(Principal::new(user.id).roles(&record.roles))
        .await?;
    Ok(json!({ "id": user.id, "roles": record.roles }))
}

/// `POST /api/logout`
pub async fn logout(user: Asking, session: Session) -> Result<StatusCode, Fault> {
    leave(user, &session).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who asks, or why nobody can say.
pub type Asking = Result<Principal, PrincipalRejection>;

/// Ends the session. Where the store is away nobody knows whose it is: the cookie goes, and the rest is made up for.
pub async fn leave(user: Asking, session: &Session) -> Result<(), Fault> {
    if let Err(nobody) = user {
        let refused = nobody.into_response();
        if refused.status() == StatusCode::UNAUTHORIZED {
            return Err(Fault::Ready(Box::new(refused)));
        }
    }
    Ok(session.logout().await?)
}

/// Whoever ends a session in an outage is told 503, since nobody knows who asks, and it is made up for.
pub async fn made_up_for(
    session: Session,
    id: Result<Option<Path<String>>, PathRejection>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        // The store remembers who asks for what, and has the last word on it; here there is no answer to wait for.
        match id.map(|id| id.map(|Path(id)| id.parse())) {
            Ok(Some(Ok(id))) => drop(session.revoke(id).await),
            Ok(Some(Err(_))) | Err(_) => {}
            Ok(None) => drop(session.revoke_others().await),
        }
    }
    response
}

/// `GET /api/user/sessions`
pub async fn list(_user: Principal, session: Session) -> Result<Json<Vec<Value>>, Fault> {
    rows(&session).await.map(Json)
}

/// The signed-in browsers of this user, by their public ids.
pub async fn rows(session: &Session) -> Result<Vec<Value>, Fault> {
    let sessions = session.list().await?;
    Ok(sessions.iter().map(|info| json!(info)).collect())
}

/// `DELETE /api/user/sessions/{id}`: of the current one it is a logout; what is not yours does not exist.
pub async fn end(
    _user: Principal,
    session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, Fault> {
    // What is no text is no id either.
    let Path(id) = id.map_err(|_| Fault::NOT_FOUND)?;
    let id = id.parse().map_err(|_| Fault::NOT_FOUND)?;
    if session.revoke(id).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Fault::NOT_FOUND)
    }
}

/// `DELETE /api/user/sessions`: ends all others.
pub async fn end_others(_user: Principal, session: Session) -> Result<StatusCode, Fault> {
    session.revoke_others().await?;
    Ok(StatusCode::NO_CONTENT)
}
