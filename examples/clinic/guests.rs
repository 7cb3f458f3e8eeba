//! Who is booking: the signed-in user, or a guest with a signed id in a cookie. Neither can be made up.
//!
//! Try it: `curl -i localhost:8080/api/guest`
//!
//! Proof: `keys_are_checked_and_belong_to_one_guest_and_one_payload`

mod owner;

use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tower_keep::core::{base64url, principal_of};

pub use self::owner::{Owner, partition, scope};
use crate::bookings;
use crate::fault::Fault;
use crate::state::App;

/// Finds the owner and puts it into the request; asks the session only where its cookie came.
pub async fn find(Extract(app): Extract<App>, request: Request, next: Next) -> Response {
    match owner_of(&app, &request).await {
        Ok(owner) => run(request, owner, next).await,
        Err(fault) => fault.into_response(),
    }
}

/// The same, and whoever has no name yet gets one: a guest cookie for a year.
pub async fn welcome(Extract(app): Extract<App>, request: Request, next: Next) -> Response {
    let mut owner = match owner_of(&app, &request).await {
        Ok(owner) => owner,
        Err(fault) => return fault.into_response(),
    };
    if owner.is_known() {
        return run(request, owner, next).await;
    }
    let id = uuid::Uuid::new_v4().simple().to_string();
    let cookie = cookie(&app, &id);
    owner.guest = Some(guest_subject(&id));
    let mut response = run(request, owner, next).await;
    response.headers_mut().append(header::SET_COOKIE, cookie);
    response
}

/// `GET /api/guest`: nothing to say, the cookie is the answer.
pub async fn hello() -> StatusCode {
    StatusCode::NO_CONTENT
}

async fn run(mut request: Request, owner: Owner, next: Next) -> Response {
    request.extensions_mut().insert(owner);
    next.run(request).await
}

/// Nothing of the request is borrowed while the session is read: an axum body cannot be shared between threads.
fn owner_of(
    app: &App,
    request: &Request,
) -> impl Future<Output = Result<Owner, Fault>> + Send + use<> {
    let guest = guest_of(app, request.headers()).map(|id| guest_subject(&id));
    let asked = principal_of(request.extensions());
    async move {
        let user = asked.await?;
        let expert = user.as_ref().and_then(bookings::expert_of);
        Ok(Owner {
            user: user.map(|user| format!("u:{}", user.id())),
            guest,
            expert: expert.map(|expert| expert.id),
        })
    }
}

fn guest_subject(id: &str) -> String {
    format!("g:{id}")
}

fn guest_of(app: &App, headers: &HeaderMap) -> Option<String> {
    let name = name(app);
    let lines = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|line| line.to_str().ok());
    let mut pairs = lines
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='));
    let (_, value) = pairs.find(|(own, _)| *own == name)?;
    let (id, mac) = value.split_once('.')?;
    let signed = mac_of(app, id);
    bool::from(subtle::ConstantTimeEq::ct_eq(
        signed.as_bytes(),
        mac.as_bytes(),
    ))
    .then(|| id.to_owned())
}

fn cookie(app: &App, id: &str) -> HeaderValue {
    let (name, mac) = (name(app), mac_of(app, id));
    let secure = if app.options.test_hooks {
        ""
    } else {
        "; Secure"
    };
    let text =
        format!("{name}={id}.{mac}; HttpOnly{secure}; SameSite=Lax; Path=/; Max-Age=31536000");
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn name(app: &App) -> &'static str {
    if app.options.test_hooks {
        "guest"
    } else {
        "__Host-guest"
    }
}

fn mac_of(app: &App, id: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(app.options.secret.as_bytes());
    let mut mac = mac.expect("HMAC takes a key of any length");
    mac.update(b"guest:");
    mac.update(id.as_bytes());
    base64url(&mac.finalize().into_bytes())
}
