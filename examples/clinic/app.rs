//! The router: every layer and its order on one page, and nothing else.
//!
//! Outermost first: finish → limit by address → session → owner → response cache *or* idempotency → limit by subject →
//! reservation → handler. So a replay costs no quota of the subject, and a refused request opens no transaction.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post};
use tower::ServiceBuilder;
use tower_keep::session::RequireLayer;

use crate::records::Records;
use crate::state::App;
use crate::{
    account, admin, bookings, customers, dashboard, experts, fakepay, guests, health, hooks,
    identity, limits, live, notifications, outbox, pages, payments, problem, progress,
    reservations, sessions, tokens, users, visit, webhooks,
};

const LARGEST_BODY: usize = 64 * 1_024;

/// Puts the whole practice together; `D` is the SQL engine.
pub fn app<D: Records>(app: App) -> Router {
    let session = sessions::layer(&app);
    let find = from_fn_with_state(app.clone(), guests::find);
    let welcome = from_fn_with_state(app.clone(), guests::welcome);

    let login = Router::new()
        .route("/api/login", post(sessions::login))
        .route("/login", post(account::log_in))
        .layer(
            ServiceBuilder::new()
                .layer(limits::login(&app))
                .layer(session.clone()),
        );

    let user = Router::new()
        .route("/api/user/me", get(users::me))
        .route(
            "/api/user/profile",
            get(users::profile).put(users::set_profile),
        )
        .route(
            "/api/user/sessions",
            get(sessions::list).delete(sessions::end_others),
        )
        .route("/api/user/sessions/{id}", delete(sessions::end))
        .route("/api/user/check-kv-sync", get(customers::check))
        .route("/api/user/rebuild-kv", post(customers::rebuild))
        .route("/me/sessions/{id}/revoke", post(account::revoke))
        .layer(
            ServiceBuilder::new()
                .layer(session.clone())
                .layer(limits::user(&app)),
        );

    let mine = Router::new()
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
                .layer(limits::identity(&app)),
        );

    let figures = Router::new()
        .route("/api/customers", get(bookings::customers))
        .route("/api/dashboard", get(dashboard::dashboard))
        .layer(
            ServiceBuilder::new()
                .layer(session.clone())
                .layer(RequireLayer::role("expert"))
                .layer(dashboard::kept(&app)),
        );

    // A whole path below /api/admin, or what only admins may do elsewhere: who is not one costs no quota.
    let admins = || {
        ServiceBuilder::new()
            .layer(session.clone())
            .layer(from_fn(admin::only))
    };
    let roles = Router::new()
        .route("/api/users/{id}/roles", post(admin::set_roles))
        .layer(
            admins()
                .layer(limits::admin(&app))
                .layer(limits::roles(&app)),
        );
    let force = Router::new()
        .route(
            "/api/internal/force-verification",
            post(admin::force_verification),
        )
        .layer(admins().layer(limits::force(&app)));
    let verify = Router::new()
        .route("/api/experts/verify-specific", post(admin::verify_specific))
        .layer(admins().layer(limits::verify(&app)));
    let transfers = Router::new()
        .route("/api/admin/payment-transfers/approve", post(admin::approve))
        .route("/admin/transfers/{id}/approve", post(account::approve))
        .layer(
            admins()
                .layer(payments::once_if_asked(&app))
                .layer(limits::admin(&app))
                .layer(limits::transfer(&app)),
        );
    let operations = Router::new()
        .route("/api/admin/cache/invalidate", post(admin::invalidate))
        .route("/api/admin/cache/warm", post(admin::warm))
        .route("/api/admin/cache/stats", get(admin::stats))
        .route("/api/admin/notifications", post(notifications::send))
        .layer(admins().layer(limits::admin(&app)));

    let pay = Router::new()
        .route("/api/create-payment-intent", post(payments::create::<D>))
        .layer(
            ServiceBuilder::new()
                .layer(limits::pay_outer(&app))
                .layer(session.clone())
                .layer(welcome.clone())
                .layer(payments::once(&app))
                .layer(limits::pay_inner(&app))
                .layer(app.bookings.clone()),
        );

    // The form's own way through the same limits: its key is made of what it says.
    let submitted = post(visit::submit::<D>).layer(
        ServiceBuilder::new()
            .layer(limits::pay_outer(&app))
            .layer(session.clone())
            .layer(welcome.clone())
            .layer(payments::once_per_form(&app))
            .layer(limits::pay_inner(&app))
            .layer(app.bookings.clone()),
    );
    let shown = get(visit::book).layer(
        ServiceBuilder::new()
            .layer(session.clone())
            .layer(welcome.clone()),
    );
    let form = Router::new().route("/book", submitted.merge(shown));

    let own = Router::new()
        .route("/api/logout", post(sessions::logout))
        .route(
            "/api/reservations/{id}",
            get(reservations::show::<D>).delete(reservations::release::<D>),
        )
        .route("/api/bookings/{id}", get(reservations::booking::<D>))
        .route("/fakepay/{payment_id}", post(fakepay::fakepay::<D>))
        .route("/pay/{payment_id}", get(visit::pay::<D>))
        .route("/api/events", get(live::events))
        .route("/reservation/{id}", get(visit::reservation::<D>))
        .layer(
            ServiceBuilder::new()
                .layer(session.clone())
                .layer(find)
                .layer(app.bookings.clone()),
        );

    let guest = Router::new()
        .route("/api/guest", get(guests::hello))
        .route("/oauth/start", get(tokens::start))
        .route("/oauth/callback", get(tokens::callback))
        .layer(ServiceBuilder::new().layer(session).layer(welcome));

    let open = Router::new()
        .route("/login", get(account::login_page))
        .route("/fakeauth", get(tokens::elsewhere))
        .route("/fakeid/{id}", get(tokens::passport))
        .route("/api/verify-email", post(tokens::verify))
        .route("/assets/style.css", get(pages::style))
        .route("/assets/live.js", get(pages::script))
        .route("/metrics", get(health::metrics))
        .nest("/api/health", app.health.routes())
        .route("/internal/cron/cleanup-reservations", post(outbox::cron));

    Router::new()
        .merge(catalogue(&app))
        .merge(login)
        .merge(user)
        .merge(mine)
        .merge(identity)
        .merge(figures)
        .merge(roles)
        .merge(force)
        .merge(verify)
        .merge(transfers)
        .merge(operations)
        .merge(pay)
        .merge(form)
        .merge(own)
        .merge(guest)
        .merge(open)
        .merge(webhooks::router::<D>(&app))
        .merge(hooks::router::<D>(&app))
        .layer(
            ServiceBuilder::new()
                .layer(from_fn(problem::finish))
                .layer(from_fn(health::count))
                .layer(limits::addresses(&app))
                .layer(DefaultBodyLimit::max(LARGEST_BODY)),
        )
        .with_state(app)
}

/// What everybody may see: kept for all.
pub fn catalogue(app: &App) -> Router<App> {
    Router::new()
        .route("/api/experts", get(experts::list))
        .route("/api/experts/{id}", get(experts::one))
        .route("/api/experts/{id}/slots", get(experts::slots))
        .route("/", get(visit::home))
        .route("/expert/{id}", get(visit::expert))
        .layer(app.catalogue.clone())
}
