//! The index of a user's sessions on Redis: what is live, and nothing else.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tower_keep::session::SessionLayer;

use super::app::{App, clock};
use crate::support::redis::shared;

/// The keys that `pattern` finds.
async fn keys(raw: &mut MultiplexedConnection, pattern: &str) -> Vec<String> {
    let mut ask = redis::cmd("KEYS");
    ask.arg(pattern).query_async(raw).await.unwrap()
}

/// How many sessions each index names, fewest first; a mark for overtaken logins is none.
async fn indexed(raw: &mut MultiplexedConnection) -> Vec<usize> {
    let mut sizes = Vec::new();
    for key in keys(raw, "*:user:*").await {
        let mut ask = redis::cmd("ZRANGE");
        let members: Vec<String> = ask.arg(key).arg(0).arg(-1).query_async(raw).await.unwrap();
        sizes.push(members.iter().filter(|member| *member != "!").count());
    }
    sizes.sort_unstable();
    sizes
}

#[tokio::test]
async fn an_index_names_what_is_live_whatever_happened_to_the_sessions() {
    let clock = clock();
    let server = shared().await;
    let mut raw = server.raw().await;
    let layer = SessionLayer::new(server.store(&clock).await);
    let (app, directory) = (App::new(layer.clone()), layer.directory());
    let browsers: [_; 4] = std::array::from_fn(|_| app.browser());
    let [a, b, c, d] = &browsers;
    for browser in [a, b, c] {
        assert_eq!(browser.status("/login/u1").await, 200);
    }
    assert_eq!(indexed(&mut raw).await, [3]);
    for _ in 0..2 {
        assert_eq!(a.status("/rotate").await, 204);
    }
    let same = [a.copy(), a.copy(), a.copy()];
    let rotations = same.clone().map(|browser| {
        tokio::spawn(async move { (browser.status("/rotate").await, browser.cookie()) })
    });
    for rotation in rotations {
        let (status, cookie) = rotation.await.unwrap();
        if status == 204 {
            a.plant(&cookie.unwrap());
        }
    }
    assert_eq!(a.body("/me").await, "u1");
    assert_eq!(indexed(&mut raw).await, [3], "rotated");

    assert_eq!(b.status("/login/u2").await, 200);
    assert_eq!(indexed(&mut raw).await, [1, 2], "switched");

    let gone = c.copy();
    c.get("/logout").await;
    assert_eq!(gone.status("/rotate").await, 401);
    assert_eq!(
        indexed(&mut raw).await,
        [1, 1],
        "removed, and not rotated back"
    );

    // Over by idle time: the next use of the index forgets it.
    clock.advance(Duration::from_secs(901));
    assert_eq!(d.status("/login/u1").await, 200);
    assert_eq!(directory.list("u1").await.unwrap().len(), 1);
    assert!(directory.list("u2").await.unwrap().is_empty());
    assert_eq!(
        indexed(&mut raw).await,
        [1],
        "an index without a session is none"
    );

    // A thousand that ended unseen, say because the server had no room for them.
    let index = keys(&mut raw, "*:user:*").await;
    let id = d.token()[..21].to_owned();
    let own = keys(&mut raw, &format!("*:{id}?")).await;
    let mut add = redis::cmd("ZADD");
    add.arg(&index[0]);
    for n in 0..1_000 {
        let lost = own[0].replace(&id, &format!("{n:021}"));
        add.arg(4_000_000_000_000_u64).arg(lost);
    }
    let _: () = add.query_async(&mut raw).await.unwrap();
    assert_eq!(directory.list("u1").await.unwrap().len(), 1);
    assert_eq!(indexed(&mut raw).await, [1]);
    assert_eq!(d.body("/me").await, "u1");

    // And nothing stays for ever.
    for key in keys(&mut raw, "*").await {
        let mut ask = redis::cmd("PTTL");
        let left: i64 = ask.arg(&key).query_async(&mut raw).await.unwrap();
        assert!(left > 0, "{key} has no end");
    }
}
