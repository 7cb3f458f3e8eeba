//! A reply that is lost on a cut link: what would be done twice is an error and done once at most, what is known again is
//! asked for once more.

use tower_keep::SECOND;
use tower_keep::backend::redis::RedisStore;
use tower_keep::data::cache::Cache;
use tower_keep::data::counter::{Counter, Increment};
use tower_keep::data::once::{Expect, Once, Progress};
use tower_keep::data::topic::Topic;
use tower_keep::ttl;

use crate::support::Proxy;
use crate::support::redis::{fresh_prefix, shared};

/// A link that can be cut, and the store at its far end by another one.
async fn two_ways() -> (Proxy, RedisStore, RedisStore) {
    let (server, prefix) = (shared().await, fresh_prefix());
    let proxy = Proxy::before(server.address()).await;
    let builder = RedisStore::builder(&format!("redis://{}/", proxy.address()));
    let near = builder.prefix(&prefix).timeout(5 * SECOND).open();
    (proxy, near.await.unwrap(), server.store_with(&prefix).await)
}

#[tokio::test]
async fn a_plain_increment_whose_reply_was_lost_is_an_error_and_one_with_an_event_counts_once() {
    let (proxy, near, far) = two_ways().await;
    let (metrics, seen) = (Counter::new(near, "m"), Counter::new(far, "m"));
    let with_event = |event| Increment::new("e", 1, ttl::METRIC).once(event);
    // The server knows the script from now on.
    metrics.incr("warm", 1, ttl::METRIC).await.unwrap();
    proxy.cut_at_next_reply();
    assert!(metrics.incr("p", 1, ttl::METRIC).await.is_err());
    assert!(seen.value("p").await.unwrap() <= 1);
    metrics.incr("warm", 1, ttl::METRIC).await.unwrap();
    // One without an event among others is none.
    proxy.cut_at_next_reply();
    let mixed = [Increment::new("q", 1, ttl::METRIC), with_event("a")];
    assert!(metrics.apply(mixed).await.is_err());
    assert!(seen.value("q").await.unwrap() <= 1);
    metrics.reset("e").await.unwrap();
    metrics.incr("warm", 1, ttl::METRIC).await.unwrap();
    proxy.cut_at_next_reply();
    let counts = metrics.apply([with_event("b")]).await.unwrap();
    assert_eq!(counts[0].value, 1);
    assert_eq!(seen.value("e").await.unwrap(), 1);
}

#[tokio::test]
async fn a_publication_whose_reply_was_lost_is_an_error_and_seen_once_at_most() {
    let (proxy, near, far) = two_ways().await;
    let (topic, seen): (Topic<u8>, Topic<u8>) = (Topic::new(near, "t"), Topic::new(far, "t"));
    let first = topic.publish("k", &1).await.unwrap();
    proxy.cut_at_next_reply();
    assert!(topic.publish("k", &2).await.is_err());
    seen.publish("k", &3).await.unwrap();
    let mut feed = seen.subscribe_after("k", first).await.unwrap();
    let mut twos = 0;
    while feed.next().await.unwrap().into_value().unwrap() == 2 {
        twos += 1;
    }
    assert!(twos <= 1, "{twos}");
}

#[tokio::test]
async fn what_is_put_or_saved_and_not_answered_for_is_an_error_and_not_somebody_elses() {
    let (proxy, near, _far) = two_ways().await;
    let states: Once<u8> = Once::new(near.clone(), "oauth", ttl::OAUTH_STATE);
    let forms: Progress<u8> = Progress::new(near.clone(), "form", ttl::FORM_PROGRESS);
    let users: Cache<u8, u8> = Cache::new(near, "user", ttl::USER);
    states.put("a-token-to-begin-with", &1).await.unwrap();
    proxy.cut_at_next_reply();
    assert!(states.put("a-token-of-16-bytes", &1).await.is_err());
    // Whoever asks again may be told that it is there.
    states.put("a-token-of-16-bytes", &1).await.unwrap();
    forms.save("warm", &1, Expect::Absent).await.unwrap();
    proxy.cut_at_next_reply();
    assert!(forms.save("k", &1, Expect::Absent).await.is_err());
    forms.save("k", &1, Expect::Any).await.unwrap();
    users.put(&1, 1).await.unwrap();
    proxy.cut_at_next_reply();
    assert!(users.put(&2, 2).await.is_err());
}
