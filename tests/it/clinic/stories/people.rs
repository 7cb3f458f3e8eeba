//! Stories 6 to 9: identities, sessions, admins and the dashboard.

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::json;

use super::super::{text, wish};
use super::{SetUp, is, login, statuses, told};

pub(super) async fn identity(set: &SetUp) {
    let path = "/api/identity/verification";
    let nobody = crate::support::Browser::new(set.at(1).address());
    let refused = nobody.post(path, &[], &json!({})).await;
    assert_eq!(told(&refused), is(401, "UNAUTHENTICATED"));
    let mut asked = Vec::new();
    // All from one address; three of each, so the fourth has no room there but for one.
    for (number, user) in ["pat", "ana", "ben"].into_iter().enumerate() {
        let browser = login(set, user, number as u8).await;
        for _ in 0..3 {
            let reply = browser.post(path, &[], &json!({})).await;
            asked.push(reply.status.as_u16());
        }
        let refused = browser.post(path, &[], &json!({})).await;
        assert_eq!(told(&refused), is(429, "user"));
    }
    assert_eq!(asked, [201, 200, 200, 201, 200, 200, 201, 200, 200]);
    let root = login(set, "root", 4).await;
    assert_eq!(root.post(path, &[], &json!({})).await.status, 201);
    let eleventh = root.post(path, &[], &json!({})).await;
    assert_eq!(told(&eleventh), is(429, "ip"));
    set.advance(3_600).await;
    let root = login(set, "root", 5).await;
    assert_eq!(root.post(path, &[], &json!({})).await.status, 201);
}

pub(super) async fn sessions(set: &SetUp) {
    let (desk, phone) = (login(set, "pat", 1).await, login(set, "pat", 2).await);
    let list = desk.get("/api/user/sessions").await.json();
    let list = list.as_array().unwrap();
    assert_eq!(list.len(), 2);
    let (own, other): (Vec<_>, Vec<_>) =
        list.iter().partition(|session| session["current"] == true);
    assert_eq!((own.len(), &own[0]["ip"]), (1, &json!("198.51.100.1")));
    let token = desk.cookie("id").unwrap();
    assert!(!desk.get("/api/user/sessions").await.text().contains(&token));
    // Ended while fifty of its requests are in flight.
    let end = format!("/api/user/sessions/{}", text(other[0], "id"));
    let flying = join_all((0..50).map(|_| phone.get("/api/notifications")));
    let (ended, _) = tokio::join!(desk.delete(&end), flying);
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    assert_eq!(
        told(&phone.get("/api/user/me").await),
        is(401, "UNAUTHENTICATED")
    );
    assert_eq!(told(&desk.delete(&end).await), is(404, "NOT_FOUND"));
    // A request every ten minutes keeps it for a day and no longer.
    set.advance(301).await;
    for _ in 0..143 {
        assert_eq!(desk.get("/api/user/me").await.status, StatusCode::OK);
        set.advance(600).await;
    }
    set.advance(300).await;
    assert_eq!(
        desk.get("/api/user/me").await.status,
        StatusCode::UNAUTHORIZED
    );
    let desk = login(set, "pat", 3).await;
    set.advance(901).await;
    assert_eq!(
        desk.get("/api/user/me").await.status,
        StatusCode::UNAUTHORIZED
    );
}

pub(super) async fn admins(set: &SetUp) {
    let (root, other) = (login(set, "root", 1).await, login(set, "adm2", 2).await);
    let ana = login(set, "ana", 3).await;
    let status = json!({ "status": "online" });
    let online = ana.post("/api/experts/me/status", &[], &status).await;
    assert_eq!(online.status, StatusCode::NO_CONTENT);
    // A role that was taken away is gone with the next request, whatever it opened.
    let path = "/api/users/ana/roles";
    let taken = root.post(path, &[], &json!({ "roles": ["patient"] })).await;
    assert_eq!(taken.status, StatusCode::OK);
    for reply in [
        ana.post("/api/experts/me/status", &[], &status).await,
        ana.get("/api/dashboard").await,
        ana.get("/api/customers").await,
    ] {
        assert_eq!(told(&reply), is(403, "FORBIDDEN"));
    }
    let king = root.post(path, &[], &json!({ "roles": ["king"] })).await;
    assert_eq!(told(&king), is(422, "UNKNOWN_ROLE"));
    let sup = json!({ "roles": ["superadmin"] });
    assert_eq!(
        told(&root.post(path, &[], &sup).await),
        is(403, "FORBIDDEN")
    );
    for _ in 0..2 {
        root.post(path, &[], &json!({ "roles": ["patient"] })).await;
    }
    let sixth = root.post(path, &[], &json!({ "roles": ["patient"] })).await;
    assert_eq!(told(&sixth), is(429, "roles"));
    let approve = json!({ "transfer_id": "tr1" });
    let path = "/api/admin/payment-transfers/approve";
    let both = tokio::join!(
        root.post(path, &[], &approve),
        other.post(path, &[], &approve)
    );
    let both = [both.0, both.1];
    assert_eq!((statuses(&both, 200), statuses(&both, 409)), (1, 1));
    let force = json!({ "user_id": "pat", "reason": "seen" });
    let path = "/api/internal/force-verification";
    for _ in 0..10 {
        assert_eq!(root.post(path, &[], &force).await.status, StatusCode::OK);
    }
    assert_eq!(
        told(&root.post(path, &[], &force).await),
        is(429, "force-verification")
    );
}

pub(super) async fn dashboard(set: &SetUp) {
    let ana = login(set, "ana", 1).await;
    let cold = join_all((0..50).map(|_| ana.get("/api/dashboard"))).await;
    assert_eq!(statuses(&cold, 200), 50);
    assert_eq!(set.counted("loaders", "dashboard").await, 1);
    let hit = ana.get("/api/dashboard").await;
    assert!(hit.header("cache-status").contains("hit"), "{hit:?}");
    assert!(!hit.header("age").is_empty());
    let etag = hit.header("etag").to_owned();
    let same = [("if-none-match", etag.as_str())];
    let unchanged = ana.send(Method::GET, "/api/dashboard", &same, None).await;
    assert_eq!(unchanged.status, StatusCode::NOT_MODIFIED);
    let guest = set.guest(3).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    guest.settle(&text(&held, "payment_id"), "succeeded").await;
    // Another process knows within a second.
    let started = std::time::Instant::now();
    while ana.get("/api/dashboard").await.json()["bookings"] != 1 {
        assert!(started.elapsed().as_secs() < 10);
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let ben = login(set, "ben", 2).await;
    assert_eq!(ben.get("/api/dashboard").await.json()["revenue_cents"], 0);
}
