//! Event streams and notices: what one browser does the other sees, a reconnect misses nothing, a notice is sent once.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::people::{refused, signed_in, told};
use super::{DAY, Guest, Two, advance, alone, hooked, text, wish};
use crate::support::{Browser, Program, RedisServer};

const STATUS: &str = "/api/events?topic=expert:e1:status";

async fn says(expert: &Browser, status: &str) {
    let wish = json!({ "status": status });
    let said = expert.post("/api/experts/me/status", &[], &wish).await;
    assert_eq!(said.status, StatusCode::NO_CONTENT);
}

/// The end of an event of this minute and second.
fn at(time: &str) -> String {
    format!("T00:{time}Z\"}}\n\n")
}

/// What a stream gave: the id, the name and the data of each event.
fn events(stream: &str) -> Vec<(String, String, Value)> {
    let events = stream.split_terminator("\n\n");
    let events = events.filter(|event| event.contains("event: "));
    let read = |event: &str| {
        let field = |name: &str| {
            let found = event.lines().find_map(|line| line.strip_prefix(name));
            found.unwrap_or_else(|| panic!("no {name}in {event:?}"))
        };
        let data = serde_json::from_str(field("data: ")).unwrap();
        (field("id: ").to_owned(), field("event: ").to_owned(), data)
    };
    events.map(read).collect()
}

fn statuses(events: &[(String, String, Value)]) -> Vec<String> {
    let of = |(_, name, data): &(String, String, Value)| match name.as_str() {
        "status" => text(data, "status"),
        _ => format!("{name} {data}"),
    };
    events.iter().map(of).collect()
}

const GAP: &str = "gap {\"missed\":true}";

#[tokio::test]
async fn a_booking_is_seen_by_whoever_looks_and_a_reconnect_misses_nothing() {
    let clinic = alone();
    let looking = Browser::new(clinic.address());
    let guest = Guest::new(&clinic, 1).await;
    let mut stream = looking.open("/api/events?topic=slots:e1").await;
    stream.until(":").await;
    let held = guest.pay("k", &wish("e1", "s60", "10:00")).await.json();
    let seen = stream.until("\"held\"").await;
    assert!(seen.contains("event: slot"), "{seen}");
    assert!(
        seen.contains(&format!("\"start\":\"{DAY}T10:00:00Z\"")),
        "{seen}"
    );
    assert!(!seen.contains("guest@"), "{seen}");
    let (_, id) = seen.rsplit_once("id: ").unwrap();
    let id = id.split_once('\n').unwrap().0.to_owned();
    guest.settle(&text(&held, "payment_id"), "succeeded").await;
    stream.until("\"booked\"").await;

    let resumed = format!("/api/events?topic=slots:e1&last_event_id={id}");
    let missed = looking
        .open(&resumed)
        .await
        .until("\"booked\"")
        .await
        .to_owned();
    assert!(!missed.contains("\"held\""), "{missed}");

    let reservation = text(&held, "reservation_id");
    let topic = format!("/api/events?topic=appointment:{reservation}");
    assert_eq!(told(&looking.get(&topic).await), refused(403, "FORBIDDEN"));
    let own = format!("{topic}&last_event_id={}", "0-0");
    guest.browser.open(&own).await.until("event: ").await;
    signed_in(&clinic, "ana")
        .await
        .open(&topic)
        .await
        .until(":")
        .await;
    for unknown in [
        "",
        "?topic=",
        "?topic=slots:e9",
        "?topic=expert:e1",
        "?topic=news:e1",
    ] {
        let path = format!("/api/events{unknown}");
        assert_eq!(
            told(&looking.get(&path).await),
            refused(422, "INVALID_VALUE"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn a_page_says_where_the_events_ended_though_none_of_them_is_kept_any_more() {
    let clinic = alone();
    let (looking, ana) = (
        Browser::new(clinic.address()),
        signed_in(&clinic, "ana").await,
    );
    says(&ana, "busy").await;
    advance(&looking, 301).await;
    let page = looking.get("/").await;
    let (_, rest) = page
        .text()
        .split_once("data-topic=\"expert:e1:status\" data-last-event-id=\"")
        .unwrap();
    let id = rest.split_once('"').unwrap().0;
    assert!(!id.is_empty());
    // Between the page and its stream.
    says(&ana, "online").await;
    let path = format!("{STATUS}&last_event_id={id}");
    let seen = looking
        .open(&path)
        .await
        .until("\"online\"")
        .await
        .to_owned();
    assert!(!seen.contains("gap") && !seen.contains("busy"), "{seen}");
}

#[tokio::test]
async fn an_event_is_kept_for_five_minutes_and_whoever_comes_back_later_is_told_that_it_missed_some()
 {
    let redis = RedisServer::start().await;
    for store in ["memory:", &redis.tcp_url()] {
        let clinic = Program::start("clinic", &hooked(&["--store", store]));
        let looking = Browser::new(clinic.address());
        let ana = signed_in(&clinic, "ana").await;
        let mut stream = looking.open(STATUS).await;
        stream.until(":").await;
        says(&ana, "busy").await;
        let seen = events(stream.until(&at("00:00")).await).remove(0).0;
        drop(stream);
        says(&ana, "online").await;
        advance(&looking, 299).await;
        says(&ana, "offline").await;
        let mut stream = looking.resume(STATUS, &seen).await;
        let missed = events(stream.until(&at("04:59")).await);
        assert_eq!(statuses(&missed), ["online", "offline"]);
        drop(stream);

        advance(&looking, 2).await;
        says(&ana, "busy").await;
        let in_query = format!("{STATUS}&last_event_id={seen}");
        let mut streams = [
            looking.resume(STATUS, &seen).await,
            looking.open(&in_query).await,
        ];
        for stream in &mut streams {
            stream.until(&at("05:01")).await;
        }
        // And nothing else comes before what happens next.
        advance(&looking, 1).await;
        says(&ana, "online").await;
        for stream in &mut streams {
            let given = events(stream.until(&at("05:02")).await);
            assert_eq!(statuses(&given), [GAP, "offline", "busy", "online"]);
            // Whoever comes back from the gap misses nothing more.
            let mut rest = looking.resume(STATUS, &given[0].0).await;
            assert_eq!(events(rest.until(&at("05:02")).await), given[1..]);
        }
    }
}

#[tokio::test]
async fn a_topic_keeps_its_last_256_events_and_whoever_has_seen_none_of_them_is_told_that_it_missed_some()
 {
    let redis = RedisServer::start().await;
    for store in ["memory:", &redis.tcp_url()] {
        let clinic = Program::start("clinic", &hooked(&["--store", store]));
        let looking = Browser::new(clinic.address());
        let ana = signed_in(&clinic, "ana").await;
        let mut stream = looking.open(STATUS).await;
        stream.until(":").await;
        says(&ana, "busy").await;
        let seen = events(stream.until(&at("00:00")).await).remove(0).0;
        drop(stream);
        for number in 0..255 {
            let status = ["offline", "busy", "online"][number.min(2)];
            says(&ana, status).await;
        }
        advance(&looking, 1).await;
        says(&ana, "online").await;
        let mut stream = looking.resume(STATUS, &seen).await;
        let all = events(stream.until(&at("00:01")).await);
        assert_eq!(all.len(), 256);
        assert_eq!(statuses(&all)[..3], ["offline", "busy", "online"]);
        drop(stream);

        advance(&looking, 1).await;
        says(&ana, "busy").await;
        let mut stream = looking.resume(STATUS, &seen).await;
        let kept = events(stream.until(&at("00:02")).await);
        assert_eq!(kept.len(), 257);
        assert_eq!(statuses(&kept)[..3], [GAP, "busy", "online"]);
        // In the place of the one that is gone, whose time nobody knows any more; and of the others none.
        let (gap, gone) = (&kept[0].0, &all[0].0);
        assert_eq!(gone.strip_prefix(&**gap).map(|time| &time[..1]), Some("-"));
        assert_eq!(kept[1..256], all[1..]);
        assert_eq!(statuses(&kept)[256], "busy");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_at_one_process_is_seen_at_the_other_and_streams_end_with_their_process() {
    let two = Two::start().await;
    let [one, other] = &two.clinics;
    let looking = Browser::new(other.address());
    let mut stream = looking.open(STATUS).await;
    stream.until(":").await;
    says(&signed_in(one, "ana").await, "busy").await;
    let seen = stream.until("\"busy\"").await;
    assert!(seen.contains("event: status"), "{seen}");
    other.signal("TERM");
    assert!(stream.rest().await.contains("\"busy\""));
}

#[tokio::test]
async fn notices_come_by_priority_at_their_time_and_a_failed_one_again_but_once() {
    let clinic = alone();
    let (root, pat) = (
        signed_in(&clinic, "root").await,
        signed_in(&clinic, "pat").await,
    );
    let send = async |title: &str, priority: &str, at: Option<&str>| {
        let wish = json!({
            "user_id": "pat", "type": "news", "title": title, "message": "m",
            "priority": priority, "scheduled_for": at,
        });
        root.post("/api/admin/notifications", &[], &wish).await
    };
    let work = async || {
        let done = root.post("/_test/work", &[], &Value::Null).await.json();
        let number = |name: &str| done[name].as_u64().unwrap();
        (number("delivered"), number("retried"), number("dead"))
    };
    assert_eq!(
        told(&send("x", "urgent", None).await),
        refused(422, "INVALID_VALUE")
    );
    assert_eq!(
        told(&send("x", "low", Some("soon")).await),
        refused(422, "INVALID_VALUE")
    );
    for (title, priority) in [
        ("l", "low"),
        ("n1", "normal"),
        ("h", "high"),
        ("n2", "normal"),
    ] {
        assert_eq!(
            send(title, priority, None).await.status,
            StatusCode::ACCEPTED
        );
    }
    send("later", "high", Some("2030-01-01T00:01:00Z")).await;
    let seen = async || {
        let list = pat.get("/api/notifications").await.json();
        let titles = list["notifications"].as_array().unwrap().iter();
        let titles: Vec<String> = titles.map(|one| text(one, "title")).collect();
        (titles.join(" "), list["pending"].as_u64().unwrap())
    };
    assert_eq!(seen().await, (String::new(), 5));
    assert_eq!(work().await, (4, 0, 0));
    assert_eq!(seen().await, ("h n1 n2 l".to_owned(), 1));
    advance(&root, 59).await;
    assert_eq!(work().await, (0, 0, 0));
    advance(&root, 1).await;
    let failing = json!({ "fail": { "notification": 1 } });
    root.post("/_test/fault", &[], &failing).await;
    assert_eq!(work().await, (0, 1, 0));
    advance(&root, 10).await;
    assert_eq!(work().await, (1, 0, 0));
    assert_eq!(seen().await, ("h n1 n2 l later".to_owned(), 0));
    let counters = root.get("/_test/counters").await.json();
    assert_eq!(counters["provider"]["notification_send"], 5);
}

#[tokio::test]
async fn twenty_parallel_notices_are_twenty() {
    let clinic = alone();
    let root = signed_in(&clinic, "root").await;
    let wish =
        json!({ "user_id": "ben", "type": "t", "title": "t", "message": "m", "priority": "low" });
    let sent = (0..20).map(|_| root.post("/api/admin/notifications", &[], &wish));
    for reply in futures_util::future::join_all(sent).await {
        assert_eq!(reply.status, StatusCode::ACCEPTED);
    }
    root.post("/_test/work", &[], &Value::Null).await;
    let ben = signed_in(&clinic, "ben").await;
    let list = ben.get("/api/notifications").await.json();
    assert_eq!(list["notifications"].as_array().unwrap().len(), 20);
}

#[tokio::test]
async fn a_hold_that_ran_out_gives_one_notice_and_a_booking_one() {
    let clinic = alone();
    let guest = Guest::new(&clinic, 1).await;
    guest.pay("a", &wish("e1", "s60", "10:00")).await;
    let paid = guest.pay("b", &wish("e1", "s60", "12:00")).await.json();
    guest.settle(&text(&paid, "payment_id"), "succeeded").await;
    advance(&guest.browser, 600).await;
    let cron = async || {
        let bearer = [("authorization", "Bearer cron_test")];
        let path = "/internal/cron/cleanup-reservations";
        let done = guest.browser.send(Method::POST, path, &bearer, None).await;
        done.json()
    };
    assert_eq!(cron().await, json!({ "released": 1, "notified": 2 }));
    assert_eq!(cron().await, json!({ "released": 0, "notified": 0 }));
    guest.browser.post("/_test/work", &[], &Value::Null).await;
    guest.browser.post("/_test/work", &[], &Value::Null).await;
    let mail = guest.browser.get("/_test/mail").await.json();
    let mut kinds: Vec<String> = mail
        .as_array()
        .unwrap()
        .iter()
        .map(|one| text(one, "type"))
        .collect();
    kinds.sort_unstable();
    assert_eq!(kinds, ["booking_confirmed", "reservation_expired"]);
    let counters = guest.browser.get("/_test/counters").await.json();
    assert_eq!(
        counters["notices"],
        json!({ "booking_confirmed": 1, "reservation_expired": 1, "payment_refunded": 0, "dead": 0 })
    );
}
