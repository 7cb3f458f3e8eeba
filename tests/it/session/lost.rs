//! Every call of every path, lost on its way to the store or back: 503 and whole, or not at all.

use tower_keep::core::StoreFailure;

use super::app::Lost;
use super::cancelled::{BEFORE, Legal, World, found};

/// What may be found after `path` with a lost reply, besides what was before.
const PATHS: [(&str, Option<Legal>); 19] = [
    ("/me", None),
    ("/user", None),
    ("/get/n", None),
    ("/list", None),
    ("/role/admin", None),
    ("/fresh/60", None),
    ("/expires", None),
    ("/set/n/2", Some(("u1", "2", "u1", 2, 0))),
    ("/add/n/1", Some(("u1", "2", "u1", 2, 0))),
    ("/update/n", Some(("u1", "2", "u1", 2, 0))),
    ("/remove/n", Some(("u1", "null", "u1", 2, 0))),
    ("/clear", Some(("u1", "null", "u1", 2, 0))),
    ("/rotate", Some(("nobody", "null", "u1", 2, 0))),
    ("/login/u1", Some(("nobody", "null", "u1", 2, 0))),
    ("/login/u2", Some(("nobody", "null", "u1", 1, 1))),
    ("/login/u1?others", Some(("nobody", "null", "nobody", 1, 0))),
    ("/logout", Some(("nobody", "null", "u1", 1, 0))),
    ("/revoke_others", Some(("u1", "1", "nobody", 1, 0))),
    ("/revoke_all", Some(("nobody", "null", "nobody", 0, 0))),
];

/// Reads and buffered writes go on as if there were no session; nothing else does.
fn goes_on_where_open(path: &str) -> bool {
    [
        "/me",
        "/get/n",
        "/expires",
        "/set/n/2",
        "/add/n/1",
        "/remove/n",
        "/clear",
    ]
    .contains(&path)
}

async fn lose_each_call(failure: StoreFailure, what: Lost) {
    for (path, done) in PATHS {
        let mut lost = 0;
        loop {
            let world = World::new(failure).await;
            let cookie = world.browser.cookie().unwrap();
            world.store.lose(what, lost);
            let reply = world.browser.get(path).await;
            if !world.store.has_lost() {
                assert!(lost > 0, "{path} asks the store");
                break;
            }
            let context = format!("{path}, call {lost}, {what:?}, {failure:?}: {reply:?}");
            lost += 1;
            let status = reply.status.as_u16();
            if failure == StoreFailure::Closed {
                assert_eq!(
                    (status, reply.field("retry-after").as_str()),
                    (503, "7"),
                    "{context}"
                );
                assert_eq!(reply.code(), "STORE_UNAVAILABLE", "{context}");
            } else if goes_on_where_open(path) {
                assert!(status < 300, "{context}");
            } else {
                assert!([401, 503].contains(&status), "{context}");
            }
            let set_cookie = reply.field("set-cookie");
            assert_eq!(reply.removes_cookie(), path == "/logout", "{context}");
            assert!(set_cookie.is_empty() || reply.removes_cookie(), "{context}");
            // The thief of a cookie that was to be removed, or the client that kept it.
            world.browser.plant(&cookie);
            let mut legal = vec![BEFORE];
            if what == Lost::Reply {
                legal.extend(done);
            }
            let now = world.look().await;
            assert!(found(&legal).contains(&now), "{context}: {now:?}");
            world.clock.advance(std::time::Duration::from_secs(1));
            assert_eq!(world.browser.status("/login/u1").await, 200, "{context}");
            assert_eq!(world.browser.body("/me").await, "u1", "{context}");
        }
    }
}

#[tokio::test]
async fn a_call_that_never_came_to_the_store_is_503_and_changes_nothing() {
    lose_each_call(StoreFailure::Closed, Lost::Request).await;
}

#[tokio::test]
async fn a_call_whose_answer_is_lost_is_503_and_done_whole_or_not_at_all() {
    lose_each_call(StoreFailure::Closed, Lost::Reply).await;
}

#[tokio::test]
async fn an_open_layer_goes_on_without_a_session_whatever_call_is_lost() {
    for what in [Lost::Request, Lost::Reply] {
        lose_each_call(StoreFailure::Open, what).await;
    }
}
