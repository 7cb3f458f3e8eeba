//! The pages in a real browser: one visitor books and pays on a phone, another sees it happen on a desktop.

use std::path::Path;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::json;

use super::{DAY, alone};
use crate::support::Browser;
use crate::support::chromium::{Chromium, Window};

/// What must be so on every page, at any width: one heading, landmarks, labels, and nothing beyond the edge.
const IS_SOUND: &str = "document.readyState === 'complete' \
    && document.querySelectorAll('h1').length === 1 && document.querySelectorAll('main').length === 1 \
    && ['home', 'me', 'admin'].every(name => document.querySelector('nav#nav a#nav-' + name)) \
    && [...document.querySelectorAll('input:not([type=hidden]), select')].every(field => field.labels.length > 0) \
    && document.documentElement.scrollWidth <= window.innerWidth";

async fn look(chromium: &mut Chromium, window: &Window, name: &str) {
    chromium.until(window, IS_SOUND).await;
    // To be looked at by people: CLINIC_PICTURES=folder, then base64 -d.
    if let Ok(folder) = std::env::var("CLINIC_PICTURES") {
        let file = Path::new(&folder).join(format!("{name}.png.base64"));
        chromium.picture(window, &file).await;
    }
}

#[tokio::test]
async fn a_booking_on_a_phone_is_seen_on_a_desktop_without_a_reload() {
    let clinic = alone();
    let site = format!("http://{}", clinic.address());
    let mut chromium = Chromium::start();
    let (phone, desktop) = (
        chromium.window(390, 844).await,
        chromium.window(1280, 900).await,
    );
    let times = format!("{site}/expert/e1?service=s60&day={DAY}");
    for (window, name) in [(&phone, "phone"), (&desktop, "desktop")] {
        chromium.open(window, &site).await;
        look(&mut chromium, window, &format!("home-{name}")).await;
        chromium.open(window, &times).await;
        chromium
            .until(window, "document.querySelectorAll('li.slot').length === 15")
            .await;
        look(&mut chromium, window, &format!("expert-{name}")).await;
    }
    // A page that is loaded again would have forgotten this.
    chromium.eval(&desktop, "window.untouched = true").await;
    let slot = format!("li.slot[data-start=\"{DAY}T10:00:00Z\"]");
    let seen = |state: &str| {
        format!(
            "window.untouched === true && document.querySelector({slot:?}).dataset.state === {state:?} \
             && document.querySelector({slot:?}).innerText.includes({state:?})"
        )
    };
    chromium.click(&phone, &format!("{slot} a.book")).await;
    chromium
        .until(&phone, "document.querySelector('#book-form') !== null")
        .await;
    look(&mut chromium, &phone, "book-phone").await;
    for (field, value) in [
        ("guest-name", "Grace"),
        ("guest-email", "grace@example.org"),
    ] {
        let fill = format!("document.getElementById({field:?}).value = {value:?}");
        chromium.eval(&phone, &fill).await;
    }
    chromium.click(&phone, "#book-submit").await;
    chromium
        .until(&phone, "document.querySelector('#pay-form') !== null")
        .await;
    let (told, mut slowest) = (Instant::now(), Duration::ZERO);
    chromium.until(&desktop, &seen("held")).await;
    slowest = slowest.max(told.elapsed());
    let link = format!(
        "document.querySelector({:?}) === null",
        format!("{slot} a.book")
    );
    assert_eq!(chromium.eval(&desktop, &link).await, json!(true));
    look(&mut chromium, &phone, "pay-phone").await;
    look(&mut chromium, &desktop, "held-desktop").await;
    chromium.click(&phone, "#pay-succeeded").await;
    let confirmed = "document.querySelector('#confirmation')?.dataset.state === 'confirmed'";
    chromium.until(&phone, confirmed).await;
    let told = Instant::now();
    chromium.until(&desktop, &seen("booked")).await;
    slowest = slowest.max(told.elapsed());
    look(&mut chromium, &phone, "confirmed-phone").await;
    look(&mut chromium, &desktop, "booked-desktop").await;
    // A second on an idle machine; a busy one has ten.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
}

#[tokio::test]
async fn a_confirmation_that_is_open_changes_when_the_voucher_is_checked() {
    let clinic = alone();
    let site = format!("http://{}", clinic.address());
    let mut chromium = Chromium::start();
    let window = chromium.window(390, 844).await;
    chromium
        .open(
            &window,
            &format!("{site}/book?expert_id=e1&service_id=s60&start={DAY}T10:00:00Z"),
        )
        .await;
    chromium
        .until(&window, "document.querySelector('#book-form') !== null")
        .await;
    for (field, value) in [
        ("guest-name", "Grace"),
        ("guest-email", "grace@example.org"),
    ] {
        let fill = format!("document.getElementById({field:?}).value = {value:?}");
        chromium.eval(&window, &fill).await;
    }
    chromium.click(&window, "#book-submit").await;
    chromium
        .until(&window, "document.querySelector('#pay-form') !== null")
        .await;
    let pay = chromium.eval(&window, "location.pathname").await;
    let pay = pay.as_str().unwrap().replace("/pay/", "/fakepay/");
    chromium.click(&window, "#pay-voucher").await;
    let reads = |state: &str| {
        format!("document.querySelector('#confirmation')?.dataset.state === {state:?}")
    };
    chromium.until(&window, &reads("processing")).await;
    chromium.eval(&window, "window.untouched = true").await;
    let provider = Browser::new(clinic.address());
    let checked = json!({ "outcome": "succeeded" });
    assert_eq!(
        provider.post(&pay, &[], &checked).await.status,
        StatusCode::OK
    );
    chromium
        .until(
            &window,
            &format!("window.untouched && {}", reads("confirmed")),
        )
        .await;
}
