//! The routes of people who are logged in: session, then the quota of the user, then the handler.
//!
//! Try it: `for i in $(seq 31); do curl -i -b jar localhost:8080/api/user/me; done` as `pat@clinic.test`
//!
//! Proof: `sessions`

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::{delete, get, post};
use tower::ServiceBuilder;
use tower_keep::session::RequireLayer;

use crate::state::App;
use crate::{
    account, bookings, customers, dashboard, identity, limits, notifications, progress, sessions,
    tokens, users,
};

pub fn routes(app: &App) -> Router<App> {
    let session = sessions::layer(app);

    let login = Router::new()
        .route("/api/login", post(sessions::login))
        .route("/login", post(account::log_in))
        .layer(
            ServiceBuilder::new()
                .layer(limits::login(app))
                .layer(session.clone()),
        );

    let user = Router::new()
        .route("/api/user/me", get(users::me))
        .route(
            "/api/user/profile",
            get(users::profile).put(users::set_profile),
        )
        .route("/api/user/sessions", get(sessions::list))
        .route("/api/user/check-kv-sync", get(customers::check))
        .route("/api/user/rebuild-kv", post(customers::rebuild))
        .layer(
            ServiceBuilder::new()
                .layer(session.clone())
                .layer(RequireLayer::login())
                .layer(limits::user(app)),
        );

    let endings = Router::new()
        .route("/api/user/sessions", delete(sessions::end_others))
        .route("/api/user/sessions/{id}", delete(sessions::end))
        .route("/me/sessions/{id}/revoke", post(account::revoke))
        .layer(
            ServiceBuilder::new()
                .layer(session.clone())
                .layer(from_fn(sessions::made_up_for))
                .layer(RequireLayer::login())
                .layer(limits::user(app)),
        );

    let mine = Router::new()
        .route("/api/logout", post(sessions::logout))
        .route("/api/appointments", get(bookings::appointments))
        .route("/api/experts/me/status", post(users::set_status))
        .route("/api/notifications", get(notifications::list))
        .route("/me", get(account::me))
        .route("/me/logout", post(account::log_out))
        .route("/admin", get(account::admin))
        .route(
            "/api/forms/{form}/progress",
            get(progress::form)
                .put(progress::save_form)
                .delete(progress::drop_form),
        )
        .route(
            "/api/setup/{step}",
            get(progress::setup)
                .put(progress::save_setup)
                .delete(progress::drop_setup),
        )
        .route("/api/verify-email/send", post(tokens::send))
        .layer(session.clone());

    let identity = Router::new()
        .route("/api/identity/verification", post(identity::verify))
        .layer(
            ServiceBuilder::new()
                .layer(session.clone())
                .layer(RequireLayer::login())
                .layer(limits::identity(app)),
        );

    let figures = Router::new()
        .route("/api/customers", get(bookings::customers))
        .route("/api/dashboard", get(dashboard::dashboard))
        .layer(
            ServiceBuilder::new()
                .layer(session)
                .layer(RequireLayer::role("expert"))
                .layer(dashboard::kept(app)),
        );

    login
        .merge(user)
        .merge(endings)
        .merge(mine)
        .merge(identity)
        .merge(figures)
}
