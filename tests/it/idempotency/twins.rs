//! Requests that come twice at once.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http_body_util::Full;
use tokio::sync::Notify;
use tower_keep::SECOND;
use tower_keep::core::IdempotencyOutcome;
use tower_keep::idempotency::{Preset, Twins};

use super::{App, clock, layer, memory, post};
use crate::support::redis::{fresh_prefix, shared};

/// A handler that says when it began and waits until it may go on.
fn gated(layer: tower_keep::idempotency::IdempotencyLayer) -> (App, Arc<Notify>, Arc<Notify>) {
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, wait) = (Arc::clone(&entered), Arc::clone(&go));
    let app = App::with(layer, move |_, run| {
        let (inside, wait) = (Arc::clone(&inside), Arc::clone(&wait));
        async move {
            inside.notify_one();
            wait.notified().await;
            Response::new(Full::from(format!("run {run}")))
        }
    });
    (app, entered, go)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_clicks_over_two_handles_are_one_run() {
    let (server, prefix) = (shared().await, fresh_prefix());
    for twins in [Twins::Reject, Twins::Attach(10 * SECOND)] {
        let (mut apps, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            let layer = layer(server.store_with(&prefix).await).twins(twins);
            apps.push(App::with(
                layer.namespace(&format!("{twins:?}")),
                |_, run| async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Response::new(Full::from(format!("run {run}")))
                },
            ));
        }
        for n in 0..100 {
            sent.push(tokio::spawn(apps[n % 2].future(post("/pay", "k", "{}"))));
        }
        let mut firsts = 0;
        for answer in sent {
            let answer = answer.await.unwrap();
            match answer.outcome() {
                IdempotencyOutcome::First => firsts += 1,
                IdempotencyOutcome::InProgress => {
                    assert_eq!((twins, answer.status.as_u16()), (Twins::Reject, 409));
                    assert_eq!(answer.headers["retry-after"], "1");
                }
                _ => assert_eq!(answer.body, "run 1"),
            }
        }
        assert_eq!(
            (firsts, apps[0].runs() + apps[1].runs()),
            (1, 1),
            "{twins:?}"
        );
    }
}

#[tokio::test]
async fn an_attached_twin_gets_the_same_bytes_without_asking_the_store() {
    let store = shared().await.store(&clock()).await;
    let (app, entered, go) = gated(layer(store.clone()).twins(Twins::Attach(10 * SECOND)));
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    let before = store.commands();
    let twins: Vec<_> = (0..50)
        .map(|_| tokio::spawn(app.future(post("/pay", "k", "{}"))))
        .collect();
    app.post("k", "other")
        .await
        .check_refused(422, "IDEMPOTENCY_KEY_REUSED");
    tokio::task::yield_now().await;
    assert_eq!(store.commands(), before);
    go.notify_one();
    let first = first.await.unwrap();
    for twin in twins {
        let twin = twin.await.unwrap();
        assert_eq!((&twin.body, twin.is_replay()), (&first.body, true));
        assert_eq!(twin.outcome(), IdempotencyOutcome::Attached);
    }
    // One command wrote the answer; its script was new to the server at most once.
    assert!((1..=2).contains(&(store.commands() - before)));
    assert_eq!(app.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_twin_waits_no_longer_than_it_may_and_leaves_the_claim_alone() {
    let (app, entered, go) = gated(layer(memory(&clock())).twins(Twins::Attach(SECOND)));
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    app.post("k", "{}")
        .await
        .check_refused(409, "IDEMPOTENCY_IN_PROGRESS");
    go.notify_one();
    assert_eq!(first.await.unwrap().outcome(), IdempotencyOutcome::First);
    assert!(app.post("k", "{}").await.is_replay());
}

#[tokio::test]
async fn a_twin_of_a_run_that_was_released_runs_itself() {
    let clock = clock();
    let (entered, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (inside, wait) = (Arc::clone(&entered), Arc::clone(&go));
    let app = App::with(
        layer(memory(&clock)).twins(Twins::Attach(10 * SECOND)),
        move |_, run| {
            let (inside, wait) = (Arc::clone(&inside), Arc::clone(&wait));
            async move {
                if run == 1 {
                    inside.notify_one();
                    wait.notified().await;
                }
                let status = if run == 1 { 500 } else { 201 };
                Response::builder()
                    .status(status)
                    .body(Full::default())
                    .unwrap()
            }
        },
    );
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    let twin = tokio::spawn(app.future(post("/pay", "k", "{}")));
    tokio::task::yield_now().await;
    go.notify_one();
    assert_eq!(first.await.unwrap().status, 500);
    assert_eq!((twin.await.unwrap().status.as_u16(), app.runs()), (201, 2));
}

#[tokio::test(start_paused = true)]
async fn more_than_128_waiters_on_one_key_are_refused() {
    let (app, entered, go) = gated(layer(memory(&clock())).twins(Twins::Attach(10 * SECOND)));
    let first = tokio::spawn(app.future(post("/pay", "k", "{}")));
    entered.notified().await;
    let twins: Vec<_> = (0..130)
        .map(|_| tokio::spawn(app.future(post("/pay", "k", "{}"))))
        .collect();
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    go.notify_one();
    first.await.unwrap();
    let mut refused = 0;
    for twin in twins {
        refused += usize::from(twin.await.unwrap().status == 409);
    }
    assert_eq!((refused, app.runs()), (2, 1));
}

#[tokio::test]
async fn a_form_sent_twice_leads_twice_to_one_page_also_across_processes() {
    use tower_keep::idempotency::DerivedKey;
    let (server, prefix) = (shared().await, fresh_prefix());
    let key = DerivedKey::fields("book")
        .text("event")
        .email("mail")
        .instant("start");
    let form = |body: &'static str| {
        let request = http::Request::post("/book");
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        request.body(Full::from(body)).unwrap()
    };
    let mut apps = Vec::new();
    for _ in 0..2 {
        let layer = layer(server.store_with(&prefix).await);
        let layer = layer
            .preset(Preset::Form)
            .derive(key.clone())
            .secret([7; 32]);
        apps.push(App::with(layer, |_, run| async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            let answer = Response::builder()
                .status(303)
                .header("location", format!("/pay/{run}"));
            answer.body(Full::default()).unwrap()
        }));
    }
    let (one, two) = tokio::join!(
        apps[0].send(form(
            "event=e1&mail=A.b%40x.test&start=2030-01-02T10:00:00Z"
        )),
        apps[1].send(form(
            "start=2030-01-02T12:00:00%2B02:00&event=%20e1&mail=a.b@X.test"
        )),
    );
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (303, 303));
    assert_eq!(one.headers["location"], two.headers["location"]);
    assert_eq!(apps[0].runs() + apps[1].runs(), 1);
    let other = apps[0]
        .send(form(
            "event=e1&mail=a_b%40x.test&start=2030-01-02T10:00:00Z",
        ))
        .await;
    assert!(!other.is_replay(), "another address is another key");
}
