//! Forms with wrong input: whatever was sent, what comes back is a page with a code and a way back, and nothing was done.

use http::{Method, StatusCode};

use super::pages::{filled, form, is_whole, leads_to};
use super::{alone, slot};
use crate::support::{Browser, Reply};

#[track_caller]
fn refuses(reply: &Reply, status: u16, code: &str) {
    assert_eq!(reply.status.as_u16(), status, "{}", reply.text());
    assert!(is_whole(reply), "{reply:?}");
    let problem = format!("id=\"problem\" data-code=\"{code}\"");
    assert!(
        reply.text().contains(&problem),
        "{problem}: {}",
        reply.text()
    );
    assert!(reply.text().contains("id=\"back\""), "{}", reply.text());
}

#[tokio::test]
async fn a_booking_form_with_wrong_input_is_a_page_and_holds_nothing() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let (_, fields) = form(&browser).await;
    let right = filled(&fields);
    let with = |name: &str, value: Option<&str>| {
        let mut fields: Vec<(String, String)> = right
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        fields.retain(|(own, _)| own != name);
        fields.extend(value.map(|value| (name.to_owned(), value.to_owned())));
        fields
    };
    let long = "x".repeat(70_000);
    for (number, (name, value, status, code)) in [
        ("expert_id", None, 400, "VALIDATION"),
        ("guest_name", None, 400, "VALIDATION"),
        ("guest_email", None, 400, "VALIDATION"),
        ("start", None, 400, "VALIDATION"),
        ("start", Some("soon"), 400, "VALIDATION"),
        ("price_cents", Some("cheap"), 400, "VALIDATION"),
        ("price_cents", Some(""), 400, "VALIDATION"),
        ("nonce", None, 400, "VALIDATION"),
        ("expert_id", Some("e9"), 404, "NOT_FOUND"),
        ("service_id", Some("s90"), 404, "NOT_FOUND"),
        (
            "start",
            Some("2030-01-02T10:10:00Z"),
            422,
            "SLOT_NOT_OFFERED",
        ),
        (
            "start",
            Some("2030-01-05T10:00:00Z"),
            422,
            "SLOT_NOT_OFFERED",
        ),
        ("price_cents", Some("1"), 409, "PRICE_MISMATCH"),
        ("guest_name", Some(&long), 413, "BODY_TOO_LARGE"),
    ]
    .into_iter()
    .enumerate()
    {
        // An address and a guest of its own: what is refused here is the form.
        let stranger = Browser::new(clinic.address());
        let fields = with(name, value);
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(&fields);
        let address = format!("203.0.113.{number}");
        let headers = [
            ("content-type", "application/x-www-form-urlencoded"),
            ("x-forwarded-for", address.as_str()),
        ];
        let reply = stranger
            .send(Method::POST, "/book", &headers, Some(body.finish()))
            .await;
        refuses(&reply, status, code);
    }
    for (kind, body) in [
        ("application/json", "{}"),
        ("text/plain", "expert_id=e1"),
        ("application/x-www-form-urlencoded", "%FF=%FE&start=%"),
        ("application/x-www-form-urlencoded", ""),
    ] {
        let headers = [("content-type", kind)];
        let reply = browser
            .send(Method::POST, "/book", &headers, Some(body.to_owned()))
            .await;
        refuses(&reply, 400, "VALIDATION");
    }
    for path in [
        "/book",
        "/book?expert_id=e1",
        "/book?expert_id=e1&service_id=s60&start=soon",
    ] {
        refuses(&browser.get(path).await, 400, "VALIDATION");
    }
    assert_eq!(slot(&browser, "e1", "s60", "09:00").await, "free");
    let counters = browser.get("/_test/counters").await.json();
    assert_eq!(counters["provider"]["session_create"], 0);
    // The page that was shown first is still good.
    assert!(leads_to(&browser.submit("/book", &right).await).starts_with("/pay/"));
}

#[tokio::test]
async fn forms_of_payment_login_and_people_with_wrong_input_are_pages_too() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let (_, fields) = form(&browser).await;
    let pay = leads_to(&browser.submit("/book", &filled(&fields)).await);
    let action = pay.replace("/pay/", "/fakepay/");
    for fields in [
        &[("outcome", "maybe")][..],
        &[("outcome", "")],
        &[("money", "all")],
        &[],
    ] {
        refuses(&browser.submit(&action, fields).await, 400, "VALIDATION");
    }
    let unknown = [("outcome", "succeeded")];
    refuses(
        &browser.submit("/fakepay/pay_none", &unknown).await,
        404,
        "NOT_FOUND",
    );
    assert_eq!(slot(&browser, "e1", "s60", "09:00").await, "held");

    for fields in [
        &[("email", "pat@clinic.test")][..],
        &[("password", "test")],
        &[],
    ] {
        refuses(&browser.submit("/login", fields).await, 400, "VALIDATION");
    }
    for path in [
        "/me/logout",
        "/me/sessions/x/revoke",
        "/admin/transfers/tr1/approve",
    ] {
        refuses(&browser.submit(path, &[]).await, 401, "UNAUTHENTICATED");
    }
    let pat = [("email", "pat@clinic.test"), ("password", "test")];
    assert_eq!(leads_to(&browser.submit("/login", &pat).await), "/me");
    refuses(
        &browser.submit("/me/sessions/nobodys/revoke", &[]).await,
        404,
        "NOT_FOUND",
    );
    refuses(
        &browser.submit("/admin/transfers/tr1/approve", &[]).await,
        403,
        "FORBIDDEN",
    );
    let root = Browser::new(clinic.address());
    let credentials = [("email", "root@clinic.test"), ("password", "test")];
    assert_eq!(leads_to(&root.submit("/login", &credentials).await), "/me");
    refuses(
        &root.submit("/admin/transfers/tr9/approve", &[]).await,
        404,
        "NOT_FOUND",
    );
    assert_eq!(root.get("/book").await.status, StatusCode::BAD_REQUEST);
    refuses(&root.submit("/nowhere", &[]).await, 404, "NOT_FOUND");
    refuses(&root.submit("/", &[]).await, 405, "METHOD_NOT_ALLOWED");
}
