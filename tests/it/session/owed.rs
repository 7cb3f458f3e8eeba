//! Revocations that Redis could not do when they were asked: they are owed, and made up for.

use std::time::{Duration, Instant};

use tower_keep::core::ManualClock;
use tower_keep::session::SessionLayer;

use super::app::{App, Browser, clock};
use super::redis::two_nodes;
use crate::rate_limit::metered::Metered;
use crate::support::{Proxy, RedisServer};

const GAUGE: &str = "keep_session_pending_revocations";

/// Two processes on one server, of which one can be cut off from it.
struct Nodes {
    /// Behind the proxy.
    app: App,
    node: App,
    proxy: Proxy,
    clock: ManualClock,
    metered: Metered,
    server: RedisServer,
}

impl Nodes {
    async fn start() -> Self {
        let metered = Metered::start();
        let server = RedisServer::start().await;
        let proxy = Proxy::before(server.address()).await;
        let clock = clock();
        let [store, elsewhere] = two_nodes(&server, &proxy, &clock).await;
        Self {
            app: App::new(SessionLayer::new(store)),
            node: App::new(SessionLayer::new(elsewhere)),
            proxy,
            clock,
            metered,
            server,
        }
    }
}

async fn all_is_made_up_for(metered: &Metered) {
    let begun = Instant::now();
    while metered.value(GAUGE) != Some(0.0) {
        assert!(begun.elapsed() < Duration::from_secs(30), "still owed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn dies(browser: &Browser) {
    let begun = Instant::now();
    while browser.body("/maybe").await != "nobody" {
        assert!(begun.elapsed() < Duration::from_secs(30), "it lives on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_revocation_is_made_up_for_although_the_session_that_asked_is_over_by_then() {
    let nodes = Nodes::start().await;
    let Nodes {
        app,
        node,
        proxy,
        clock,
        metered,
        ..
    } = &nodes;
    let login = async |app: &App, user: &str| {
        let browser = app.browser();
        assert_eq!(browser.status(&format!("/login/{user}")).await, 200);
        browser
    };
    // Of each user one session asks, and another one is to end: its copy is used on the node that is not cut off.
    let others = (login(app, "u1").await, login(app, "u1").await.at(node));
    let all = (login(app, "u2").await, login(app, "u2").await.at(node));
    // This one came from elsewhere and was only read here.
    let read = login(node, "u3").await.at(app);
    assert_eq!(read.body("/me").await, "u3");
    let one = (read, login(node, "u3").await);
    let own = login(app, "u4").await;
    let thief = own.copy().at(node);
    let listed: Vec<serde_json::Value> = serde_json::from_str(&one.1.body("/list").await).unwrap();
    let target = listed.iter().find(|one| one["current"] == true).unwrap()["id"].clone();
    // A visitor without a login, and one whose secret was never right: nothing is known of them.
    let (nobody, forger) = (app.browser(), app.browser());
    nobody.get("/set/a/1").await;
    let innocent = login(app, "u5").await.at(node);
    let (name, token) = innocent
        .cookie()
        .unwrap()
        .split_once('=')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    forger.plant(&format!("{name}={}{}", &token[..22], "A".repeat(32)));

    proxy.refuse(true);
    assert_eq!(others.0.status("/revoke_others").await, 503);
    assert_eq!(all.0.status("/revoke_all").await, 503);
    let path = format!("/revoke/{}", target.as_str().unwrap());
    assert_eq!(one.0.status(&path).await, 503);
    for asks in [&own, &nobody] {
        assert_eq!(asks.status("/logout").await, 503);
    }
    assert_eq!(forger.status("/revoke_all").await, 503);
    assert_eq!(metered.value(GAUGE), Some(6.0));
    // The secret changes twice, so that the one that asked is not even the last before it.
    for _ in 0..2 {
        assert_eq!(thief.status("/rotate").await, 204);
    }
    for _ in 0..2 {
        clock.advance(Duration::from_secs(480));
        for (browser, user) in [
            (&others.1, "u1"),
            (&all.1, "u2"),
            (&one.1, "u3"),
            (&thief, "u4"),
            (&innocent, "u5"),
        ] {
            assert_eq!(browser.body("/me").await, user, "the other node sees it");
        }
    }
    proxy.refuse(false);
    for browser in [&others.1, &all.1, &one.1, &thief] {
        dies(browser).await;
    }
    all_is_made_up_for(metered).await;
    assert_eq!(innocent.body("/me").await, "u5");
}

#[tokio::test]
async fn a_revocation_that_is_refused_at_once_is_owed_too() {
    let server = RedisServer::start().await;
    let store = server.store_with("refused").await;
    let app = App::new(SessionLayer::new(store));
    let (browser, other) = (app.browser(), app.browser());
    browser.get("/login/u1").await;
    other.get("/login/u2").await;
    let thief = browser.copy();
    let mut raw = server.raw().await;
    let rights = async |raw: &mut redis::aio::MultiplexedConnection, rights: &str| {
        let mut set = redis::cmd("ACL");
        set.arg(&["SETUSER", "default", rights]);
        set.exec_async(raw).await.unwrap();
    };
    rights(&mut raw, "-@write").await;
    assert_eq!(browser.status("/logout").await, 503);
    assert_eq!(thief.status("/me").await, 503, "it still has to end");
    rights(&mut raw, "+@all").await;
    let begun = Instant::now();
    let mut reply = thief.get("/me").await;
    while reply.status == 503 && begun.elapsed() < Duration::from_secs(30) {
        reply = thief.get("/me").await;
    }
    assert_eq!((reply.status.as_u16(), &*reply.body), (200, "nobody"));
    assert_eq!(other.body("/me").await, "u2");
}

#[tokio::test]
async fn a_revocation_that_was_done_unheard_ends_nothing_that_began_after_it() {
    let nodes = Nodes::start().await;
    let Nodes {
        app,
        node,
        proxy,
        clock,
        metered,
        ..
    } = &nodes;
    let paths = [("/revoke_all", "u1"), ("/revoke_others", "u2")];
    let mut ends = Vec::new();
    for (path, user) in paths {
        let (asks, old) = (app.browser(), node.browser());
        for browser in [&asks, &old] {
            assert_eq!(browser.status(&format!("/login/{user}")).await, 200);
        }
        ends.push((path, user, asks, old));
    }
    proxy.swallow_replies(true);
    for (path, _, asks, _) in &ends {
        assert_eq!(asks.status(path).await, 503);
    }
    assert_eq!(metered.value(GAUGE), Some(2.0));
    clock.advance(Duration::from_secs(2));
    let mut began = Vec::new();
    for (_, user, asks, _) in &ends {
        // Whoever was told to try again logs in anew, also where the old session is asked along.
        let anew = match *user {
            "u2" => asks.copy().at(node),
            _ => node.browser(),
        };
        assert_eq!(anew.status(&format!("/login/{user}")).await, 200);
        began.push(anew);
    }
    proxy.swallow_replies(false);
    proxy.cut();
    all_is_made_up_for(metered).await;
    for ((path, user, _, old), anew) in ends.iter().zip(&began) {
        assert_eq!(anew.body("/me").await, *user, "{path} is older");
        assert_eq!(old.body("/me").await, "nobody", "{path}");
    }
}

#[tokio::test]
async fn who_had_ended_before_it_asked_ends_nobody_else_later() {
    let nodes = Nodes::start().await;
    let Nodes {
        app,
        node,
        proxy,
        clock,
        metered,
        ..
    } = &nodes;
    let mut told = Vec::new();
    for (user, end) in [("u1", "/logout"), ("u2", "/rotate"), ("u3", "/logout")] {
        let (ended, stays) = (app.browser(), node.browser());
        for browser in [&ended, &stays] {
            assert_eq!(browser.status(&format!("/login/{user}")).await, 200);
        }
        let thief = ended.copy();
        assert!(matches!(ended.at(node).status(end).await, 200 | 204));
        told.push((user, thief, stays));
    }
    clock.advance(Duration::from_secs(5));
    proxy.refuse(true);
    let asked = ["/revoke_all", "/revoke_others", "/revoke_others"];
    for ((user, thief, _), path) in told.iter().zip(asked) {
        assert_eq!(thief.status(path).await, 503, "{user}");
    }
    assert_eq!(metered.value(GAUGE), Some(3.0));
    proxy.refuse(false);
    all_is_made_up_for(metered).await;
    for (user, _, stays) in &told {
        assert_eq!(stays.body("/me").await, *user);
    }
}

#[tokio::test]
async fn who_asks_again_after_a_thief_took_the_session_is_believed_as_when_it_asked_first() {
    let nodes = Nodes::start().await;
    let Nodes {
        app,
        node,
        proxy,
        clock,
        metered,
        ..
    } = &nodes;
    let asks = app.browser();
    assert_eq!(asks.status("/login/u1").await, 200);
    let thief = asks.copy().at(node);
    proxy.refuse(true);
    assert_eq!(asks.status("/revoke_all").await, 503);
    clock.advance(Duration::from_secs(2));
    assert_eq!(thief.status("/rotate").await, 204);
    clock.advance(Duration::from_secs(3));
    assert_eq!(asks.status("/revoke_all").await, 503);
    assert_eq!(metered.value(GAUGE), Some(1.0));
    proxy.refuse(false);
    all_is_made_up_for(metered).await;
    assert_eq!(thief.body("/maybe").await, "nobody");
    let ended = metered.counter("keep_session_ended_total{cause=revoked}");
    assert_eq!(ended, 1, "what is made up for is counted");
}

#[tokio::test]
async fn a_logout_that_is_made_up_for_leaves_the_login_that_came_after_it() {
    let nodes = Nodes::start().await;
    let Nodes {
        app,
        node,
        proxy,
        clock,
        metered,
        ..
    } = &nodes;
    let asks = app.browser();
    assert_eq!(asks.status("/login/u1").await, 200);
    // A client that keeps its token, whatever the answer says: the login goes on with the same session.
    let again = asks.copy().at(node);
    proxy.refuse(true);
    assert_eq!(asks.status("/logout").await, 503);
    clock.advance(Duration::from_secs(5));
    let before = again.token();
    assert_eq!(again.status("/login/u1").await, 200);
    assert_eq!(before[..21], again.token()[..21]);
    proxy.refuse(false);
    all_is_made_up_for(metered).await;
    assert_eq!(again.body("/me").await, "u1");
}

#[tokio::test]
async fn a_session_in_the_middle_of_its_move_is_believed_and_ended() {
    let nodes = Nodes::start().await;
    let Nodes {
        app,
        node,
        proxy,
        clock,
        metered,
        ..
    } = &nodes;
    let mut raw = nodes.server.raw().await;
    for path in ["/logout", "/revoke_all"] {
        let (asks, other) = (app.browser(), node.browser());
        for browser in [&asks, &other] {
            assert_eq!(browser.status("/login/u1").await, 200);
        }
        let left = asks.copy();
        super::cluster::freeze(&asks, clock, &mut raw).await;
        clock.advance(Duration::from_secs(2));
        proxy.refuse(true);
        assert_eq!(asks.status(path).await, 503);
        proxy.refuse(false);
        all_is_made_up_for(metered).await;
        clock.advance(Duration::from_secs(5));
        assert_eq!(left.body("/maybe").await, "nobody", "{path}");
        let stays = path == "/logout";
        assert_eq!(other.body("/maybe").await == "u1", stays, "{path}");
    }
}

#[tokio::test]
async fn a_revocation_that_is_asked_for_again_ends_what_began_in_between() {
    let nodes = Nodes::start().await;
    let Nodes {
        app,
        node,
        proxy,
        clock,
        metered,
        ..
    } = &nodes;
    let (asks, between) = (app.browser(), node.browser());
    assert_eq!(asks.status("/login/u1").await, 200);
    proxy.refuse(true);
    assert_eq!(asks.status("/revoke_all").await, 503);
    clock.advance(Duration::from_secs(2));
    assert_eq!(between.status("/login/u1").await, 200);
    clock.advance(Duration::from_secs(2));
    assert_eq!(asks.status("/revoke_all").await, 503);
    assert_eq!(metered.value(GAUGE), Some(1.0));
    proxy.refuse(false);
    all_is_made_up_for(metered).await;
    assert_eq!(between.body("/me").await, "nobody");
}
