//! One-time values: the state of a login elsewhere, and the token in a mail. Of any number who bring one, one is let in.
//!
//! Try it: `curl -i -c jar localhost:8080/oauth/start`, and open its `Location`.
//!
//! Proof: `one_time_data`

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, Path, Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use minijinja::context;
use serde::Deserialize;
use serde_json::{Value, json};
use tower_keep::core::Principal;
use tower_keep::data::once::{Once, Token};
use tower_keep::session::Session;
use tower_keep::store::Store;
use tower_keep::ttl;

use crate::admin;
use crate::fault::{Fault, Input};
use crate::fixtures;
use crate::guests::Owner;
use crate::notifications;
use crate::pages::page;
use crate::state::App;

/// What may be used once.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// Where a login elsewhere began; each belongs to the browser it was made for.
    states: Once<()>,
    /// Whose address a mail went to.
    mails: Once<String>,
}

impl Tokens {
    pub fn new(store: &Arc<dyn Store>) -> Self {
        Self {
            states: Once::new(store.clone(), "oauth-state", ttl::OAUTH_STATE),
            mails: Once::new(store.clone(), "mail-token", ttl::VERIFICATION),
        }
    }
}

/// `GET /oauth/start`
pub async fn start(
    Extract(app): Extract<App>,
    Extension(owner): Extension<Owner>,
    session: Session,
) -> Result<Response, Fault> {
    let browsers = browsers(&owner, &session).await?;
    let browser = browsers.first().ok_or(Fault::UNAUTHENTICATED)?;
    let states = app.tokens.states.owned_by(&Principal::new(browser));
    let state = states.issue(&()).await?;
    Ok(found(&format!("/fakeauth?state={}", state.expose())))
}

#[derive(Deserialize)]
pub struct Coming {
    state: Option<String>,
}

/// `GET /fakeauth?state=…`: a stand-in for somebody else's login page.
pub async fn elsewhere(Query(coming): Query<Coming>) -> Result<Response, Fault> {
    let state = coming.state.unwrap_or_default();
    let what = "a login at somebody else's";
    page("stand_in.html", context! { what, state })
}

/// `GET /fakeid/{id}`: a stand-in for whoever looks at passports.
pub async fn passport(Path(_): Path<String>) -> Result<Response, Fault> {
    page(
        "stand_in.html",
        context! { what => "a service that verifies identities" },
    )
}

/// What tells this browser from any other: its guest cookie, else its session. The same user elsewhere is another.
async fn browsers(owner: &Owner, session: &Session) -> Result<Vec<String>, Fault> {
    let mut names: Vec<String> = owner.guest().map(str::to_owned).into_iter().collect();
    if owner.user().is_some() {
        let sessions = session.list().await?;
        let own = sessions.iter().find(|session| session.current);
        names.extend(own.map(|session| format!("s:{}", session.id)));
    }
    Ok(names)
}

/// `GET /oauth/callback?state=&code=`: whoever began as a guest and has logged in meanwhile is still the same browser.
pub async fn callback(
    Extract(app): Extract<App>,
    Extension(owner): Extension<Owner>,
    session: Session,
    Query(coming): Query<Coming>,
) -> Result<Response, Fault> {
    let state = coming.state.unwrap_or_default();
    for name in browsers(&owner, &session).await? {
        let states = app.tokens.states.owned_by(&Principal::new(name));
        if states.take(&state).await?.is_some() {
            return Ok(found("/me"));
        }
    }
    let why = "this login was not begun here, or it has ended";
    Err(Fault::Plain(StatusCode::BAD_REQUEST, "STATE_INVALID", why))
}

fn found(path: &str) -> Response {
    (StatusCode::FOUND, [(header::LOCATION, path)]).into_response()
}

/// `POST /api/verify-email/send`: the token goes to the mailer and nowhere else; the store has its digest.
pub async fn send(Extract(app): Extract<App>, user: Principal) -> Result<StatusCode, Fault> {
    let known = fixtures::user(user.id()).ok_or(Fault::UNAUTHENTICATED)?;
    let token: Token = app.tokens.mails.issue(&known.id.to_owned()).await?;
    notifications::mail_token(&app, &known.email(), token.expose()).await?;
    Ok(StatusCode::ACCEPTED)
}

#[derive(Deserialize)]
pub struct Brought {
    token: String,
}

const USED: Fault = Fault::Plain(
    StatusCode::BAD_REQUEST,
    "TOKEN_INVALID",
    "this link was used, or its time is over",
);

/// `POST /api/verify-email`
pub async fn verify(
    Extract(app): Extract<App>,
    Input(brought): Input<Brought>,
) -> Result<Json<Value>, Fault> {
    let mails = &app.tokens.mails;
    let found = mails.peek(&brought.token).await?;
    let user = found.and_then(|found| fixtures::user(&found.value));
    let user = user.ok_or(USED)?;
    // First what may fail, and what may be done again: a token that is taken is gone.
    admin::verify(&app, user.id).await?;
    mails.take(&brought.token).await?.ok_or(USED)?;
    Ok(Json(json!({ "email": user.email(), "verified": true })))
}
