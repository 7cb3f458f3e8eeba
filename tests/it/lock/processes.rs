//! Two processes and a resource that compares fences, with holders paused past their lease.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use tower_keep::data::lock::Lock;

use crate::support::launch::signal;
use crate::support::program;
use crate::support::redis::{fresh_prefix, shared};

/// A process that says what it does.
pub struct Steps {
    child: Child,
    said: Receiver<(String, String)>,
}

impl Steps {
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = program::command("data_steps", arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (tell, said) = channel();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let (step, what) = line.split_once(' ').unwrap();
                if tell.send((step.to_owned(), what.to_owned())).is_err() {
                    break;
                }
            }
        });
        Self { child, said }
    }

    /// The next thing it says within 30 s.
    pub fn next(&self) -> (String, String) {
        self.said
            .recv_timeout(Duration::from_secs(30))
            .expect("it says something within 30 s")
    }

    /// Waits until it says `step`; returns what of.
    pub fn until(&self, step: &str) -> String {
        loop {
            let (said, what) = self.next();
            if said == step {
                return what;
            }
        }
    }

    /// What it has said and nobody has read.
    pub fn rest(&self) -> Vec<(String, String)> {
        self.said.try_iter().collect()
    }

    pub fn signal(&self, name: &str) {
        signal(name, &[self.child.id().to_string()]);
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stops `process` while it holds the lock; returns its fence.
async fn stop_holding(process: &Steps, lock: &Lock) -> u64 {
    loop {
        process.rest();
        let fence: u64 = process.until("held").parse().unwrap();
        process.signal("STOP");
        // On a busy machine it may have let go before it was stopped.
        let held = lock.inspect("k").await.unwrap();
        if held.is_some_and(|held| held.fence.0 == fence) {
            return fence;
        }
        process.signal("CONT");
    }
}

#[tokio::test]
async fn a_holder_paused_past_its_lease_is_told_and_its_late_writes_are_known_by_their_fence() {
    let (server, prefix) = (shared().await, fresh_prefix());
    let lock = Lock::new(server.store_with(&prefix).await, "payment");
    let url = server.url();
    let arguments = ["hold", &url, &prefix, "-"];
    let (one, two) = (Steps::start(&arguments), Steps::start(&arguments));
    // Each round one process is stopped while it holds, and the other goes on.
    for (paused, other) in [(&one, &two), (&two, &one), (&one, &two)] {
        let stale = stop_holding(paused, &lock).await;
        other.rest();
        // The resource sees a higher fence: from here on it refuses the stale one.
        let fence: u64 = loop {
            let fence = other.until("held").parse().unwrap();
            if fence > stale {
                break fence;
            }
        };
        paused.rest();
        paused.signal("CONT");
        let mut late = Vec::new();
        let lost: u64 = loop {
            let (said, what) = paused.next();
            match &said[..] {
                "lost" => break what.parse().unwrap(),
                _ => late.push((said, what.parse::<u64>().unwrap())),
            }
        };
        assert_eq!(lost, stale);
        // At most the one write that was under way when it was stopped, and the resource knows it by its fence.
        assert!(late.len() <= 1, "{late:?}");
        assert!(
            late.iter()
                .all(|(said, own)| said == "write" && *own < fence),
            "{late:?}"
        );
    }
}

#[tokio::test]
async fn holders_in_two_processes_never_overlap() {
    let (url, prefix) = (shared().await.url(), fresh_prefix());
    let arguments = ["hold", &url, &prefix, "-"];
    let (one, two) = (Steps::start(&arguments), Steps::start(&arguments));
    // All writes of both by fence: each fence belongs to one process, and was written under by no other.
    let mut of = std::collections::HashMap::new();
    for (name, process) in [("one", &one), ("two", &two)] {
        for _ in 0..2 {
            let fence: u64 = process.until("held").parse().unwrap();
            assert_eq!(of.insert(fence, name), None);
        }
    }
    assert_eq!(of.len(), 4);
}
