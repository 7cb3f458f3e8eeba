//! The routes of admins: session, then the role, then what it costs. Who is not one costs no quota.
//!
//! Try it: `curl -i -b jar localhost:8080/api/admin/cache/stats` as `pat@clinic.test`, and as `root@clinic.test`
//!
//! Proof: `admins`

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::{get, post};
use tower::ServiceBuilder;

use crate::admin::{self, caches, transfers};
use crate::state::App;
use crate::{account, limits, notifications, problem, sessions};

pub fn routes(app: &App) -> Router<App> {
    let admins = || {
        ServiceBuilder::new()
            .layer(sessions::layer(app))
            .layer(from_fn(admin::only))
    };

    let roles = Router::new()
        .route("/api/users/{id}/roles", post(admin::set_roles))
        .layer(admins().layer(limits::admin(app)).layer(limits::roles(app)));

    let force = Router::new()
        .route(
            "/api/internal/force-verification",
            post(admin::force_verification),
        )
        .layer(admins().layer(limits::force(app)));

    let verify = Router::new()
        .route("/api/experts/verify-specific", post(admin::verify_specific))
        .layer(admins().layer(limits::verify(app)));

    let money = Router::new()
        .route(
            "/api/admin/payment-transfers/approve",
            post(transfers::approve),
        )
        .route("/admin/transfers/{id}/approve", post(account::approve))
        .layer(
            admins()
                .layer(app.once_if_asked.clone())
                .map_request(problem::as_ours)
                .layer(from_fn(problem::keepable))
                .layer(limits::admin(app))
                .layer(limits::transfer(app)),
        );

    let operations = Router::new()
        .route("/api/admin/cache/invalidate", post(caches::invalidate))
        .route("/api/admin/cache/warm", post(caches::warm))
        .route("/api/admin/cache/stats", get(caches::stats))
        .route("/api/admin/notifications", post(notifications::send))
        .layer(admins().layer(limits::admin(app)));

    roles
        .merge(force)
        .merge(verify)
        .merge(money)
        .merge(operations)
}
