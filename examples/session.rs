//! Sessions of a small site: a cart before the login, a page of devices after it, a step-up before what matters.
//!
//! Run it: `cargo run --example session`, open <http://localhost:8082> and log in as `ada` or `bob`, password `test`.
//! (Browsers trust `localhost`, so that the `__Host-` cookie works there without TLS.) By curl:
//! `curl -c jar -b jar -d user=ada -d password=test localhost:8082/login`, then `curl -b jar localhost:8082/devices`.
//!
//! Arguments: where to listen, the store (`memory:`), for how many seconds a login counts as fresh (600). Two of them
//! on one `redis://…` are one site.

#![allow(clippy::print_stdout, reason = "a program tells where it listens")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{Html, Redirect};
use axum::routing::{get, post};
use axum::{Form, Router};
use http::StatusCode;
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_keep::core::{ClientIpLayer, Principal};
use tower_keep::session::{
    Login, RequireLayer, Session, SessionError, SessionId, SessionKey, SessionLayer,
    SessionRejection,
};

/// A name and a type: whoever reads the cart gets a list.
const CART: SessionKey<Vec<String>> = SessionKey::new("cart");
const MOST_ITEMS: usize = 20;

/// What belongs into a database. (Real passwords belong into argon2 hashes.)
#[derive(Clone)]
struct Site {
    passwords: Arc<Mutex<HashMap<String, String>>>,
    fresh_for: Duration,
}

impl Site {
    fn new(fresh_for: Duration) -> Self {
        let passwords = ["ada", "bob"].map(|user| (user.to_owned(), "test".to_owned()));
        Self {
            passwords: Arc::new(Mutex::new(passwords.into())),
            fresh_for,
        }
    }

    fn knows(&self, wish: &Credentials) -> bool {
        let passwords = self
            .passwords
            .lock()
            .unwrap_or_else(|held| held.into_inner());
        passwords.get(&wish.user) == Some(&wish.password)
    }

    fn change(&self, user: &Principal, password: &str) {
        let mut passwords = self
            .passwords
            .lock()
            .unwrap_or_else(|held| held.into_inner());
        passwords.insert(user.id().to_owned(), password.to_owned());
    }
}

#[derive(Deserialize)]
struct Credentials {
    user: String,
    password: String,
}

#[derive(Deserialize)]
struct Item {
    item: String,
}

#[derive(Deserialize)]
struct Theme {
    theme: String,
}

#[derive(Deserialize)]
struct NewPassword {
    password: String,
}

/// The first question loads the session once; all others of this request are answered from that.
async fn home(session: Session, user: Option<Principal>) -> Result<Html<String>, SessionError> {
    let user = user.map_or("nobody".to_owned(), |user| user.id().to_owned());
    let theme: String = session.get("theme").await?.unwrap_or("light".to_owned());
    let cart = session.get(CART).await?.unwrap_or_default().join(", ");
    let (theme, cart) = (escaped(&theme), escaped(&cart));
    Ok(Html(format!(
        "<!doctype html><title>session</title><body class=\"{theme}\">\
         <p>You are <b id=user>{user}</b>, your theme is <b id=theme>{theme}</b>, your cart: <b id=cart>{cart}</b></p>\
         <form method=post action=/cart><input name=item><button>add</button></form>\
         <form method=post action=/theme><input name=theme><button>choose</button></form>\
         <form method=post action=/login><input name=user><input name=password type=password>\
         <button>log in</button></form>\
         <form method=post action=/logout><button>log out</button></form><a href=/devices>devices</a>"
    )))
}

/// Compare and set: of two requests at once none is lost. The first one makes the session.
async fn add(session: Session, Form(wish): Form<Item>) -> Result<Redirect, SessionError> {
    let add = |cart: &mut Vec<String>| {
        if cart.len() < MOST_ITEMS {
            cart.push(wish.item.clone());
        }
    };
    session.update(CART, add).await?;
    Ok(Redirect::to("/"))
}

/// Blind: nothing is loaded; sent once, before the headers leave.
async fn choose(session: Session, Form(wish): Form<Theme>) -> Result<Redirect, SessionError> {
    session.insert("theme", &wish.theme)?;
    Ok(Redirect::to("/"))
}

/// A new secret, whatever the browser brought; the cart goes along.
async fn login(
    State(site): State<Site>,
    session: Session,
    Form(wish): Form<Credentials>,
) -> Result<Result<Redirect, StatusCode>, SessionRejection> {
    if !site.knows(&wish) {
        return Ok(Err(StatusCode::UNAUTHORIZED));
    }
    let role = if wish.user == "ada" { "admin" } else { "guest" };
    let user = Principal::new(&wish.user).roles([role]);
    session
        .login(Login::new(user).auth_stamp(&wish.password))
        .await?;
    Ok(Ok(Redirect::to("/")))
}

async fn logout(session: Session) -> Result<Redirect, SessionError> {
    session.logout().await?;
    Ok(Redirect::to("/"))
}

/// The user's sessions, one call for any number; nothing in it opens anything.
async fn devices(session: Session) -> Result<Html<String>, SessionRejection> {
    let rows: String = session
        .list()
        .await?
        .iter()
        .map(|one| {
            let device = one
                .device
                .map_or("?".to_owned(), |device| device.to_string());
            let ip = one.ip.map_or("?".to_owned(), |ip| ip.to_string());
            let here = if one.current { " (here)" } else { "" };
            format!(
                "<li id=\"{id}\">{device} at {ip}, last seen {at}{here}\
                 <form method=post action=/devices/{id}/end><button>end</button></form>",
                id = one.id,
                at = one.last_activity,
            )
        })
        .collect();
    Ok(Html(format!(
        "<!doctype html><title>devices</title><ul>{rows}</ul>\
         <form method=post action=/devices/others/end><button>end all others</button></form>\
         <form method=post action=/password><input name=password type=password><button>change</button></form>"
    )))
}

async fn end_one(
    session: Session,
    Path(id): Path<SessionId>,
) -> Result<StatusCode, SessionRejection> {
    Ok(if session.revoke(id).await? {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::NOT_FOUND
    })
}

async fn end_others(session: Session) -> Result<Redirect, SessionRejection> {
    session.revoke_others().await?;
    Ok(Redirect::to("/devices"))
}

/// Step-up: 401 when the last login is too old. Then one step replaces this secret and ends all other sessions.
async fn change_password(
    State(site): State<Site>,
    session: Session,
    user: Principal,
    Form(wish): Form<NewPassword>,
) -> Result<Redirect, SessionRejection> {
    session.require_fresh(site.fresh_for).await?;
    site.change(&user, &wish.password);
    let again = Login::new(user).auth_stamp(&wish.password);
    session.login(again.revoke_others()).await?;
    Ok(Redirect::to("/"))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

fn app(site: Site, sessions: SessionLayer) -> Router {
    let admin = Router::new()
        .route("/admin", get(async || "for admins only"))
        .route_layer(RequireLayer::role("admin"));
    Router::new()
        .route("/", get(home))
        .route("/cart", post(add))
        .route("/theme", post(choose))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/devices", get(devices))
        .route("/devices/{id}/end", post(end_one))
        .route("/devices/others/end", post(end_others))
        .route("/password", post(change_password))
        .merge(admin)
        .layer(sessions)
        .layer(ClientIpLayer::default())
        .with_state(site)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:8082".into());
    let store = tower_keep::store::open(&arguments.next().unwrap_or("memory:".into())).await?;
    let fresh_for = Duration::from_secs(arguments.next().unwrap_or("600".into()).parse()?);
    let app = app(Site::new(fresh_for), SessionLayer::new(store));

    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let service = app.into_make_service_with_connect_info::<std::net::SocketAddr>();
    axum::serve(listener, service).await?;
    Ok(())
}
