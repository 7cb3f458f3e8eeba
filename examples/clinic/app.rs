//! The router: every layer and its order, and nothing else. Here what anybody may ask; `app/` has members and staff.
//!
//! Outermost first: finish → limit by address → session → owner → response cache *or* idempotency → limit by subject →
//! reservation → handler. So a replay costs no quota of the subject, and a refused request opens no transaction.
//!
//! Try it: `curl -i localhost:8080/`
//!
//! Proof: `payment_limits`

mod members;
mod staff;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tower::ServiceBuilder;

use crate::records::Records;
use crate::state::App;
use crate::{
    account, checkout, experts, fakepay, guests, health, hooks, limits, live, outbox, pages,
    patience, payments, problem, reservations, sessions, tokens, visit, webhooks,
};

const LARGEST_BODY: usize = 64 * 1_024;

/// Puts the whole practice together; `D` is the SQL engine.
pub fn app<D: Records>(app: App) -> Router {
    let session = sessions::layer(&app);
    let find = from_fn_with_state(app.clone(), guests::find);
    let welcome = from_fn_with_state(app.clone(), guests::welcome);

    let pay = Router::new()
        .route("/api/create-payment-intent", post(payments::create::<D>))
        .layer(
            ServiceBuilder::new()
                .layer(limits::pay_outer(&app))
                .layer(session.clone())
                .layer(welcome.clone())
                .layer(app.once.clone())
                .map_request(problem::as_ours)
                .layer(from_fn(problem::keepable))
                .layer(limits::pay_inner(&app))
                .layer(app.bookings.clone()),
        );

    // The form's own way through the same limits: its key is made of what it says.
    let submitted = post(checkout::submit::<D>).layer(
        ServiceBuilder::new()
            .layer(limits::pay_outer(&app))
            .layer(session.clone())
            .layer(welcome.clone())
            .layer(app.once_per_form.clone())
            .map_request(problem::as_ours)
            .layer(from_fn(problem::keepable))
            .layer(limits::pay_inner(&app))
            .layer(app.bookings.clone()),
    );
    let shown = get(checkout::book).layer(
        ServiceBuilder::new()
            .layer(session.clone())
            .layer(welcome.clone()),
    );
    let form = Router::new().route("/book", submitted.merge(shown));

    let own = Router::new()
        .route(
            "/api/reservations/{id}",
            get(reservations::show::<D>).delete(reservations::release::<D>),
        )
        .route("/api/bookings/{id}", get(reservations::booking::<D>))
        .route("/fakepay/{payment_id}", post(fakepay::fakepay::<D>))
        .route("/pay/{payment_id}", get(checkout::pay::<D>))
        .route("/api/events", get(live::events))
        .route("/reservation/{id}", get(checkout::reservation::<D>))
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
        .merge(members::routes(&app))
        .merge(staff::routes(&app))
        .merge(pay)
        .merge(form)
        .merge(own)
        .merge(guest)
        .merge(open)
        .merge(webhooks::router::<D>(&app))
        .merge(hooks::router::<D>(&app))
        // Before whatever guards a route: a method that it does not take is no request to it.
        .method_not_allowed_fallback(async || StatusCode::METHOD_NOT_ALLOWED)
        .layer(
            ServiceBuilder::new()
                .layer(from_fn(problem::finish))
                .layer(from_fn(health::count))
                .layer(limits::addresses(&app))
                .layer(from_fn(patience::bounded))
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
