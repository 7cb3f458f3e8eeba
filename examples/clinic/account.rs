//! The pages of people who are logged in: their own, and the administration. Forms do what the API does.
//!
//! Try it: open `http://localhost:8080/login`
//!
//! Proof: `people_log_in_see_their_own_end_sessions_and_log_out_by_forms`

use axum::extract::rejection::FormRejection;
use axum::extract::rejection::PathRejection;
use axum::extract::{Form, Path, State as Extract};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use minijinja::context;
use serde_json::Value;
use tower_keep::core::Principal;
use tower_keep::session::Session;

use crate::admin::{self, caches, transfers};
use crate::bookings;
use crate::checkout;
use crate::fault::Fault;
use crate::fixtures::{self, EXPERTS};
use crate::notifications;
use crate::operations;
use crate::pages::page;
use crate::sessions::{self, Asking, Credentials};
use crate::state::App;

/// `GET /login`
pub async fn login_page() -> Result<Response, Fault> {
    page("login.html", context! { wrong => false })
}

/// `POST /login`
pub async fn log_in(
    Extract(app): Extract<App>,
    session: Session,
    form: Result<Form<Credentials>, FormRejection>,
) -> Result<Response, Fault> {
    let Form(wish) = form.map_err(Fault::of_form)?;
    match sessions::log_in(&app, &session, &wish).await {
        Ok(_) => Ok(Redirect::to("/me").into_response()),
        Err(Fault::Plain(StatusCode::UNAUTHORIZED, ..)) => {
            let again = page("login.html", context! { wrong => true })?;
            Ok((StatusCode::UNAUTHORIZED, again).into_response())
        }
        Err(fault) => Err(fault),
    }
}

/// Who is asking, or the way to the login page.
async fn somebody(user: Asking) -> Result<Principal, Fault> {
    user.map_err(|rejection| {
        let refused = rejection.into_response();
        if refused.status() == StatusCode::UNAUTHORIZED {
            Fault::Ready(Box::new(Redirect::to("/login").into_response()))
        } else {
            Fault::Ready(Box::new(refused))
        }
    })
}

/// `GET /me`
pub async fn me(
    Extract(app): Extract<App>,
    user: Asking,
    session: Session,
) -> Result<Response, Fault> {
    let user = somebody(user).await?;
    let record = app.db.user(user.id()).await?.ok_or(Fault::NOT_FOUND)?;
    let mut appointments = bookings::appointments_of(&app, &user).await?;
    for expert in &EXPERTS {
        let name = checkout::name_of(&app, expert.id).await?;
        for booking in &mut appointments {
            if booking["expert_id"] == expert.id {
                let service = expert.service(booking["service_id"].as_str().unwrap_or_default());
                booking["service"] = service.map(|service| service.name).into();
                booking["expert"] = name.as_str().into();
            }
        }
    }
    let sessions: Vec<Value> = sessions::rows(&session).await?;
    page(
        "me.html",
        context! {
            id => user.id(),
            name => record.name,
            appointments,
            is_expert => bookings::expert_of(&user).is_some(),
            sessions,
            notifications => notifications::delivered_to(&app, &user).await?,
        },
    )
}

/// `POST /me/logout`
pub async fn log_out(user: Asking, session: Session) -> Result<Redirect, Fault> {
    sessions::leave(user, &session).await?;
    Ok(Redirect::to("/"))
}

/// `POST /me/sessions/{id}/revoke`
pub async fn revoke(
    user: Principal,
    session: Session,
    id: Result<Path<String>, PathRejection>,
) -> Result<Redirect, Fault> {
    sessions::end(user, session, id).await?;
    Ok(Redirect::to("/me"))
}

/// `GET /admin`
pub async fn admin(Extract(app): Extract<App>, user: Asking) -> Result<Response, Fault> {
    let user = somebody(user).await?;
    if !admin::is_admin(&user) {
        return Err(Fault::FORBIDDEN);
    }
    let mut transfers = Vec::new();
    for id in fixtures::TRANSFERS {
        let state = transfers::state_of(&app, id).await?.unwrap_or_default();
        transfers.push(context! { id, state });
    }
    let stats = caches::stats(Extract(app.clone())).await.0;
    let figures = stats.as_object().into_iter().flatten();
    let figures: Vec<(String, String)> = figures
        .map(|(name, value)| (name.replace('_', " "), value.to_string().replace('"', "")))
        .collect();
    let now = operations::shown(&app).await;
    page("admin.html", context! { transfers, figures, now })
}

/// `POST /admin/transfers/{id}/approve`
pub async fn approve(
    Extract(app): Extract<App>,
    user: Principal,
    Path(id): Path<String>,
) -> Result<Redirect, Fault> {
    transfers::approve_transfer(&app, &user, &id).await?;
    Ok(Redirect::to("/admin"))
}
