//! Admins, experts and their figures: roles, approvals, private cached answers, profiles.

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Guest, advance, alone, soon, text, wish};
use crate::support::{Browser, Program, Reply};

pub(super) async fn signed_in(clinic: &Program, user: &str) -> Browser {
    let browser = Browser::new(clinic.address());
    let credentials = json!({ "email": format!("{user}@clinic.test"), "password": "test" });
    let reply = browser.post("/api/login", &[], &credentials).await;
    assert_eq!(reply.json()["user"]["id"], user);
    browser
}

pub(super) fn told(reply: &Reply) -> (u16, String) {
    let code = if reply.status.is_success() {
        String::new()
    } else {
        reply.code()
    };
    (reply.status.as_u16(), code)
}

async fn set_roles(admin: &Browser, user: &str, roles: &[&str]) -> (u16, String) {
    let path = format!("/api/users/{user}/roles");
    told(&admin.post(&path, &[], &json!({ "roles": roles })).await)
}

pub(super) fn refused(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test]
async fn only_admins_change_roles_five_times_an_hour_and_every_session_sees_it_at_once() {
    let clinic = alone();
    let (nobody, pat) = (
        Browser::new(clinic.address()),
        signed_in(&clinic, "pat").await,
    );
    let (root, other) = (
        signed_in(&clinic, "root").await,
        signed_in(&clinic, "adm2").await,
    );
    assert_eq!(
        set_roles(&nobody, "pat", &["admin"]).await,
        refused(401, "UNAUTHENTICATED")
    );
    assert_eq!(
        set_roles(&pat, "pat", &["admin"]).await,
        refused(403, "FORBIDDEN")
    );
    assert_eq!(
        set_roles(&root, "pat", &["king"]).await,
        refused(422, "UNKNOWN_ROLE")
    );
    assert_eq!(
        set_roles(&root, "who", &["admin"]).await,
        refused(404, "NOT_FOUND")
    );
    assert_eq!(
        set_roles(&root, "sup", &["patient"]).await,
        refused(403, "FORBIDDEN")
    );
    assert_eq!(
        set_roles(&root, "adm2", &["patient"]).await,
        refused(200, "")
    );
    let stats = other.get("/api/admin/cache/stats").await;
    assert_eq!(told(&stats), refused(403, "FORBIDDEN"));
    assert_eq!(
        other.get("/api/user/me").await.json()["roles"],
        json!(["patient"])
    );
    // Unknown users and roles have counted as well: this was the fourth call that reached the handler.
    assert_eq!(set_roles(&root, "adm2", &["admin"]).await, refused(200, ""));
    assert_eq!(
        set_roles(&root, "adm2", &["admin"]).await,
        refused(429, "roles")
    );
    let sup = signed_in(&clinic, "sup").await;
    let both = set_roles(&sup, "root", &["superadmin", "admin", "admin"]).await;
    assert_eq!(both, refused(200, ""));
}

#[tokio::test]
async fn nobody_is_told_to_log_in_however_often_and_takes_nothing_from_any_quota() {
    let clinic = alone();
    let nobody = Browser::new(clinic.address());
    for (path, tries) in [
        ("/api/user/me", 40),
        ("/api/user/sessions", 2),
        ("/api/admin/cache/stats", 2),
    ] {
        for _ in 0..tries {
            let reply = nobody.get(path).await;
            assert_eq!(told(&reply), refused(401, "UNAUTHENTICATED"), "{path}");
            assert_eq!(reply.header("ratelimit"), "", "{path}");
        }
    }
    let pat = signed_in(&clinic, "pat").await;
    let first = pat.get("/api/user/me").await;
    assert!(
        first.header("ratelimit").contains("\"user\";r=29;"),
        "{first:?}"
    );
    let role = pat.get("/api/admin/cache/stats").await;
    assert_eq!(told(&role), refused(403, "FORBIDDEN"));
    assert_eq!(role.header("ratelimit"), "");
}

#[tokio::test]
async fn a_transfer_is_approved_by_one_of_all_admins_who_ask_at_once() {
    let clinic = alone();
    let (root, other) = (
        signed_in(&clinic, "root").await,
        signed_in(&clinic, "adm2").await,
    );
    let path = "/api/admin/payment-transfers/approve";
    let body = json!({ "transfer_id": "tr1" });
    let asked = [&root, &other]
        .into_iter()
        .cycle()
        .take(8)
        .map(|admin| admin.post(path, &[], &body));
    let replies = join_all(asked).await;
    let (done, late): (Vec<_>, Vec<_>) = replies
        .iter()
        .partition(|reply| reply.status == StatusCode::OK);
    assert_eq!((done.len(), late.len()), (1, 7));
    assert!(late.iter().all(|reply| reply.code() == "NOT_PENDING"));
    let by = text(&done[0].json(), "approved_by");
    assert!(["root", "adm2"].contains(&by.as_str()));
    let unknown = root.post(path, &[], &json!({ "transfer_id": "tr9" })).await;
    assert_eq!(told(&unknown), refused(404, "NOT_FOUND"));
    // With a key the answer is told again, and the transfer is approved once.
    let body = json!({ "transfer_id": "tr2" });
    let key = [("idempotency-key", "k")];
    let first = root.post(path, &key, &body).await;
    let again = root.post(path, &key, &body).await;
    assert_eq!(first.body, again.body);
    assert_eq!(again.header("idempotency-replayed"), "true");
}

#[tokio::test]
async fn every_admin_route_shares_one_quota_and_force_has_its_own() {
    let clinic = alone();
    let root = signed_in(&clinic, "root").await;
    let force = json!({ "user_id": "pat", "reason": "known in person" });
    for _ in 0..10 {
        let forced = root
            .post("/api/internal/force-verification", &[], &force)
            .await;
        assert_eq!(told(&forced), refused(200, ""));
    }
    let forced = root.post("/api/internal/force-verification", &[], &force);
    assert_eq!(told(&forced.await), refused(429, "force-verification"));
    let verified = root
        .post(
            "/api/experts/verify-specific",
            &[],
            &json!({ "email": "ANA@clinic.test" }),
        )
        .await;
    assert_eq!(verified.json()["expert_id"], "e1");
    for _ in 0..100 {
        let stats = root.get("/api/admin/cache/stats").await;
        assert_eq!(stats.json()["cache_type"], "memory");
    }
    let stats = root.get("/api/admin/cache/stats").await;
    assert_eq!(told(&stats), refused(429, "admin"));
    assert_eq!(
        set_roles(&root, "pat", &["patient"]).await,
        refused(429, "admin")
    );
    let dropped = signed_in(&clinic, "adm2")
        .await
        .post(
            "/api/admin/cache/invalidate",
            &[],
            &json!({ "tags": ["experts", "page"], "prefix": "/api" }),
        )
        .await;
    assert_eq!(dropped.json()["invalidated"], 3);
}

#[tokio::test]
async fn a_dashboard_is_private_kept_refreshed_behind_the_answer_and_dropped_by_a_booking() {
    let clinic = alone();
    let (ana, ben) = (
        signed_in(&clinic, "ana").await,
        signed_in(&clinic, "ben").await,
    );
    let pat = signed_in(&clinic, "pat").await;
    assert_eq!(
        told(&pat.get("/api/dashboard").await),
        refused(403, "FORBIDDEN")
    );
    let loaders = async || {
        let counters = ana.get("/_test/counters").await.json();
        counters["loaders"]["dashboard"].as_u64().unwrap()
    };
    let replies = join_all((0..50).map(|_| ana.get("/api/dashboard"))).await;
    assert!(replies.iter().all(|reply| reply.status == StatusCode::OK));
    assert_eq!(loaders().await, 1);
    let first = ana.get("/api/dashboard").await;
    assert!(first.header("cache-status").contains("hit"), "{first:?}");
    assert_eq!(first.header("cache-control"), "private, no-cache");
    assert!(first.header("vary").eq_ignore_ascii_case("cookie"));
    assert_eq!(first.json()["bookings"], 0);
    let etag = first.header("etag").to_owned();
    let unchanged = ana
        .send(
            Method::GET,
            "/api/dashboard",
            &[("if-none-match", &etag)],
            None,
        )
        .await;
    assert_eq!(
        (unchanged.status, unchanged.body.len()),
        (StatusCode::NOT_MODIFIED, 0)
    );
    advance(&ana, 700).await;
    ana.get("/api/user/me").await;
    advance(&ana, 501).await;
    let old = ana.get("/api/dashboard").await;
    assert_eq!(old.header("age"), "1201");
    let fresh = soon(async {
        loop {
            let fresh = ana.get("/api/dashboard").await;
            if fresh.header("age") != "1201" {
                return fresh;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((fresh.header("age"), loaders().await), ("0", 2));
    ben.get("/api/user/me").await;

    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    guest.settle(&text(&held, "payment_id"), "succeeded").await;
    let booked = ana.get("/api/dashboard").await.json();
    assert_eq!(
        (&booked["bookings"], &booked["revenue_cents"]),
        (&json!(1), &json!(7000))
    );
    let other = signed_in(&clinic, "ben").await.get("/api/dashboard").await;
    assert_eq!(other.json()["bookings"], 0);
    let customers = ana.get("/api/customers").await.json();
    assert_eq!(
        customers["customers"],
        json!([{ "name": "G", "email": "guest@example.org", "bookings": 1 }])
    );
    let calendar = ana.get("/api/appointments").await.json();
    assert_eq!(calendar["appointments"][0]["status"], "confirmed");
    let pat = signed_in(&clinic, "pat").await;
    assert_eq!(
        pat.get("/api/appointments").await.json()["appointments"],
        json!([])
    );
}

#[tokio::test]
async fn a_changed_profile_or_status_shows_in_the_catalogue_at_once() {
    let clinic = alone();
    let ana = signed_in(&clinic, "ana").await;
    let first = ana.get("/api/experts").await.json();
    assert_eq!(
        (&first[0]["name"], &first[0]["status"]),
        (&json!("Ana"), &json!("offline"))
    );
    let put = async |body: Value| {
        let body = Some(body.to_string());
        ana.send(Method::PUT, "/api/user/profile", &[], body).await
    };
    let changed = put(json!({ "name": "Dr Ana", "bio": "Still listens." })).await;
    assert_eq!(
        changed.json(),
        json!({ "name": "Dr Ana", "phone": null, "bio": "Still listens." })
    );
    assert_eq!(ana.get("/api/user/profile").await.json()["name"], "Dr Ana");
    assert_eq!(ana.get("/api/experts").await.json()[0]["name"], "Dr Ana");
    let page = ana.get("/api/experts/e1").await.json();
    assert_eq!(page["bio"], "Still listens.");
    for wrong in [
        json!({ "name": "" }),
        json!({ "name": "x".repeat(101) }),
        json!({ "name": "x", "phone": "1".repeat(31) }),
        json!({ "name": "x", "bio": "b".repeat(2_001) }),
    ] {
        assert_eq!(told(&put(wrong).await), refused(422, "INVALID_VALUE"));
    }
    assert_eq!(
        told(&put(json!({ "phone": "1" })).await),
        refused(400, "VALIDATION")
    );
    let status = ana
        .post(
            "/api/experts/me/status",
            &[],
            &json!({ "status": "online" }),
        )
        .await;
    assert_eq!(status.status, StatusCode::NO_CONTENT);
    assert_eq!(ana.get("/api/experts/e1").await.json()["status"], "online");
    let wrong = ana
        .post("/api/experts/me/status", &[], &json!({ "status": "gone" }))
        .await;
    assert_eq!(told(&wrong), refused(422, "INVALID_VALUE"));
}
