//! The pages as somebody without JavaScript meets them: links, forms, redirects, errors that are pages too.

use http::StatusCode;
use serde_json::json;

use super::{alone, slot, text};
use crate::support::{Browser, Reply};

/// The part of a page between two marks.
pub(super) fn between<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = page
        .split_once(from)
        .unwrap_or_else(|| panic!("no {from} in {page}"));
    rest.split_once(to).unwrap().0
}

/// The value of a hidden field.
fn hidden<'a>(page: &'a str, name: &str) -> &'a str {
    between(page, &format!("name=\"{name}\" value=\""), "\"")
}

/// Every page is whole: its language, one heading, the navigation, no script but ours, nothing kept by the browser.
pub(super) fn is_whole(reply: &Reply) -> bool {
    let page = reply.text();
    reply.header("content-type") == "text/html; charset=utf-8"
        && reply.header("content-security-policy") == "default-src 'self'"
        && page.matches("<h1").count() == 1
        && ["nav-home", "nav-me", "nav-admin", "<main", "lang=\"en\""]
            .iter()
            .all(|part| page.contains(part))
}

pub(super) async fn page(browser: &Browser, path: &str) -> Reply {
    let reply = browser.get(path).await;
    assert_eq!(reply.status, StatusCode::OK, "{path}: {}", reply.text());
    assert!(is_whole(&reply), "{path}: {reply:?}");
    reply
}

#[track_caller]
pub(super) fn leads_to(reply: &Reply) -> String {
    assert_eq!(reply.status, StatusCode::SEE_OTHER, "{}", reply.text());
    reply.header("location").to_owned()
}

/// From the list of experts to the form of the first free time.
pub(super) async fn form(browser: &Browser) -> (String, Vec<(String, String)>) {
    let home = page(browser, "/").await;
    let link = between(home.text(), "<h2><a href=\"", "\"").to_owned();
    assert_eq!(link, "/expert/e1");
    let expert = page(browser, &format!("{link}?service=s60&day=2030-01-02")).await;
    assert_eq!(expert.text().matches("class=\"slot\"").count(), 15);
    let book = between(expert.text(), "class=\"book\" href=\"", "\"").replace("&amp;", "&");
    let form = page(browser, &book).await;
    let names = ["expert_id", "service_id", "start", "price_cents", "nonce"];
    let fields = names.map(|name| (name.to_owned(), hidden(form.text(), name).to_owned()));
    (book, fields.to_vec())
}

pub(super) fn filled(fields: &[(String, String)]) -> Vec<(&str, &str)> {
    let own = [
        ("guest_name", "<b>Gil</b>"),
        ("guest_email", "gil@example.org"),
    ];
    let given = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    given.chain(own).collect()
}

#[tokio::test]
async fn a_guest_books_and_pays_by_links_and_forms_alone_and_a_double_click_is_one_booking() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let (_, fields) = form(&browser).await;
    let first = browser.submit("/book", &filled(&fields)).await;
    let again = browser.submit("/book", &filled(&fields)).await;
    let pay = leads_to(&first);
    assert_eq!(leads_to(&again), pay);
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(slot(&browser, "e1", "s60", "09:00").await, "held");
    let shown = page(&browser, "/expert/e1?service=s60&day=2030-01-02").await;
    let first_slot = between(shown.text(), "<li class=\"slot\"", "</li>");
    assert!(first_slot.contains("data-state=\"held\"") && !first_slot.contains("<a "));

    let payment = page(&browser, &pay).await;
    let action = between(payment.text(), "action=\"", "\"").to_owned();
    assert!(payment.text().contains("id=\"pay-voucher\""));
    let failed = browser.submit(&action, &[("outcome", "failed")]).await;
    let reservation = leads_to(&failed);
    assert!(
        page(&browser, &reservation)
            .await
            .text()
            .contains("data-state=\"held\"")
    );
    let paid = browser.submit(&action, &[("outcome", "succeeded")]).await;
    assert_eq!(leads_to(&paid), reservation);
    let confirmed = page(&browser, &reservation).await;
    assert!(confirmed.text().contains("data-state=\"confirmed\""));
    assert_eq!(slot(&browser, "e1", "s60", "09:00").await, "booked");

    let late = browser.get(&pay).await;
    assert_eq!(late.status, StatusCode::CONFLICT);
    assert!(is_whole(&late) && late.text().contains("data-code=\"ALREADY_PAID\""));
    let stranger = Browser::new(clinic.address()).get(&reservation).await;
    assert_eq!(stranger.status, StatusCode::NOT_FOUND);
    assert!(is_whole(&stranger) && stranger.text().contains("id=\"back\""));
}

#[tokio::test]
async fn a_form_that_cannot_be_taken_is_a_page_with_the_code_of_the_api() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let (book, mut fields) = form(&browser).await;
    let wrong = browser.submit("/book", &[("expert_id", "e1")]).await;
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
    assert!(is_whole(&wrong), "{wrong:?}");
    fields[3].1 = "1".to_owned();
    let cheap = browser.submit("/book", &filled(&fields)).await;
    assert_eq!(cheap.status, StatusCode::CONFLICT);
    assert!(cheap.text().contains("data-code=\"PRICE_MISMATCH\""));
    for (path, status) in [
        ("/nowhere", 404),
        ("/expert/e9", 404),
        ("/expert/e1?day=tomorrow", 400),
        ("/expert/e1?service=s90", 404),
        ("/pay/pay_none", 404),
        (
            "/book?expert_id=e1&service_id=s60&start=2030-01-05T10:00:00Z",
            422,
        ),
    ] {
        let refused = browser.get(path).await;
        assert_eq!(refused.status.as_u16(), status, "{path}");
        assert!(is_whole(&refused), "{path}: {refused:?}");
    }
    // Each time the form is shown it has a key of its own, and it is kept by nobody.
    let (one, two) = (page(&browser, &book).await, page(&browser, &book).await);
    assert_ne!(hidden(one.text(), "nonce"), hidden(two.text(), "nonce"));
    assert_eq!(one.header("cache-control"), "no-store");
}

#[tokio::test]
async fn people_log_in_see_their_own_end_sessions_and_log_out_by_forms() {
    let clinic = alone();
    let (browser, phone) = (
        Browser::new(clinic.address()),
        Browser::new(clinic.address()),
    );
    assert_eq!(leads_to(&browser.get("/me").await), "/login");
    page(&browser, "/login").await;
    let wrong = [("email", "pat@clinic.test"), ("password", "no")];
    let refused = browser.submit("/login", &wrong).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(is_whole(&refused) && refused.text().contains("INVALID_CREDENTIALS"));
    for one in [&browser, &phone] {
        let right = [("email", "pat@clinic.test"), ("password", "test")];
        assert_eq!(leads_to(&one.submit("/login", &right).await), "/me");
    }
    let me = page(&browser, "/me").await;
    assert!(me.text().contains("data-user=\"pat\""));
    assert_eq!(me.text().matches("class=\"session\"").count(), 2);
    let other = me
        .text()
        .split("class=\"session\"")
        .find(|part| part.contains("data-current=\"false\""))
        .unwrap();
    let action = between(other, "action=\"", "\"");
    assert_eq!(leads_to(&browser.submit(action, &[]).await), "/me");
    assert_eq!(leads_to(&phone.get("/me").await), "/login");
    let forbidden = browser.get("/admin").await;
    assert_eq!(forbidden.status, StatusCode::FORBIDDEN);
    assert!(is_whole(&forbidden));
    assert_eq!(leads_to(&browser.submit("/me/logout", &[]).await), "/");
    assert_eq!(leads_to(&browser.get("/me").await), "/login");
}

#[tokio::test]
async fn an_admin_approves_by_a_form_and_sees_how_the_practice_is() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let root = [("email", "root@clinic.test"), ("password", "test")];
    browser.submit("/login", &root).await;
    let before = page(&browser, "/admin").await;
    assert_eq!(before.text().matches("data-state=\"PENDING\"").count(), 5);
    assert!(before.text().contains("<dt>cache type</dt><dd>memory</dd>"));
    for part in [
        "data-mode=\"memory\" data-breaker=\"closed\"",
        "<dd id=\"limits-hit\">0</dd>",
        "data-check=\"db\"",
        "<dt>Queue of notices</dt><dd class=\"queue\">0 waiting, 0 given up</dd>",
        "data-target=\"hit_rate\" data-met=\"true\"",
        "data-target=\"store_latency_p99_seconds\"",
    ] {
        assert!(before.text().contains(part), "{part}: {}", before.text());
    }
    let action = between(
        before.text(),
        "class=\"approve\" method=\"post\" action=\"",
        "\"",
    );
    assert_eq!(leads_to(&browser.submit(action, &[]).await), "/admin");
    let after = page(&browser, "/admin").await;
    assert_eq!(after.text().matches("data-state=\"PENDING\"").count(), 4);
    let twice = browser.submit(action, &[]).await;
    assert_eq!(twice.status, StatusCode::CONFLICT);
    assert!(twice.text().contains("data-code=\"NOT_PENDING\""));
    let metrics = browser.get("/metrics").await;
    for line in [
        r#"clinic_requests_total{route="/admin",method="GET",status="200"} 2"#,
        "keep_rate_limit_",
        "keep_session_",
        r#"clinic_target{name="hit_rate"} 0.9"#,
        r#"clinic_measured{name="fallback_share"} 0"#,
        r#"clinic_measured{name="error_share"} 0"#,
        r#"clinic_queue_depth{queue="notices"} 0"#,
        "clinic_breaker_open 0",
        r#"clinic_request_seconds"#,
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }
}

#[tokio::test]
async fn what_a_guest_wrote_is_text_on_every_page() {
    let clinic = alone();
    let (guest, ana) = (
        Browser::new(clinic.address()),
        Browser::new(clinic.address()),
    );
    let (_, fields) = form(&guest).await;
    let pay = leads_to(&guest.submit("/book", &filled(&fields)).await);
    let paid = json!({ "outcome": "succeeded" });
    let told = guest
        .post(&pay.replace("/pay/", "/fakepay/"), &[], &paid)
        .await;
    assert_eq!(text(&told.json(), "status"), "succeeded");
    let expert = [("email", "ana@clinic.test"), ("password", "test")];
    ana.submit("/login", &expert).await;
    let me = page(&ana, "/me").await;
    assert!(me.text().contains("&lt;b&gt;Gil&lt;") && !me.text().contains("<b>Gil"));
}
