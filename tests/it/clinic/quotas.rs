//! Every quota of the contract by its numbers, as each limited route tells them, and which routes share one.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use super::people::{refused, signed_in, told};
use super::{Guest, alone, wish};
use crate::support::{Browser, Reply};

/// The items of a list that may stand on several lines: name → the rest.
fn items(reply: &Reply, field: &str) -> BTreeSet<String> {
    let lines = reply.headers.get_all(field).iter();
    let lines = lines.map(|line| line.to_str().unwrap());
    let items = lines.flat_map(|line| line.split(", "));
    items.map(str::to_owned).collect()
}

#[track_caller]
fn tells(reply: &Reply, policies: &[&str]) {
    let wanted: BTreeSet<String> = policies.iter().map(|one| (*one).to_owned()).collect();
    assert_eq!(items(reply, "ratelimit-policy"), wanted, "{reply:?}");
}

/// How much is left of a policy.
#[track_caller]
fn left(reply: &Reply, policy: &str) -> u64 {
    let start = format!("\"{policy}\";r=");
    let items = items(reply, "ratelimit");
    let rest = items.iter().find_map(|item| item.strip_prefix(&start));
    let (left, _) = rest.unwrap().split_once(';').unwrap();
    left.parse().unwrap()
}

async fn ask(browser: &Browser, method: &str, path: &str, body: Value) -> Reply {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    browser
        .send(method, path, &[], Some(body.to_string()))
        .await
}

const LOGIN: [&str; 1] = ["\"ip\";q=10;w=900"];
const PAY: [&str; 4] = [
    "\"ip\";q=20;w=900",
    "\"global\";q=1000;w=60",
    "\"user\";q=5;w=900",
    "\"user-daily\";q=20;w=86400",
];
const IDENTITY: [&str; 3] = [
    "\"user\";q=3;w=3600",
    "\"ip\";q=10;w=3600",
    "\"global\";q=500;w=300",
];
const USER: [&str; 1] = ["\"user\";q=30;w=300"];
const ADMIN: &str = "\"admin\";q=100;w=600";
const TRANSFER: [&str; 4] = [
    ADMIN,
    "\"transfer\";q=50;w=3600",
    "\"transfer-daily\";q=200;w=86400",
    "\"transfer-global\";q=500;w=600",
];

#[tokio::test]
async fn the_api_and_the_form_of_a_login_and_of_a_payment_share_their_quotas() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let browser = &guest.browser;
    let wrong = json!({ "email": "pat@clinic.test", "password": "no" });
    let first = browser.post("/api/login", &[], &wrong).await;
    tells(&first, &LOGIN);
    assert_eq!(left(&first, "ip"), 9);
    let form = [("email", "pat@clinic.test"), ("password", "no")];
    let second = browser.submit("/login", &form).await;
    tells(&second, &LOGIN);
    assert_eq!(left(&second, "ip"), 8);

    let unknown = wish("e9", "s60", "10:00");
    let paid = browser
        .post(
            "/api/create-payment-intent",
            &[("idempotency-key", "k")],
            &unknown,
        )
        .await;
    tells(&paid, &PAY);
    // For older clients: of the item that has the least left.
    let legacy = ["limit", "remaining", "reset"].map(|name| {
        let value = paid.header(&format!("x-ratelimit-{name}"));
        value.parse::<u64>().unwrap()
    });
    assert_eq!(legacy, [5, 4, 1_893_456_000 + 900]);
    assert!(items(&paid, "ratelimit").contains("\"user\";r=4;t=900"));
    let fields = [
        ("expert_id", "e9"),
        ("service_id", "s60"),
        ("start", "2030-01-02T10:00:00Z"),
        ("price_cents", "7000"),
        ("nonce", "n"),
        ("guest_name", "G"),
        ("guest_email", "g@example.org"),
    ];
    let booked = browser.submit("/book", &fields).await;
    tells(&booked, &PAY);
    for (policy, rest) in [("ip", 18), ("global", 998), ("user", 3), ("user-daily", 18)] {
        assert_eq!(left(&booked, policy), rest, "{policy}");
    }
    // What is refused for its key has cost the address, and not the guest.
    let nameless = browser.post("/api/create-payment-intent", &[], &unknown);
    let nameless = nameless.await;
    tells(&nameless, &PAY[..2]);
    assert_eq!(left(&nameless, "ip"), 17);
}

#[tokio::test]
async fn all_that_is_a_users_own_is_one_quota() {
    let clinic = alone();
    let pat = signed_in(&clinic, "pat").await;
    let mut rest = 30;
    for (method, path) in [
        ("GET", "/api/user/me"),
        ("GET", "/api/user/profile"),
        ("PUT", "/api/user/profile"),
        ("GET", "/api/user/sessions"),
        ("DELETE", "/api/user/sessions/nobodys"),
        ("GET", "/api/user/check-kv-sync"),
        ("POST", "/api/user/rebuild-kv"),
        // The form of the page does what the API does.
        ("POST", "/me/sessions/nobodys/revoke"),
        ("DELETE", "/api/user/sessions"),
    ] {
        let reply = ask(&pat, method, path, json!({})).await;
        tells(&reply, &USER);
        rest -= 1;
        assert_eq!(left(&reply, "user"), rest, "{path}");
    }
    let identity = ask(&pat, "POST", "/api/identity/verification", json!({})).await;
    tells(&identity, &IDENTITY);
}

#[tokio::test]
async fn all_that_admins_do_is_one_quota_and_what_weighs_more_has_others_inside() {
    let clinic = alone();
    // Who may do all that an admin may.
    let sup = signed_in(&clinic, "sup").await;
    let notice = json!({
        "user_id": "pat", "type": "t", "title": "t", "message": "m", "priority": "low",
    });
    let mut rest = 100;
    for (method, path, body, status, policies) in [
        (
            "GET",
            "/api/admin/cache/stats",
            json!({}),
            200,
            &[ADMIN][..],
        ),
        ("POST", "/api/admin/cache/warm", json!({}), 200, &[ADMIN]),
        (
            "POST",
            "/api/admin/cache/invalidate",
            json!({ "tags": ["experts"] }),
            200,
            &[ADMIN],
        ),
        ("POST", "/api/admin/notifications", notice, 202, &[ADMIN]),
        (
            "POST",
            "/api/users/pat/roles",
            json!({ "roles": ["patient"] }),
            200,
            &[ADMIN, "\"roles\";q=5;w=3600"],
        ),
        (
            "POST",
            "/api/admin/payment-transfers/approve",
            json!({ "transfer_id": "tr1" }),
            200,
            &TRANSFER,
        ),
        (
            "POST",
            "/admin/transfers/tr2/approve",
            json!({}),
            303,
            &TRANSFER,
        ),
    ] {
        let reply = ask(&sup, method, path, body).await;
        assert_eq!(reply.status.as_u16(), status, "{path}: {reply:?}");
        tells(&reply, policies);
        rest -= 1;
        assert_eq!(left(&reply, "admin"), rest, "{path}");
    }
    for (path, body, policy) in [
        (
            "/api/internal/force-verification",
            json!({ "user_id": "pat", "reason": "seen" }),
            "\"force-verification\";q=10;w=86400",
        ),
        (
            "/api/experts/verify-specific",
            json!({ "email": "ana@clinic.test" }),
            "\"verify\";q=20;w=3600",
        ),
    ] {
        let reply = ask(&sup, "POST", path, body).await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        tells(&reply, &[policy]);
    }
}

#[tokio::test]
async fn an_ipv6_address_counts_by_its_64_and_a_mapped_one_as_the_ipv4_address_that_it_is() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await.browser;
    let mut users = Vec::new();
    for user in ["pat", "ana", "ben", "root", "adm2"] {
        users.push(signed_in(&clinic, user).await);
    }
    let wrong = json!({ "email": "pat@clinic.test", "password": "no" });
    let login = async |address: &str| {
        let from = [("x-forwarded-for", address)];
        guest.post("/api/login", &from, &wrong).await
    };
    // Each with how often its client has come by then.
    for (number, (address, times)) in [
        ("2001:db8:0:1::1", 1),
        ("2001:db8:0:1:ffff:ffff:ffff:ffff", 2),
        ("[2001:DB8:0:1:8000::]:443", 3),
        ("2001:db8:0:2::1", 1),
        ("2001:db8::ffff:0:0:1", 1),
        ("2001:db8:1:1::1", 1),
        ("2001:db8:0:2::", 2),
        ("203.0.113.7", 1),
        ("::ffff:203.0.113.7", 2),
        ("[::ffff:cb00:7107]", 3),
        ("::ffff:203.0.113.8", 1),
        ("203.0.113.8", 2),
        ("203.0.113.9", 1),
        ("::1", 1),
    ]
    .into_iter()
    .enumerate()
    {
        let from = [("x-forwarded-for", address)];
        assert_eq!(left(&login(address).await, "ip"), 10 - times, "{address}");
        // Without a key, so that it costs nothing but the address.
        let nameless = wish("e9", "s60", "10:00");
        let paid = guest.post("/api/create-payment-intent", &from, &nameless);
        assert_eq!(left(&paid.await, "ip"), 20 - times, "{address}");
        let user = &users[number % users.len()];
        let path = "/api/identity/verification";
        let shown = user.post(path, &from, &json!({})).await;
        assert_eq!(left(&shown, "ip"), 10 - times, "{address}");
    }
    for host in 4..=11 {
        let reply = login(&format!("2001:db8:0:1::{host}")).await;
        let promised = match host {
            11 => refused(429, "ip"),
            _ => refused(401, "INVALID_CREDENTIALS"),
        };
        assert_eq!(told(&reply), promised, "{host}");
    }
    let neighbour = login("2001:db8:0:2::4").await;
    assert_eq!(told(&neighbour), refused(401, "INVALID_CREDENTIALS"));
}
