//! The router: every layer and its order on one page, and nothing else.
//!
//! Outermost first: finish → limit by address → session → owner → response cache *or* idempotency → limit by subject →
//! reservation → handler. So a replay costs no quota of the subject, and a refused request opens no transaction.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{delete, get, post};
use tower::ServiceBuilder;

use crate::records::Records;
use crate::state::App;
use crate::{experts, guests, health, hooks, limits, payments, problem, sessions, webhooks};

const LARGEST_BODY: usize = 64 * 1_024;

/// Puts the whole practice together; `D` is the SQL engine.
pub fn app<D: Records>(app: App) -> Router {
    let session = sessions::layer(&app);
    let find = from_fn_with_state(app.clone(), guests::find);
    let welcome = from_fn_with_state(app.clone(), guests::welcome);

    let catalogue = Router::new()
        .route("/api/experts", get(experts::list))
        .route("/api/experts/{id}", get(experts::one))
        .route("/api/experts/{id}/slots", get(experts::slots))
        .layer(app.catalogue.clone());

    let login = Router::new()
        .route("/api/login", post(sessions::login))
        .layer(
            ServiceBuilder::new()
                .layer(limits::login(&app))
                .layer(session.clone()),
        );

    let user = Router::new()
        .route("/api/user/me", get(sessions::me))
        .route(
            "/api/user/sessions",
            get(sessions::list).delete(sessions::end_others),
        )
        .route("/api/user/sessions/{id}", delete(sessions::end))
        .layer(
            ServiceBuilder::new()
                .layer(session.clone())
                .layer(limits::user(&app)),
        );

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

    let own = Router::new()
        .route("/api/logout", post(sessions::logout))
        .route(
            "/api/reservations/{id}",
            get(payments::show::<D>).delete(payments::release::<D>),
        )
        .route("/api/bookings/{id}", get(payments::booking::<D>))
        .route("/fakepay/{payment_id}", post(webhooks::fakepay::<D>))
        .layer(
            ServiceBuilder::new()
                .layer(session.clone())
                .layer(find)
                .layer(app.bookings.clone()),
        );

    let guest = Router::new()
        .route("/api/guest", get(guests::hello))
        .layer(ServiceBuilder::new().layer(session).layer(welcome));

    let open = Router::new()
        .route("/api/health", get(health::all))
        .route("/api/health/{part}", get(health::part))
        .route(
            "/internal/cron/cleanup-reservations",
            post(webhooks::cron::<D>),
        );

    Router::new()
        .merge(catalogue)
        .merge(login)
        .merge(user)
        .merge(pay)
        .merge(own)
        .merge(guest)
        .merge(open)
        .merge(webhooks::router::<D>(&app))
        .merge(hooks::router(&app))
        .layer(
            ServiceBuilder::new()
                .layer(from_fn(problem::finish))
                .layer(DefaultBodyLimit::max(LARGEST_BODY)),
        )
        .with_state(app)
}
