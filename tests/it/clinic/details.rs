//! Single routes in detail: what is given back, what is one's own already, what is offered, what is refused and why.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::pages::{between, filled, form, leads_to};
use super::people::{refused, signed_in, told};
use super::{DAY, Guest, advance, alone, hooked, slot, soon, tell, text, wish};
use crate::support::{Browser, PostgresServer, Program};

async fn sessions_open(browser: &Browser) -> i64 {
    let counters = browser.get("/_test/counters").await.json();
    counters["provider"]["sessions_open"].as_i64().unwrap()
}

#[tokio::test]
async fn a_reservation_is_given_back_by_its_owner_as_often_as_he_likes_and_not_once_it_is_paid() {
    let clinic = alone();
    let (guest, other) = (Guest::new(&clinic, 1).await, Guest::new(&clinic, 2).await);
    let wished = wish("e1", "s60", "10:00");
    let held = guest.pay("a", &wished).await.json();
    let path = format!("/api/reservations/{}", text(&held, "reservation_id"));
    assert_eq!(
        guest.browser.get(&path).await.json(),
        json!({
            "reservation_id": held["reservation_id"], "payment_id": held["payment_id"],
            "expert_id": "e1", "service_id": "s60", "start": format!("{DAY}T10:00:00Z"),
            "end": format!("{DAY}T11:00:00Z"), "price_cents": 7000, "state": "held",
            "hold_expires_at": "2030-01-01T00:10:00Z", "booking_id": null,
        })
    );
    let stranger = other.browser.delete(&path).await;
    assert_eq!(told(&stranger), refused(404, "NOT_FOUND"));
    assert_eq!(slot(&other.browser, "e1", "s60", "10:00").await, "held");
    let mut seen = other.browser.open("/api/events?topic=slots:e1").await;
    seen.until(":").await;
    assert_eq!(sessions_open(&guest.browser).await, 1);
    for _ in 0..2 {
        let released = guest.browser.delete(&path).await;
        assert_eq!(released.status, StatusCode::NO_CONTENT);
        assert_eq!(sessions_open(&guest.browser).await, 0);
        assert_eq!(slot(&other.browser, "e1", "s60", "10:00").await, "free");
        assert_eq!(guest.browser.get(&path).await.json()["state"], "released");
    }
    seen.until("\"free\"").await;
    let late = guest.settle(&text(&held, "payment_id"), "succeeded").await;
    assert_eq!(told(&late), refused(410, "PAYMENT_SESSION_EXPIRED"));
    let page = other
        .browser
        .get(&format!("/pay/{}", text(&held, "payment_id")))
        .await;
    assert_eq!(page.status, StatusCode::GONE);
    let next = other.pay("b", &wished).await;
    assert_eq!(next.status, StatusCode::CREATED);

    let payment = text(&next.json(), "payment_id");
    other.settle(&payment, "succeeded").await;
    let paid = other.browser.delete(next.header("location")).await;
    assert_eq!(told(&paid), refused(409, "ALREADY_PAID"));
    assert_eq!(slot(&guest.browser, "e1", "s60", "10:00").await, "booked");
}

#[tokio::test]
async fn ones_own_hold_is_handed_back_and_what_overlaps_it_is_taken() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let first = guest.pay("a", &wish("e1", "s60", "10:00")).await;
    advance(&guest.browser, 60).await;
    let again = guest.pay("b", &wish("e1", "s60", "10:00")).await;
    assert_eq!((again.status, &again.body), (StatusCode::OK, &first.body));
    assert_eq!(again.header("idempotency-replayed"), "");
    let overlapping = guest.pay("c", &wish("e1", "s30", "10:30")).await;
    assert_eq!(
        (told(&overlapping), overlapping.header("retry-after")),
        (refused(409, "SLOT_TEMPORARILY_RESERVED"), "540")
    );
    assert_eq!(sessions_open(&guest.browser).await, 1);
}

#[tokio::test]
async fn an_answer_is_the_same_for_ten_minutes_and_a_lost_slot_is_lost_for_ten_seconds_only() {
    let clinic = alone();
    let (first, second) = (Guest::new(&clinic, 1).await, Guest::new(&clinic, 2).await);
    let wished = wish("e1", "s60", "10:00");
    let held = first.pay("k", &wished).await;
    let (_, mut fields) = form(&second.browser).await;
    fields[2].1 = format!("{DAY}T10:00:00Z");
    let submitted = async || second.browser.submit("/book", &filled(&fields)).await;
    for _ in 0..2 {
        let lost = second.pay("k", &wished).await;
        assert_eq!(told(&lost), refused(409, "SLOT_TEMPORARILY_RESERVED"));
        let page = submitted().await;
        assert_eq!(page.status, StatusCode::CONFLICT);
        assert!(page.text().contains("again in 10 minutes."), "{page:?}");
    }
    let given_back = first.browser.delete(held.header("location")).await;
    assert_eq!(given_back.status, StatusCode::NO_CONTENT);
    // Remembered, for the last second.
    advance(&first.browser, 9).await;
    let lost = second.pay("k", &wished).await;
    assert_eq!(lost.header("idempotency-replayed"), "true");
    assert_eq!(submitted().await.status, StatusCode::CONFLICT);
    advance(&first.browser, 1).await;
    let booked = leads_to(&submitted().await);
    assert!(booked.starts_with("/pay/"), "{booked}");
    let same = second.pay("k", &wished).await;
    assert_eq!(same.status, StatusCode::OK, "{same:?}");
    assert_eq!(text(&same.json(), "url"), booked);
    advance(&first.browser, 589).await;
    let replay = first.pay("k", &wished).await;
    assert_eq!((replay.status, &replay.body), (held.status, &held.body));
    advance(&first.browser, 1).await;
    let anew = first.pay("k", &wished).await;
    assert_eq!(anew.header("idempotency-replayed"), "");
}

#[tokio::test]
async fn who_carries_both_cookies_owns_what_either_owns_and_a_booking_is_seen_by_its_expert() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("a", &wish("e1", "s60", "10:00")).await;
    let payment = text(&held.json(), "payment_id");
    let credentials = json!({ "email": "pat@clinic.test", "password": "test" });
    guest.browser.post("/api/login", &[], &credentials).await;
    guest.settle(&payment, "succeeded").await;
    let mine = guest.browser.get(held.header("location")).await.json();
    let booking = format!("/api/bookings/{}", text(&mine, "booking_id"));
    let own = guest.browser.get(&booking).await;
    assert_eq!(
        own.json(),
        json!({
            "booking_id": mine["booking_id"], "reservation_id": mine["reservation_id"],
            "expert_id": "e1", "service_id": "s60", "start": format!("{DAY}T10:00:00Z"),
            "end": format!("{DAY}T11:00:00Z"), "price_cents": 7000, "status": "confirmed",
            "guest": { "name": "G", "email": "guest@example.org" },
        })
    );
    let (ana, ben) = (
        signed_in(&clinic, "ana").await,
        signed_in(&clinic, "ben").await,
    );
    assert_eq!(ana.get(&booking).await.body, own.body);
    for stranger in [&ben, &Guest::new(&clinic, 2).await.browser] {
        let nothing = stranger.get(&booking).await;
        assert_eq!(told(&nothing), refused(404, "NOT_FOUND"));
    }
    let nobody = Browser::new(clinic.address()).get(&booking).await;
    assert_eq!(told(&nobody), refused(401, "UNAUTHENTICATED"));
    // What is booked from now on is the user's, wherever he looks from.
    let next = guest.pay("b", &wish("e2", "s30", "14:00")).await;
    guest
        .settle(&text(&next.json(), "payment_id"), "succeeded")
        .await;
    let elsewhere = signed_in(&clinic, "pat").await;
    let calendar = elsewhere.get("/api/appointments").await.json();
    let calendar = calendar["appointments"].as_array().unwrap();
    assert_eq!(calendar.len(), 1);
    assert_eq!(calendar[0]["start"], format!("{DAY}T14:00:00Z"));
    let page = elsewhere.get("/me").await;
    assert!(page.text().contains("Half an hour with Ben"), "{page:?}");
    let page = ana.get("/me").await;
    assert!(page.text().contains("An hour, G<"), "{page:?}");
}

#[tokio::test]
async fn events_of_nothing_we_know_are_taken_and_signatures_are_good_for_five_minutes_either_way() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let payment = text(&held, "payment_id");
    let received = json!({ "received": true, "duplicate": false });
    for (id, kind, payment) in [("1", "succeeded", "pay_none"), ("2", "dancing", &payment)] {
        let event = tell(&guest.browser, id, kind, payment, 0).await;
        assert_eq!(
            (event.status, event.json()),
            (StatusCode::OK, received.clone())
        );
    }
    assert_eq!(slot(&guest.browser, "e1", "s60", "10:00").await, "held");
    advance(&guest.browser, 300).await;
    for (second, status) in [(601, 400), (600, 200), (0, 200)] {
        let id = format!("t{second}");
        let event = tell(&guest.browser, &id, "dancing", &payment, second).await;
        assert_eq!(event.status, status, "{second}");
    }
    advance(&guest.browser, 1).await;
    let old = tell(&guest.browser, "old", "dancing", &payment, 0).await;
    assert_eq!(told(&old), refused(400, "SIGNATURE_INVALID"));
    // For seven days a repetition is one.
    let days = 7 * 86_400;
    advance(&guest.browser, days - 302).await;
    let again = tell(&guest.browser, "1", "succeeded", "pay_none", days - 1).await;
    assert_eq!(again.json()["duplicate"], true);
    advance(&guest.browser, 1).await;
    let anew = tell(&guest.browser, "1", "succeeded", "pay_none", days).await;
    assert_eq!(anew.json(), received);
}

/// The starts that are offered by the letter of the contract, for a day that begins on the hour given.
fn grid(minutes: u32) -> Vec<String> {
    let mut starts = Vec::new();
    let mut minute = 9 * 60;
    while minute + minutes <= 17 * 60 {
        starts.push(format!("{:02}:{:02}:00Z", minute / 60, minute % 60));
        minute += 30;
    }
    starts
}

#[tokio::test]
async fn what_is_offered_is_every_half_hour_of_the_working_days_of_sixty_days() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let starts = async |service: &str, day: &str| {
        let path = format!("/api/experts/e1/slots?service={service}&day={day}");
        let slots = guest.browser.get(&path).await.json();
        let slots = slots["slots"].as_array().unwrap();
        let starts = slots.iter().map(|slot| text(slot, "start"));
        starts.collect::<Vec<String>>()
    };
    assert_eq!((grid(30).len(), grid(60).len()), (16, 15));
    // Thursday, 10:00.
    advance(&guest.browser, 58 * 3_600).await;
    let days = (3..=31).map(|day| format!("2030-01-{day:02}"));
    let days = days.chain((1..=28).map(|day| format!("2030-02-{day:02}")));
    let days = days.chain((1..=5).map(|day| format!("2030-03-{day:02}")));
    for (number, day) in days.enumerate() {
        let is_weekend = matches!((number + 3) % 7, 5 | 6);
        for (service, minutes) in [("s30", 30), ("s60", 60)] {
            let mut wanted = grid(minutes);
            match day.as_str() {
                // Later than now, …
                "2030-01-03" => wanted.retain(|start| start.as_str() > "10:00:00Z"),
                // … and no later than sixty days from now.
                "2030-03-04" => wanted.retain(|start| start.as_str() <= "10:00:00Z"),
                "2030-03-05" => wanted.clear(),
                _ if is_weekend => wanted.clear(),
                _ => {}
            }
            let wanted: Vec<String> = wanted
                .iter()
                .map(|start| format!("{day}T{start}"))
                .collect();
            assert_eq!(starts(service, &day).await, wanted, "{day} {service}");
        }
    }
    for (number, (start, status)) in [
        ("2030-01-03T10:00:00Z", 422),
        ("2030-03-04T10:30:00Z", 422),
        ("2030-01-05T10:00:00Z", 422),
        ("2030-01-04T10:15:00Z", 422),
        ("2030-01-04T08:30:00Z", 422),
        ("2030-03-04T10:00:00Z", 201),
        ("2030-01-03T10:30:00Z", 201),
    ]
    .into_iter()
    .enumerate()
    {
        let guest = Guest::new(&clinic, number as u8 + 10).await;
        let mut wished = wish("e1", "s60", "10:00");
        wished["start"] = json!(start);
        let reply = guest.pay("k", &wished).await;
        assert_eq!(reply.status, status, "{start}: {reply:?}");
    }
    for query in ["", "?day=", "?day=2030-02-30", "?service=s60"] {
        let path = format!("/api/experts/e1/slots{query}");
        let wrong = guest.browser.get(&path).await;
        assert_eq!(told(&wrong), refused(400, "VALIDATION"), "{query}");
    }
    for path in [
        "/api/experts/e9/slots?day=2030-01-04",
        "/api/experts/e1/slots?day=2030-01-04&service=s90",
    ] {
        let nothing = guest.browser.get(path).await;
        assert_eq!(told(&nothing), refused(404, "NOT_FOUND"), "{path}");
    }
}

#[tokio::test]
async fn what_is_kept_is_kept_as_long_as_promised() {
    let clinic = alone();
    let (nobody, ana) = (
        Browser::new(clinic.address()),
        signed_in(&clinic, "ana").await,
    );
    let guest = Guest::new(&clinic, 1).await;
    let told = async |browser: &Browser, path: &str| {
        let reply = browser.get(path).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}");
        (
            reply.header("cache-status").to_owned(),
            reply.header("cache-control").to_owned(),
        )
    };
    let public = "no-cache".to_owned();
    let day = format!("/api/experts/e1/slots?service=s60&day={DAY}");
    let page = format!("/expert/e1?service=s60&day={DAY}");
    for (path, seconds) in [
        ("/api/experts", 600),
        ("/api/experts/e1", 600),
        (&day, 15),
        ("/", 60),
        (&page, 60),
    ] {
        let stored = format!("clinic;fwd=uri-miss;stored;ttl={seconds}");
        assert_eq!(told(&nobody, path).await, (stored, public.clone()));
        let hit = format!("clinic;hit;ttl={seconds}");
        assert_eq!(told(&nobody, path).await, (hit, public.clone()));
    }
    let private = "private, no-cache".to_owned();
    for (path, seconds) in [("/api/dashboard", 1_800), ("/api/customers", 900)] {
        let stored = format!("clinic;fwd=uri-miss;stored;ttl={seconds}");
        assert_eq!(told(&ana, path).await, (stored, private.clone()));
    }
    // Never past the end of a hold that they show.
    guest.pay("k", &wish("e1", "s60", "10:00")).await;
    advance(&guest.browser, 590).await;
    for path in [&day, &page] {
        let (status, _) = told(&nobody, path).await;
        assert_eq!(status, "clinic;fwd=uri-miss;stored;ttl=10", "{path}");
    }
    advance(&guest.browser, 10).await;
    assert_eq!(slot(&nobody, "e1", "s60", "10:00").await, "free");
    let shown = nobody.get(&page).await;
    let slot = between(shown.text(), &format!("data-start=\"{DAY}T10:00"), "</li>");
    assert!(slot.contains("data-state=\"free\""), "{slot}");
    // A page may be half a minute old beyond its minute, and is made anew behind that.
    advance(&guest.browser, 89).await;
    assert_eq!(nobody.get("/").await.header("age"), "");
    advance(&guest.browser, 89).await;
    assert_eq!(nobody.get("/").await.header("age"), "89");
    advance(&guest.browser, 90).await;
    let (late, _) = told(&nobody, "/").await;
    assert!(late.starts_with("clinic;fwd="), "{late}");
}

#[tokio::test]
async fn what_admins_and_experts_send_is_refused_by_the_code_of_its_route() {
    let clinic = alone();
    let (root, ana) = (
        signed_in(&clinic, "root").await,
        signed_in(&clinic, "ana").await,
    );
    let notice = |user: &str| json!({ "user_id": user, "type": "t", "title": "t", "message": "m", "priority": "low" });
    let force = |user: &str, reason: &str| json!({ "user_id": user, "reason": reason });
    let long = "x".repeat(501);
    for (path, body, status, code) in [
        (
            "/api/internal/force-verification",
            force("who", "seen"),
            404,
            "NOT_FOUND",
        ),
        (
            "/api/internal/force-verification",
            force("pat", ""),
            422,
            "INVALID_VALUE",
        ),
        (
            "/api/internal/force-verification",
            force("pat", &long),
            422,
            "INVALID_VALUE",
        ),
        (
            "/api/experts/verify-specific",
            json!({ "email": "no@clinic.test" }),
            404,
            "NOT_FOUND",
        ),
        (
            "/api/experts/verify-specific",
            json!({ "email": "pat@clinic.test" }),
            404,
            "NOT_FOUND",
        ),
        ("/api/experts/verify-specific", json!({}), 400, "VALIDATION"),
        (
            "/api/admin/notifications",
            notice("who"),
            422,
            "INVALID_VALUE",
        ),
        (
            "/api/users/pat/roles",
            json!({ "roles": "patient" }),
            400,
            "VALIDATION",
        ),
    ] {
        let reply = root.post(path, &[], &body).await;
        assert_eq!(told(&reply), refused(status, code), "{path}: {body}");
    }
    // An expert is no admin, an admin no expert.
    for path in [
        "/api/internal/force-verification",
        "/api/experts/verify-specific",
    ] {
        let reply = ana.post(path, &[], &json!({})).await;
        assert_eq!(told(&reply), refused(403, "FORBIDDEN"), "{path}");
    }
    for path in ["/api/dashboard", "/api/customers"] {
        assert_eq!(told(&root.get(path).await), refused(403, "FORBIDDEN"));
    }
    let status = json!({ "status": "online" });
    let online = root.post("/api/experts/me/status", &[], &status).await;
    assert_eq!(told(&online), refused(403, "FORBIDDEN"));
    let nobody = Browser::new(clinic.address());
    for (method, path) in [
        (Method::GET, "/api/appointments"),
        (Method::GET, "/api/notifications"),
        (Method::GET, "/api/dashboard"),
        (Method::GET, "/api/customers"),
        (Method::POST, "/api/experts/me/status"),
        (Method::POST, "/api/logout"),
        (Method::GET, "/api/forms/intake/progress"),
        (Method::POST, "/api/admin/notifications"),
        (Method::POST, "/api/admin/payment-transfers/approve"),
        (Method::POST, "/api/internal/force-verification"),
    ] {
        let reply = nobody
            .send(method, path, &[], Some(status.to_string()))
            .await;
        assert_eq!(told(&reply), refused(401, "UNAUTHENTICATED"), "{path}");
        assert_eq!(reply.header("www-authenticate"), "Session", "{path}");
    }
}

#[tokio::test]
async fn a_notice_that_fails_five_times_is_a_dead_letter_after_waits_that_double() {
    let clinic = alone();
    let (root, pat) = (
        signed_in(&clinic, "root").await,
        signed_in(&clinic, "pat").await,
    );
    let notice =
        json!({ "user_id": "pat", "type": "t", "title": "t", "message": "m", "priority": "low" });
    let fail = json!({ "fail": { "notification": 100 } });
    root.post("/_test/fault", &[], &fail).await;
    root.post("/api/admin/notifications", &[], &notice).await;
    let work = async || root.post("/_test/work", &[], &Value::Null).await.json();
    for wait in [10, 20, 40, 80] {
        assert_eq!(
            work().await,
            json!({ "delivered": 0, "retried": 1, "dead": 0 })
        );
        advance(&root, wait).await;
    }
    assert_eq!(
        work().await,
        json!({ "delivered": 0, "retried": 0, "dead": 1 })
    );
    advance(&root, 600).await;
    assert_eq!(
        work().await,
        json!({ "delivered": 0, "retried": 0, "dead": 0 })
    );
    let counters = root.get("/_test/counters").await.json();
    assert_eq!(
        (
            &counters["notices"]["dead"],
            &counters["provider"]["notification_send"]
        ),
        (&json!(1), &json!(0))
    );
    let list = pat.get("/api/notifications").await.json();
    assert_eq!(list, json!({ "notifications": [], "pending": 0 }));
}

#[tokio::test]
async fn without_the_store_nothing_is_let_in_that_needs_it_and_a_logout_is_made_up_for() {
    let clinic = alone();
    let (guest, root) = (
        Guest::new(&clinic, 1).await,
        signed_in(&clinic, "root").await,
    );
    let [leaving, by_form, pat, ended_by_pat] = [(); 4].map(|()| Browser::new(clinic.address()));
    let [ana, ended_by_ana, stranger] = [(); 3].map(|()| Browser::new(clinic.address()));
    for (number, (browser, user)) in [
        (&leaving, "sup"),
        (&by_form, "sup"),
        (&pat, "pat"),
        (&ended_by_pat, "pat"),
        (&ana, "ana"),
        (&ended_by_ana, "ana"),
        (&stranger, "ben"),
    ]
    .into_iter()
    .enumerate()
    {
        let address = format!("198.51.100.{number}");
        let credentials = json!({ "email": format!("{user}@clinic.test"), "password": "test" });
        let from = [("x-forwarded-for", address.as_str())];
        browser.post("/api/login", &from, &credentials).await;
    }
    let tokens = [&leaving, &by_form].map(|browser| browser.cookie("id").unwrap());
    let others = pat.get("/api/user/sessions").await.json();
    let others = others.as_array().unwrap().iter();
    let other = others.filter(|session| session["current"] == false);
    let other: Vec<String> = other.map(|session| text(session, "id")).collect();
    assert_eq!(other.len(), 1);
    let ending = format!("/api/user/sessions/{}", other[0]);
    let anas = ana.get("/api/user/sessions").await.json();
    let own = anas
        .as_array()
        .unwrap()
        .iter()
        .find(|session| session["current"] == true);
    let own_of_ana = format!("/api/user/sessions/{}", text(own.unwrap(), "id"));
    let down = json!({ "store": "down" });
    root.post("/_test/fault", &[], &down).await;
    let away = refused(503, "STORE_UNAVAILABLE");
    let force = json!({ "user_id": "pat", "reason": "seen" });
    for (path, body) in [
        ("/api/internal/force-verification", force),
        (
            "/api/admin/payment-transfers/approve",
            json!({ "transfer_id": "tr1" }),
        ),
    ] {
        assert_eq!(told(&root.post(path, &[], &body).await), away, "{path}");
    }
    assert_eq!(told(&guest.browser.get("/oauth/start").await), away);
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(told(&held), away);
    let event = tell(&guest.browser, "1", "succeeded", "pay_none", 0).await;
    assert_eq!(told(&event), away);
    let slots = format!("/api/experts/e1/slots?service=s60&day={DAY}");
    let slots = guest.browser.get(&slots).await;
    assert_eq!(slots.status, StatusCode::OK);
    let cached = slots.header("cache-status");
    assert!(cached.starts_with("clinic;fwd=bypass"), "{cached}");
    // Nobody knows who asks: no promise is given, and all of it is kept.
    let left = leaving.post("/api/logout", &[], &json!({})).await;
    assert_eq!((told(&left), leaving.cookie("id")), (away.clone(), None));
    let left = by_form.submit("/me/logout", &[]).await;
    assert_eq!((left.status.as_u16(), by_form.cookie("id")), (503, None));
    assert_eq!(told(&pat.delete(&ending).await), away);
    assert_eq!(told(&stranger.delete(&own_of_ana).await), away);
    assert_eq!(told(&ana.delete("/api/user/sessions").await), away);
    root.post("/_test/fault", &[], &json!({ "store": "up" }))
        .await;
    soon(async {
        while pat.get("/api/notifications").await.status != StatusCode::OK {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    leaving.plant("id", &tokens[0]);
    by_form.plant("id", &tokens[1]);
    for (ended, who) in [
        (&leaving, "who left"),
        (&by_form, "who left by a form"),
        (&ended_by_pat, "whom pat ended"),
        (&ended_by_ana, "whom ana ended with all others"),
    ] {
        let over = ended.get("/api/notifications").await;
        assert_eq!(told(&over), refused(401, "UNAUTHENTICATED"), "{who}");
    }
    for (staying, who) in [(&pat, "pat"), (&ana, "ana"), (&stranger, "stranger")] {
        let there = staying.get("/api/notifications").await;
        assert_eq!(there.status, StatusCode::OK, "{who}");
    }
    // Nothing came of all that.
    assert_eq!(slot(&guest.browser, "e1", "s60", "10:00").await, "free");
    let approve = json!({ "transfer_id": "tr1" });
    let approved = root.post("/api/admin/payment-transfers/approve", &[], &approve);
    assert_eq!(approved.await.status, StatusCode::OK);
    let counters = root.get("/_test/counters").await.json();
    assert_eq!(counters["handlers"]["create_payment_intent"], 0);
}

#[tokio::test]
async fn without_the_database_what_needs_it_waits_and_health_says_down() {
    let mut postgres = PostgresServer::start_durable().await;
    let db = postgres.database().await;
    let clinic = Program::start("clinic", &hooked(&["--db", &db]));
    let guest = Guest::new(&clinic, 1).await;
    let pat = signed_in(&clinic, "pat").await;
    postgres.kill();
    let wished = wish("e1", "s60", "10:00");
    for reply in [
        guest.browser.get("/api/experts").await,
        guest.pay("k", &wished).await,
        pat.get("/api/appointments").await,
    ] {
        assert_eq!(told(&reply), refused(503, "STORE_UNAVAILABLE"));
        let wait: u32 = reply.header("retry-after").parse().unwrap();
        assert!((1..=30).contains(&wait), "{wait}");
    }
    // What was found a moment ago may be told again.
    let reads = async |status: u16, word: &str| {
        loop {
            let health = guest.browser.get("/api/health").await;
            if (health.status.as_u16(), health.json()["status"].as_str()) == (status, Some(word)) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    soon(reads(503, "down")).await;
    let part = guest.browser.get("/api/health/db").await;
    assert_eq!(
        (part.status.as_u16(), part.header("x-service-status")),
        (503, "down")
    );
    postgres.restart();
    let held = async {
        loop {
            let held = guest.pay("k", &wished).await;
            if held.status != StatusCode::SERVICE_UNAVAILABLE {
                return held;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let held = soon(held).await;
    assert_eq!(held.status, StatusCode::CREATED, "{held:?}");
}

#[tokio::test]
async fn requests_have_ids_of_their_own_and_without_hooks_there_are_none() {
    let clinic = Program::start("clinic", &["--listen", "127.0.0.1:0"]);
    let browser = Browser::new(clinic.address());
    let mut ids = std::collections::BTreeSet::new();
    for path in [
        "/",
        "/api/experts",
        "/api/experts",
        "/nowhere",
        "/assets/style.css",
    ] {
        let reply = browser
            .send(Method::GET, path, &[("x-request-id", "mine")], None)
            .await;
        assert!(
            ids.insert(reply.header("x-request-id").to_owned()),
            "{path}"
        );
    }
    assert!(!ids.contains("mine") && !ids.contains(""), "{ids:?}");
    for (method, path) in [
        (Method::GET, "/_test/clock"),
        (Method::POST, "/_test/clock"),
        (Method::POST, "/_test/reset"),
        (Method::POST, "/_test/fault"),
        (Method::GET, "/_test/counters"),
        (Method::GET, "/_test/mail"),
        (Method::POST, "/_test/work"),
    ] {
        let reply = browser.send(method, path, &[], Some("{}".to_owned())).await;
        assert_eq!(told(&reply), refused(404, "NOT_FOUND"), "{path}");
    }
    // A route is counted by its pattern, and what anybody may make up by none.
    browser.get("/expert/e1").await;
    let made_up = Method::from_bytes(b"DANCE").unwrap();
    browser.send(made_up, "/expert/e2", &[], None).await;
    let metrics = browser.get("/metrics").await;
    for line in [
        r#"clinic_requests_total{route="/expert/{id}",method="GET",status="200"} 1"#,
        r#"clinic_requests_total{route="/expert/{id}",method="other",status="405"} 1"#,
        r#"clinic_requests_total{route="none",method="GET",status="404"}"#,
    ] {
        assert!(metrics.text().contains(line), "{line}: {}", metrics.text());
    }
    for raw in ["/expert/e1", "nowhere", "DANCE", "_test"] {
        assert!(!metrics.text().contains(raw), "{raw}");
    }
    let cron = "/internal/cron/cleanup-reservations";
    for bearer in ["Bearer cron_test", "Bearer ", "cron_test", "bearer", ""] {
        let headers = [("authorization", bearer)];
        let reply = browser.send(Method::POST, cron, &headers, None).await;
        assert_eq!(told(&reply), refused(401, "UNAUTHENTICATED"));
    }
}
