//! Pages for people: templates, money and times as they read them, the style and the one script.
//!
//! Try it: open `http://localhost:8080/` in a browser, with JavaScript or without.
//!
//! Proof: `what_a_guest_wrote_is_text_on_every_page`

use std::sync::LazyLock;

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use minijinja::{Environment, Value};
use tower_keep::core::Timestamp;

use crate::fault::Fault;

static TEMPLATES: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut templates = Environment::new();
    templates.add_filter("moment", |text: String| text.parse().map_or(text, moment));
    let pages = [
        ("base.html", include_str!("pages/base.html")),
        ("home.html", include_str!("pages/home.html")),
        ("expert.html", include_str!("pages/expert.html")),
        ("book.html", include_str!("pages/book.html")),
        ("pay.html", include_str!("pages/pay.html")),
        ("reservation.html", include_str!("pages/reservation.html")),
        ("login.html", include_str!("pages/login.html")),
        ("me.html", include_str!("pages/me.html")),
        ("admin.html", include_str!("pages/admin.html")),
        ("stand_in.html", include_str!("pages/stand_in.html")),
        ("operations.html", include_str!("pages/operations.html")),
        ("problem.html", include_str!("pages/problem.html")),
    ];
    for (name, text) in pages {
        templates
            .add_template(name, text)
            .expect("the templates are part of the program, and tested");
    }
    templates
});

/// The policy of every page: what it loads comes from us.
pub const CONTENT_SECURITY: (HeaderName, HeaderValue) = (
    header::CONTENT_SECURITY_POLICY,
    HeaderValue::from_static("default-src 'self'"),
);

/// Fills in a template; every value is escaped.
pub fn page(name: &str, values: Value) -> Result<Response, Fault> {
    Ok(([CONTENT_SECURITY], Html(text(name, values)?)).into_response())
}

/// The text of a page.
pub fn text(name: &str, values: Value) -> Result<String, Fault> {
    let template = TEMPLATES.get_template(name);
    let text = template.and_then(|template| template.render(values));
    text.map_err(|error| {
        tracing::error!(%error, name, "a page cannot be made");
        Fault::INTERNAL
    })
}

/// Cents as people read them, on one line.
pub fn money(cents: i64) -> String {
    format!("€\u{a0}{}.{:02}", cents / 100, cents % 100)
}

/// `2030-01-02, 10:00 UTC`
pub fn moment(at: Timestamp) -> String {
    let text = at.to_string();
    match text.split_once('T') {
        Some((day, time)) => format!("{day}, {} UTC", &time[..5]),
        None => text,
    }
}

/// `10:00`
pub fn time(at: Timestamp) -> String {
    at.to_string()
        .split_once('T')
        .map_or_else(String::new, |(_, time)| time[..5].to_owned())
}

/// `GET /assets/style.css`
pub async fn style() -> impl IntoResponse {
    asset("text/css; charset=utf-8", include_str!("pages/style.css"))
}

/// `GET /assets/live.js`
pub async fn script() -> impl IntoResponse {
    asset(
        "text/javascript; charset=utf-8",
        include_str!("pages/live.js"),
    )
}

fn asset(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let fields = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "public, max-age=60"),
    ];
    (fields, text)
}
