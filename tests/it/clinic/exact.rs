//! What stands in an answer to the letter: who may keep it, its members, its kind of problem, and numbers at their limit.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::pages::{filled, form, leads_to, page};
use super::people::{refused, signed_in, told};
use super::{DAY, Guest, advance, alone, hooked, soon, tell, text, wish};
use crate::support::program::command;
use crate::support::{Browser, Program, Reply, launch};

const SLOTS: &str = "/api/experts/e1/slots?service=s60&day=2030-01-02";

#[tokio::test]
async fn nobody_may_keep_an_answer_but_what_is_cached_and_assets() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await;
    assert_eq!(held.header("cache-control"), "no-store");
    let page = format!("/reservation/{}", text(&held.json(), "reservation_id"));
    let own = [
        held.header("location"),
        &page,
        &text(&held.json(), "url"),
        "/oauth/start",
        "/api/events",
    ];
    for path in own {
        let reply = guest.browser.get(path).await;
        assert_eq!(reply.header("cache-control"), "no-store", "{path}");
    }
    let nobody = Browser::new(clinic.address());
    for user in [None, Some("pat"), Some("ana"), Some("root")] {
        let browser = match user {
            Some(user) => signed_in(&clinic, user).await,
            None => nobody.clone(),
        };
        for path in [
            "/me",
            "/admin",
            "/login",
            "/nowhere",
            "/book",
            "/oauth/start",
            "/api/user/me",
            "/api/user/profile",
            "/api/user/sessions",
            "/api/appointments",
            "/api/notifications",
            "/api/setup/none",
            "/api/admin/cache/stats",
            "/api/health",
            "/metrics",
        ] {
            let reply = browser.get(path).await;
            let kept = reply.header("cache-control");
            assert_eq!(kept, "no-store", "{path} by {user:?}");
        }
        for path in ["/", "/expert/e1", "/api/experts", "/api/experts/e1", SLOTS] {
            let first = browser.get(path).await;
            assert_eq!(first.header("cache-control"), "no-cache", "{path}");
            // Nothing in it is anybody's own, and nobody gets a name with it.
            assert_eq!(first.header("set-cookie"), "", "{path}");
            let etag = first.header("etag").to_owned();
            let known = [("if-none-match", etag.as_str())];
            let same = browser.send(Method::GET, path, &known, None).await;
            assert_eq!((same.status.as_u16(), same.body.len()), (304, 0), "{path}");
            assert_eq!(same.header("cache-control"), "no-cache", "{path}");
        }
        let private = match user {
            Some("ana") => "private, no-cache",
            _ => "no-store",
        };
        for path in ["/api/dashboard", "/api/customers"] {
            let reply = browser.get(path).await;
            assert_eq!(reply.header("cache-control"), private, "{path}");
        }
    }
    for path in ["/assets/style.css", "/assets/live.js"] {
        let kept = nobody.get(path).await;
        assert_eq!(kept.header("cache-control"), "public, max-age=60");
    }
}

#[tokio::test]
async fn a_method_that_a_route_does_not_take_is_refused_first_and_costs_nothing() {
    let clinic = alone();
    let (nobody, sup) = (
        Browser::new(clinic.address()),
        signed_in(&clinic, "sup").await,
    );
    for (method, path, allowed) in [
        ("DELETE", "/api/experts", "GET,HEAD"),
        ("GET", "/api/login", "POST"),
        ("GET", "/api/create-payment-intent", "POST"),
        ("DELETE", "/book", "POST,GET,HEAD"),
        ("PUT", "/api/user/me", "GET,HEAD"),
        ("POST", "/api/user/sessions", "GET,HEAD,DELETE"),
        ("GET", "/api/identity/verification", "POST"),
        ("GET", "/api/users/pat/roles", "POST"),
        ("GET", "/api/internal/force-verification", "POST"),
        ("GET", "/api/experts/verify-specific", "POST"),
        ("GET", "/api/admin/payment-transfers/approve", "POST"),
        ("GET", "/admin/transfers/tr1/approve", "POST"),
        ("POST", "/api/admin/cache/stats", "GET,HEAD"),
        ("POST", "/api/dashboard", "GET,HEAD"),
        ("GET", "/api/webhooks/payments", "POST"),
        ("GET", "/internal/cron/cleanup-reservations", "POST"),
        ("POST", "/api/health", "GET,HEAD"),
        ("PATCH", "/api/setup/calendar", "GET,HEAD,PUT,DELETE"),
    ] {
        for browser in [&nobody, &sup] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let reply = browser.send(method, path, &[], None).await;
            assert_eq!(reply.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
            assert!(reply.text().contains("METHOD_NOT_ALLOWED"), "{reply:?}");
            let mut said: Vec<&str> = reply.header("allow").split(',').collect();
            let mut allowed: Vec<&str> = allowed.split(',').collect();
            said.sort_unstable();
            allowed.sort_unstable();
            assert_eq!(said, allowed, "{path}");
            assert_eq!(reply.header("ratelimit"), "", "{path}");
        }
    }
    let me = sup.get("/api/user/me").await;
    assert_eq!(me.header("ratelimit"), "\"user\";r=29;t=300");
    let stats = sup.get("/api/admin/cache/stats").await;
    assert_eq!(stats.header("ratelimit"), "\"admin\";r=99;t=600");
}

#[tokio::test]
async fn answers_have_the_members_of_the_contract() {
    let clinic = alone();
    let nobody = Browser::new(clinic.address());
    let services = |half: u32, whole: u32| {
        json!([
            { "id": "s30", "name": "Half an hour", "minutes": 30, "price_cents": half },
            { "id": "s60", "name": "An hour", "minutes": 60, "price_cents": whole },
        ])
    };
    let mut e1 =
        json!({ "id": "e1", "name": "Ana", "status": "offline", "services": services(4000, 7000) });
    let e2 =
        json!({ "id": "e2", "name": "Ben", "status": "offline", "services": services(5000, 9000) });
    assert_eq!(nobody.get("/api/experts").await.json(), json!([e1, e2]));
    e1["bio"] = json!("Ana listens first.");
    assert_eq!(nobody.get("/api/experts/e1").await.json(), e1);
    let slots = nobody.get(SLOTS).await.json();
    let first = json!({ "start": format!("{DAY}T09:00:00Z"), "end": format!("{DAY}T10:00:00Z"), "state": "free" });
    assert_eq!(slots["slots"][0], first);
    let saturday = nobody.get("/api/experts/e1/slots?service=s60&day=2030-01-05");
    assert_eq!(saturday.await.json(), json!({ "slots": [] }));

    for (id, name, role) in [
        ("pat", "Pat", "patient"),
        ("ana", "Ana", "expert"),
        ("ben", "Ben", "expert"),
        ("root", "Root", "admin"),
        ("adm2", "Adam", "admin"),
        ("sup", "Sup", "superadmin"),
    ] {
        let browser = Browser::new(clinic.address());
        let email = format!("{id}@clinic.test");
        let credentials = json!({ "email": email, "password": "test" });
        let welcome = browser.post("/api/login", &[], &credentials).await;
        let user = json!({ "user": { "id": id, "roles": [role] } });
        assert_eq!(welcome.json(), user);
        let me = json!({ "id": id, "name": name, "email": email, "roles": [role] });
        assert_eq!(browser.get("/api/user/me").await.json(), me);
    }
    let sup = signed_in(&clinic, "sup").await;
    let later = "2030-01-01T02:00:00+02:00";
    let notice = json!({
        "user_id": "ben", "type": "news", "title": "t", "message": "m", "priority": "low", "scheduled_for": later,
    });
    let sent = sup.post("/api/admin/notifications", &[], &notice).await;
    sup.post("/_test/work", &[], &Value::Null).await;
    let ben = signed_in(&clinic, "ben").await;
    let list = ben.get("/api/notifications").await.json();
    let own = list["notifications"][0].clone();
    for (member, value) in [
        ("id", sent.json()["id"].clone()),
        ("type", json!("news")),
        ("title", json!("t")),
        ("message", json!("m")),
        ("priority", json!("low")),
        ("attempts", json!(1)),
        ("scheduled_for", json!("2030-01-01T00:00:00Z")),
        ("delivered_at", json!("2030-01-01T00:00:00Z")),
    ] {
        assert_eq!(own[member], value, "{member}: {own}");
    }
    let path = "/api/identity/verification";
    let asked = ben.post(path, &[], &json!({})).await.json();
    assert_eq!(asked["status"], "open");
    assert!(text(&asked, "url").ends_with(&text(&asked, "verification_id")));
    for (path, body, answer) in [
        (
            "/api/users/ana/roles",
            json!({ "roles": ["patient", "expert", "expert"] }),
            json!({ "id": "ana", "roles": ["expert", "patient"] }),
        ),
        (
            "/api/internal/force-verification",
            json!({ "user_id": "pat", "reason": "\u{e9}".repeat(500) }),
            json!({ "user_id": "pat", "verified": true }),
        ),
        (
            "/api/experts/verify-specific",
            json!({ "email": "ben@clinic.test" }),
            json!({ "expert_id": "e2", "verified": true }),
        ),
        (
            "/api/admin/payment-transfers/approve",
            json!({ "transfer_id": "tr5" }),
            json!({ "transfer_id": "tr5", "approved_by": "sup", "approved_at": "2030-01-01T00:00:00Z" }),
        ),
    ] {
        assert_eq!(sup.post(path, &[], &body).await.json(), answer, "{path}");
    }
    let (path, body) = ("/api/admin/cache/invalidate", json!({ "prefix": "/" }));
    let untagged = sup.post(path, &[], &body);
    assert_eq!(told(&untagged.await), refused(400, "VALIDATION"));
    let stats = sup.get("/api/admin/cache/stats").await.json();
    assert_eq!(stats["is_redis_available"], false);
    for member in [
        "in_memory_size",
        "hit",
        "miss",
        "stale",
        "error",
        "fallback",
    ] {
        assert!(stats[member].is_u64(), "{member}: {stats}");
    }
    let health = nobody.get("/api/health").await.json();
    let own = nobody.get("/api/health/queue").await.json();
    for part in ["store", "db", "queue", "provider"].map(|part| &health["checks"][part]) {
        assert!(part["response_ms"].is_u64(), "{health}");
    }
    assert!(health["response_ms"].is_u64() && own["response_ms"].is_u64());
    assert_eq!(own["status"], "healthy");
}

#[tokio::test]
async fn a_session_is_listed_by_the_browser_it_is_in() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let agent = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
    let headers = [("user-agent", agent), ("x-forwarded-for", "198.51.100.7")];
    let credentials = json!({ "email": "pat@clinic.test", "password": "test" });
    browser.post("/api/login", &headers, &credentials).await;
    advance(&browser, 61).await;
    signed_in(&clinic, "pat").await;
    let path = "/api/user/sessions";
    let list = browser.send(Method::GET, path, &headers, None).await.json();
    let list = list.as_array().unwrap();
    let own: Vec<&Value> = list.iter().filter(|one| one["current"] == true).collect();
    assert_eq!((list.len(), own.len()), (2, 1));
    for (member, value) in [
        ("device", "Firefox on Linux"),
        ("ip", "198.51.100.7"),
        ("created", "2030-01-01T00:00:00Z"),
        ("last_activity", "2030-01-01T00:01:01Z"),
    ] {
        assert_eq!(own[0][member], value, "{member}");
    }
    // Ending the one it is in is a logout.
    let end = format!("/api/user/sessions/{}", text(own[0], "id"));
    assert_eq!(browser.delete(&end).await.status, StatusCode::NO_CONTENT);
    assert_eq!(browser.cookie("id"), None);
}

#[tokio::test]
async fn of_several_addresses_the_one_that_the_second_proxy_saw_counts() {
    let usual = ["--listen", "127.0.0.1:0", "--test-hooks"];
    let clinic = Program::start("clinic", &[&usual[..], &["--trusted-hops", "2"]].concat());
    let credentials = json!({ "email": "pat@clinic.test", "password": "test" });
    let browser = Browser::new(clinic.address());
    for (lines, address) in [
        (&["192.0.2.1, 192.0.2.2, 192.0.2.3"][..], "192.0.2.2"),
        (&["192.0.2.1", "192.0.2.2,192.0.2.3"], "192.0.2.2"),
        (&["192.0.2.1, 192.0.2.2", "192.0.2.3"], "192.0.2.2"),
        (&["192.0.2.1,192.0.2.2"], "192.0.2.1"),
        (&["192.0.2.9"], "192.0.2.9"),
        (&["nobody, 192.0.2.3"], "127.0.0.1"),
        (&[], "127.0.0.1"),
    ] {
        let lines = lines.iter().map(|line| ("x-forwarded-for", *line));
        let lines: Vec<(&str, &str)> = lines.collect();
        browser.post("/api/login", &lines, &credentials).await;
        let path = "/api/user/sessions";
        let list = browser.send(Method::GET, path, &lines, None).await.json();
        let mut list = list.as_array().unwrap().iter();
        let own = list.find(|one| one["current"] == true).unwrap();
        assert_eq!(own["ip"], address, "{lines:?}");
    }
}

#[tokio::test]
async fn every_option_has_a_variable_and_wins_over_it() {
    let with = |variable: &str, value: &str, more: &[&str]| {
        let usual = ["--listen", "127.0.0.1:0", "--test-hooks"];
        let variable = (variable, OsStr::new(value));
        Program::start_with("clinic", &[&usual[..], more].concat(), variable)
    };
    let elsewhere = ("CLINIC_LISTEN", OsStr::new("127.0.0.2:0"));
    let clinic = Program::start_with("clinic", &["--test-hooks"], elsewhere);
    assert_eq!(clinic.address().ip().to_string(), "127.0.0.2");
    let clinic = with("CLINIC_LISTEN", "127.0.0.2:0", &[]);
    assert_eq!(clinic.address().ip().to_string(), "127.0.0.1");

    let nowhere = "redis://127.0.0.1:1";
    for (more, mode) in [(&[][..], "fallback"), (&["--store", "memory"], "memory")] {
        let clinic = with("KEEP_STORE", nowhere, more);
        let browser = Browser::new(clinic.address());
        soon(async { while browser.get("/api/health").await.json()["mode"] != mode {} }).await;
    }

    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| format!("sqlite:{}", folder.path().join(name).display());
    drop(with("DATABASE_URL", &file("a.db"), &[]));
    assert!(folder.path().join("a.db").exists());
    drop(with(
        "DATABASE_URL",
        &file("b.db"),
        &["--db", &file("c.db")],
    ));
    assert!(!folder.path().join("b.db").exists() && folder.path().join("c.db").exists());

    let credentials = json!({ "email": "pat@clinic.test", "password": "test" });
    for (more, address) in [
        (&[][..], "192.0.2.2"),
        (&["--trusted-hops", "0"], "127.0.0.1"),
    ] {
        let clinic = with("CLINIC_TRUSTED_HOPS", "1", more);
        let browser = Browser::new(clinic.address());
        let from = [("x-forwarded-for", "192.0.2.1, 192.0.2.2")];
        browser.post("/api/login", &from, &credentials).await;
        let path = "/api/user/sessions";
        let list = browser.send(Method::GET, path, &from, None).await.json();
        assert_eq!(list[0]["ip"], address);
    }

    let first = with("CLINIC_SECRET", "one", &[]);
    let known = Browser::new(first.address());
    known.get("/api/guest").await;
    for (more, is_known) in [(&[][..], true), (&["--secret", "two"], false)] {
        let clinic = with("CLINIC_SECRET", "one", more);
        let reply = known.at(clinic.address()).get("/api/guest").await;
        assert_eq!(reply.header("set-cookie").is_empty(), is_known, "{more:?}");
        known.get("/api/guest").await;
    }

    for (more, status) in [(&[][..], 400), (&["--webhook-secret", "whsec_test"], 200)] {
        let clinic = with("CLINIC_WEBHOOK_SECRET", "another", more);
        let browser = Browser::new(clinic.address());
        let event = tell(&browser, "1", "succeeded", "pay_none", 0).await;
        assert_eq!(event.status, status, "{more:?}");
    }
    for (more, secret) in [(&[][..], "another"), (&["--cron-secret", "mine"], "mine")] {
        let clinic = with("CLINIC_CRON_SECRET", "another", more);
        let browser = Browser::new(clinic.address());
        for (sent, status) in [(secret, 200), ("cron_test", 401)] {
            // A scheme's name has no case.
            let bearer = format!("{} {sent}", ["Bearer", "bearer"][more.len() / 2]);
            let headers = [("authorization", bearer.as_str())];
            let path = "/internal/cron/cleanup-reservations";
            let reply = browser.send(Method::POST, path, &headers, None).await;
            assert_eq!(reply.status, status, "{more:?}");
        }
    }
}

#[tokio::test]
async fn one_line_is_all_that_it_prints() {
    let mut command = command("clinic", &hooked(&[]));
    let mut clinic = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(clinic.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    let address = line.strip_prefix("clinic listening on http://").unwrap();
    let guest = Browser::new(address.trim_end().parse().unwrap());
    for path in ["/", "/nowhere", "/api/user/me", "/api/health", "/metrics"] {
        guest.get(path).await;
    }
    launch::signal("TERM", &[clinic.id().to_string()]);
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(
        (rest.as_str(), clinic.wait().unwrap().code()),
        ("", Some(0))
    );
}

#[tokio::test]
async fn a_session_ends_to_the_second_and_only_the_dead_take_their_cookie_along() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let asked = async |token: &str| {
        let thief = Browser::new(clinic.address());
        thief.plant("id", token);
        let reply = thief.get("/api/notifications").await;
        let is_taken = reply.header("set-cookie").starts_with("id=; Max-Age=0");
        (reply.status.as_u16(), is_taken)
    };
    let token = async || {
        let own = signed_in(&clinic, "pat").await;
        own.cookie("id").unwrap()
    };
    let idle = token().await;
    advance(&browser, 899).await;
    assert_eq!(asked(&idle).await, (200, false));
    advance(&browser, 900).await;
    for token in [&idle, "a-token-that-nobody-made"] {
        assert_eq!(asked(token).await, (401, true), "{token}");
    }
    let daily = token().await;
    for _ in 0..143 {
        advance(&browser, 600).await;
        assert_eq!(asked(&daily).await, (200, false));
    }
    advance(&browser, 599).await;
    assert_eq!(asked(&daily).await, (200, false));
    advance(&browser, 1).await;
    assert_eq!(asked(&daily).await, (401, true));
    // The browser may hold its successor already.
    let left = token().await;
    let leaving = Browser::new(clinic.address());
    leaving.plant("id", &left);
    leaving.post("/api/logout", &[], &json!({})).await;
    assert_eq!(asked(&left).await, (401, false));
    advance(&browser, 61).await;
    assert_eq!(asked(&left).await, (401, true));
    // Where nobody has to be known, a dead cookie counts as none.
    leaving.plant("id", &left);
    let public = leaving.get("/api/experts").await;
    assert_eq!(
        (public.status, public.header("set-cookie")),
        (StatusCode::OK, "")
    );
}

#[tokio::test]
async fn a_login_in_the_instant_of_an_end_of_all_others_or_of_new_roles_is_overtaken() {
    let clinic = alone();
    let [pat, root] = [
        signed_in(&clinic, "pat").await,
        signed_in(&clinic, "root").await,
    ];
    let again = async |user: &str| {
        let browser = Browser::new(clinic.address());
        let credentials = json!({ "email": format!("{user}@clinic.test"), "password": "test" });
        browser.post("/api/login", &[], &credentials).await;
        told(&browser.get("/api/notifications").await)
    };
    assert_eq!(again("pat").await, refused(200, ""));
    let ended = pat.delete("/api/user/sessions").await;
    assert_eq!(ended.status, StatusCode::NO_CONTENT);
    assert_eq!(again("pat").await, refused(401, "UNAUTHENTICATED"));
    assert_eq!(told(&pat.get("/api/notifications").await), refused(200, ""));
    let roles = json!({ "roles": ["expert"] });
    root.post("/api/users/ben/roles", &[], &roles).await;
    assert_eq!(again("ben").await, refused(401, "UNAUTHENTICATED"));
    advance(&pat, 1).await;
    for user in ["pat", "ben"] {
        assert_eq!(again(user).await, refused(200, ""), "{user}");
    }
}

#[tokio::test]
async fn a_problem_says_of_which_kind_it_is_and_of_several_limits_the_longest_wait_counts() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let unknown = wish("e9", "s60", "10:00");
    for round in 0..4 {
        for number in 0..5 {
            guest.pay(&format!("k{round}{number}"), &unknown).await;
        }
        // What was charged in one instant goes one microsecond after the other.
        let wait = if round < 3 { 901 } else { 0 };
        advance(&guest.browser, wait).await;
    }
    // Five in this quarter of an hour and twenty today: the day is longer.
    let reply = guest.pay("more", &unknown).await;
    assert_eq!(told(&reply), refused(429, "user-daily"));
    let quota = "https://iana.org/assignments/http-problem-types#quota-exceeded";
    let rest = 86_400 - 3 * 901;
    let mut violated: Vec<String> =
        serde_json::from_value(reply.json()["violated-policies"].clone()).unwrap();
    violated.sort_unstable();
    assert_eq!(violated, ["user", "user-daily"]);
    assert_eq!(reply.json()["type"], quota);
    assert_eq!(reply.json()["retry_after"], rest);
    let legacy = ["limit", "remaining", "reset"];
    let legacy = legacy.map(|name| reply.header(&format!("x-ratelimit-{name}")).to_owned());
    let reset = 1_893_456_000_u64 + 86_400;
    assert_eq!(legacy, ["20".to_owned(), "0".to_owned(), reset.to_string()]);
    assert_eq!(reply.json()["reset_time"], reset * 1_000);

    let down = json!({ "store": "down" });
    guest.browser.post("/_test/fault", &[], &down).await;
    let away = guest.pay("down", &unknown).await;
    let reduced = "https://iana.org/assignments/http-problem-types#temporary-reduced-capacity";
    assert_eq!(away.json()["type"], reduced);
    assert_eq!(told(&away), refused(503, "STORE_UNAVAILABLE"));
}

#[tokio::test]
async fn a_form_is_the_same_for_five_minutes() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    let (_, fields) = form(&browser).await;
    let submitted = async || {
        let reply = browser.submit("/book", &filled(&fields)).await;
        let is_replay = reply.header("idempotency-replayed") == "true";
        (leads_to(&reply), is_replay)
    };
    let (pay, first) = submitted().await;
    assert!(!first);
    advance(&browser, 299).await;
    assert_eq!(submitted().await, (pay.clone(), true));
    advance(&browser, 1).await;
    // The hold goes on, so its page is the same.
    assert_eq!(submitted().await, (pay, false));
}

#[tokio::test]
async fn a_body_may_have_64_kib_and_not_a_byte_more() {
    let clinic = alone();
    let (guest, root) = (
        Guest::new(&clinic, 1).await,
        signed_in(&clinic, "root").await,
    );
    let padded = |start: &str, with: &str, size: usize| {
        let rest = with.repeat(size - start.len());
        format!("{start}{rest}")
    };
    let json = |value: Value, size: usize| padded(&value.to_string(), " ", size);
    let form = |start: &str, size: usize| padded(start, "&", size);
    let pairs = "expert_id=e9&service_id=s60&start=2030-01-02T10%3A00%3A00Z&price_cents=1\
                 &nonce=n&guest_name=a&guest_email=b";
    const JSON: &str = "application/json";
    const FORM: &str = "application/x-www-form-urlencoded";
    for (size, is_whole) in [(65_536, true), (65_537, false)] {
        let key = size.to_string();
        for (browser, path, kind, body, status) in [
            (
                &guest.browser,
                "/api/login",
                JSON,
                json(json!({ "email": "a", "password": "b" }), size),
                401,
            ),
            (
                &guest.browser,
                "/api/create-payment-intent",
                JSON,
                json(wish("e9", "s60", "10:00"), size),
                404,
            ),
            (&guest.browser, "/book", FORM, form(pairs, size), 404),
            (
                &guest.browser,
                "/login",
                FORM,
                form("email=a&password=b", size),
                401,
            ),
            (
                &guest.browser,
                "/fakepay/none",
                FORM,
                form("outcome=failed", size),
                404,
            ),
            (
                &root,
                "/api/admin/payment-transfers/approve",
                JSON,
                json(json!({ "transfer_id": "tr9" }), size),
                404,
            ),
        ] {
            let headers = [("content-type", kind), ("idempotency-key", &key)];
            let reply = browser.send(Method::POST, path, &headers, Some(body));
            let reply: Reply = reply.await;
            let promised = if is_whole { status } else { 413 };
            assert_eq!(reply.status.as_u16(), promised, "{path} {size}");
            assert_eq!(reply.text().contains("BODY_TOO_LARGE"), !is_whole);
        }
    }
    // What is kept half done takes a whole body, too.
    for (size, status) in [(65_536, 204), (65_537, 413)] {
        let body = format!(r#"{{"a":"{}"}}"#, "x".repeat(size - 8));
        let (path, kind) = ("/api/forms/f/progress", [("content-type", JSON)]);
        let reply = root.send(Method::PUT, path, &kind, Some(body)).await;
        assert_eq!(reply.status.as_u16(), status, "{size}");
    }
    // An event is no exception, however well it is signed.
    let long = "x".repeat(65_536);
    let event = tell(&guest.browser, &long, "succeeded", "pay_none", 0).await;
    assert_eq!(told(&event), refused(413, "BODY_TOO_LARGE"));
}

#[tokio::test]
async fn events_say_what_has_changed_and_nothing_else() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let ana = signed_in(&clinic, "ana").await;
    let looking = Browser::new(clinic.address());
    let mut slots = looking.open("/api/events?topic=slots:e1").await;
    let mut status = looking.open("/api/events?topic=expert:e1:status").await;
    for stream in [&mut slots, &mut status] {
        stream.until(":\n\n").await;
    }
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let reservation = text(&held, "reservation_id");
    let path = format!("/api/events?topic=appointment:{reservation}");
    let mut own = guest.browser.open(&path).await;
    own.until(":\n\n").await;
    guest.settle(&text(&held, "payment_id"), "succeeded").await;
    let busy = json!({ "status": "busy" });
    ana.post("/api/experts/me/status", &[], &busy).await;
    let told = |stream: &str, name: &str| {
        let mark = format!("event: {name}\n");
        let events = stream.split("\n\n").filter(|event| event.contains(&mark));
        let event = events.last();
        let data =
            event.and_then(|event| event.lines().find_map(|line| line.strip_prefix("data: ")));
        serde_json::from_str::<Value>(data.unwrap()).unwrap()
    };
    assert_eq!(
        told(slots.until("\"booked\"}\n\n").await, "slot"),
        json!({
            "expert_id": "e1", "start": format!("{DAY}T10:00:00Z"), "end": format!("{DAY}T11:00:00Z"), "state": "booked",
        })
    );
    assert_eq!(
        told(own.until("\"confirmed\"}\n\n").await, "appointment"),
        json!({ "reservation_id": reservation, "state": "confirmed" })
    );
    assert_eq!(
        told(status.until("Z\"}\n\n").await, "status"),
        json!({ "expert_id": "e1", "status": "busy", "at": "2030-01-01T00:00:00Z" })
    );
    // The notice of it says which reservation, and is the owner's.
    guest.browser.post("/_test/work", &[], &Value::Null).await;
    let mail = guest.browser.get("/_test/mail").await.json();
    assert_eq!(mail[0]["type"], "booking_confirmed");
    assert_eq!(mail[0]["reservation_id"], reservation.as_str());
    assert!(mail[0]["to"].as_str().unwrap().starts_with("g:"), "{mail}");
}

#[tokio::test]
async fn of_all_who_ask_at_once_one_computes_and_the_others_say_that_they_waited() {
    let clinic = alone();
    let browser = Browser::new(clinic.address());
    for path in ["/", "/expert/e1", "/api/experts", "/api/experts/e1", SLOTS] {
        let replies = join_all((0..20).map(|_| browser.get(path))).await;
        let (computed, waited): (Vec<&Reply>, Vec<&Reply>) = replies.iter().partition(|reply| {
            let status = reply.header("cache-status");
            status.starts_with("clinic;fwd=uri-miss;stored;ttl=") && !status.contains("collapsed")
        });
        assert_eq!(computed.len(), 1, "{path}: {replies:?}");
        for reply in waited {
            let status = reply.header("cache-status");
            let is_hit = status.starts_with("clinic;hit;ttl=") && reply.header("age") == "0";
            assert!(is_hit || status.contains("collapsed"), "{path}: {status}");
            assert_eq!(reply.body, replies[0].body, "{path}");
        }
    }
}

#[tokio::test]
async fn pages_have_the_parts_by_which_they_are_known() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let (payment, reservation) = (text(&held, "payment_id"), text(&held, "reservation_id"));
    let (pat, root) = (
        signed_in(&clinic, "pat").await,
        signed_in(&clinic, "root").await,
    );
    let notice =
        json!({ "user_id": "pat", "type": "t", "title": "t", "message": "m", "priority": "high" });
    root.post("/api/admin/notifications", &[], &notice).await;
    root.post("/_test/work", &[], &Value::Null).await;
    let wished = Guest {
        browser: pat.clone(),
        address: "203.0.113.2".to_owned(),
    };
    let booked = wished.pay("k", &wish("e2", "s30", "09:00")).await.json();
    wished
        .settle(&text(&booked, "payment_id"), "succeeded")
        .await;
    let topic = format!("data-topic=\"appointment:{reservation}\"");
    let pay = format!("action=\"/fakepay/{payment}\"");
    for (browser, path, parts) in [
        (
            &pat,
            "/".to_owned(),
            &[
                "id=\"experts\"",
                "class=\"expert\" data-expert=\"e1\"",
                "href=\"/expert/e2\"",
                "data-status=\"offline\"",
            ][..],
        ),
        (
            // The first service, the next weekday after today.
            &pat,
            "/expert/e1".to_owned(),
            &[
                "id=\"expert-name\">Ana<",
                "id=\"expert-status\"",
                "id=\"day-form\" method=\"get\"",
                "name=\"service\"",
                "name=\"day\"",
                "id=\"slots\" data-topic=\"slots:e1\"",
                "data-start=\"2030-01-02T16:30:00Z\" data-end=\"2030-01-02T17:00:00Z\" data-state=\"free\"",
                "data-start=\"2030-01-02T10:30:00Z\" data-end=\"2030-01-02T11:00:00Z\" data-state=\"held\"",
                "class=\"state\">held<",
                "class=\"book\" href=\"/book?expert_id=e1&amp;service_id=s30&amp;start=2030-01-02T",
            ],
        ),
        (
            &pat,
            "/book?expert_id=e1&service_id=s60&start=2030-01-02T13:00:00Z".to_owned(),
            &[
                "id=\"book-form\" method=\"post\" action=\"/book\"",
                "name=\"price_cents\" value=\"7000\"",
                "id=\"guest-name\" name=\"guest_name\"",
                "id=\"guest-email\" name=\"guest_email\"",
                "id=\"book-submit\"",
            ],
        ),
        (
            &pat,
            format!("/pay/{payment}"),
            &[
                "id=\"pay-summary\"",
                "id=\"hold-expires\" datetime=\"2030-01-01T00:10:00Z\"",
                "id=\"pay-form\"",
                &pay,
                "id=\"pay-succeeded\"",
                "id=\"pay-failed\"",
                "id=\"pay-voucher\"",
                "name=\"outcome\"",
            ],
        ),
        (
            &guest.browser,
            format!("/reservation/{reservation}"),
            &["id=\"confirmation\"", "data-state=\"held\"", &topic, "Ana"],
        ),
        (
            &pat,
            "/login".to_owned(),
            &[
                "id=\"login-form\"",
                "action=\"/login\"",
                "id=\"login-submit\"",
            ],
        ),
        (
            &pat,
            "/me".to_owned(),
            &[
                "id=\"me\" data-user=\"pat\"",
                "id=\"sessions\"",
                "class=\"session\" data-session=\"",
                "data-current=\"true\"",
                "class=\"revoke\"",
                "id=\"appointments\"",
                "class=\"appointment\" data-booking=\"bok_",
                "id=\"notifications\"",
                "class=\"notification\" data-priority=\"high\"",
                "id=\"logout-form\"",
            ],
        ),
        (
            &root,
            "/admin".to_owned(),
            &[
                "id=\"transfers\"",
                "class=\"transfer\" data-transfer=\"tr5\" data-state=\"PENDING\"",
                "class=\"approve\"",
                "id=\"cache-stats\"",
            ],
        ),
    ] {
        let shown = page(browser, &path).await;
        for part in parts.iter().chain(&["id=\"nav\"", "id=\"nav-home\""]) {
            assert!(
                shown.text().contains(part),
                "{path}: {part}: {}",
                shown.text()
            );
        }
    }
}

#[tokio::test]
async fn nothing_before_1970_is_offered() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    for start in [
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:30:00+01:00",
        "0001-01-01T10:00:00Z",
    ] {
        let mut early = wish("e1", "s60", "10:00");
        early["start"] = json!(start);
        let refusal = guest.pay(start, &early).await;
        assert_eq!(told(&refusal), refused(422, "SLOT_NOT_OFFERED"), "{start}");
        let page = format!(
            "/book?expert_id=e1&service_id=s60&start={}",
            start.replace('+', "%2B")
        );
        assert_eq!(guest.browser.get(&page).await.status, 422, "{start}");
    }
    let day = SLOTS.replace("2030-01-02", "1969-12-31");
    let slots = guest.browser.get(&day).await;
    assert_eq!(
        (slots.status, slots.json()),
        (StatusCode::OK, json!({ "slots": [] }))
    );
    for no_day in ["1969-02-30", "69-12-31", "yesterday"] {
        let slots = guest
            .browser
            .get(&SLOTS.replace("2030-01-02", no_day))
            .await;
        assert_eq!(told(&slots), refused(400, "VALIDATION"), "{no_day}");
    }
}

#[tokio::test]
async fn a_session_whose_id_is_no_id_is_not_there() {
    let clinic = alone();
    let pat = signed_in(&clinic, "pat").await;
    for id in ["%FF", "%00", "x", "a%2Fb", "AAAAAAAAAAAAAAAAAAAAAA"] {
        let path = format!("/api/user/sessions/{id}");
        let reply = pat.send(Method::DELETE, &path, &[], None).await;
        assert_eq!(told(&reply), refused(404, "NOT_FOUND"), "{id}");
    }
    assert_eq!(pat.get("/api/user/me").await.status, 200);
}
