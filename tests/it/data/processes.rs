//! Caches, counters and one-time values in two processes on one server.

use std::collections::BTreeSet;

use tower_keep::data::cache::Cache;
use tower_keep::data::counter::Counter;
use tower_keep::data::once::{Once, Progress};
use tower_keep::data::topic::Topic;
use tower_keep::ttl;

use crate::lock::processes::Steps;
use crate::support::redis::{fresh_prefix, shared};

/// What a process says until it is done, by kind.
fn all_of(process: &Steps) -> (Vec<u64>, Vec<u64>) {
    let (mut took, mut saved) = (Vec::new(), Vec::new());
    loop {
        let (said, what) = process.next();
        match &said[..] {
            "took" => took.push(what.parse().unwrap()),
            "saved" => saved.push(what.parse().unwrap()),
            _ => return (took, saved),
        }
    }
}

#[tokio::test]
async fn two_processes_count_everything_take_each_token_once_and_give_each_version_once() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let store = server.store_with(&prefix).await;
    let tokens: Once<u64> = Once::new(store.clone(), "token", ttl::VERIFICATION);
    for number in 0..100 {
        let token = format!("a token of the test {number}");
        tokens.put(token, &number).await.unwrap();
    }
    let url = server.url();
    let arguments = ["share", &url, &prefix, "-"];
    let processes = [Steps::start(&arguments), Steps::start(&arguments)];
    let [one, two] = processes.each_ref().map(all_of);
    let took: Vec<u64> = [one.0, two.0].concat();
    assert_eq!(took.len(), 100);
    assert_eq!(BTreeSet::from_iter(took).len(), 100);
    let saved: Vec<u64> = [one.1, two.1].concat();
    let versions = BTreeSet::from_iter(saved.iter().copied());
    assert_eq!(versions.len(), saved.len(), "a version was given twice");
    let forms: Progress<u64> = Progress::new(store.clone(), "form", ttl::FORM_PROGRESS);
    let last = forms.load("k").await.unwrap().unwrap().version;
    assert_eq!(
        (versions.len() as u64, versions.last()),
        (last, Some(&last))
    );
    let metrics = Counter::new(store, "metrics");
    let counts = metrics.values(["direct", "buffered"]).await.unwrap();
    assert_eq!(counts, [1_000, 1_000]);
}

#[tokio::test]
async fn a_loader_killed_in_one_process_is_replaced_in_another_and_what_changes_is_seen_in_both() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let url = server.url();
    let mut hanging = Steps::start(&["load", &url, &prefix, "hang"]);
    hanging.until("loading");
    hanging.kill();
    let arguments = ["load", &url, &prefix, "-"];
    let one = Steps::start(&arguments);
    one.until("loading");
    let value = one.until("got");
    // What one has loaded the other does not load.
    let two = Steps::start(&arguments);
    assert_eq!(two.next(), ("got".to_owned(), value));
    let users: Cache<String, String> =
        Cache::new(server.store_with(&prefix).await, "user", ttl::USER);
    let key = "u1".to_owned();
    users.put(&key, "changed".to_owned()).await.unwrap();
    for process in [&one, &two] {
        assert_eq!(process.until("reads"), "changed");
    }
    users.remove(&key).await;
    for process in [&one, &two] {
        assert_eq!(process.until("reads"), "-");
    }
}

#[tokio::test]
async fn two_processes_that_follow_one_topic_read_the_same_events_in_the_same_order() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let url = server.url();
    let processes = ["a", "b"].map(|own| Steps::start(&["tell", &url, &prefix, own]));
    for process in &processes {
        process.until("listens");
    }
    let topic: Topic<String> = Topic::new(server.store_with(&prefix).await, "expert");
    topic.publish("e1", &"go".to_owned()).await.unwrap();
    let read = |process: &Steps| -> Vec<String> {
        let events = (0..200).map(|_| match process.next() {
            (said, value) if said == "read" => value,
            (said, _) => panic!("{said}"),
        });
        events.collect()
    };
    let [one, two] = processes.each_ref().map(read);
    assert_eq!(one, two);
    for own in ["a", "b"] {
        let numbers = one.iter().filter_map(|value| value.strip_prefix(own));
        let numbers: Vec<usize> = numbers.map(|number| number.parse().unwrap()).collect();
        assert_eq!(numbers, (0..100).collect::<Vec<_>>());
    }
}
