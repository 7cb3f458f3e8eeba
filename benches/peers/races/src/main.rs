//! Five races of session layers, each provoked on purpose and judged from outside, over cookies: the table it prints is
//! `baseline/session-races.md`.

mod keep;
mod peers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// Where handlers wait until they may answer.
#[derive(Clone)]
pub struct Gate {
    waiting: Arc<AtomicUsize>,
    open: Arc<Semaphore>,
}

impl Gate {
    fn new() -> Self {
        Self {
            waiting: Arc::default(),
            open: Arc::new(Semaphore::new(0)),
        }
    }

    pub async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let permit = self.open.acquire().await.expect("the gate stays");
        permit.forget();
    }

    async fn has(&self, many: usize) {
        while self.waiting.load(Ordering::SeqCst) < many {
            tokio::task::yield_now().await;
        }
    }
}

/// A session layer: two nodes on one store, whose reads can be made to fail.
pub struct Subject {
    pub name: &'static str,
    pub nodes: [Router; 2],
    pub gate: Gate,
    pub reads_fail: Arc<AtomicBool>,
}

#[derive(Clone, Default)]
struct Browser(BTreeMap<String, String>);

struct Reply {
    status: StatusCode,
    body: String,
    cookies: Vec<String>,
}

impl Browser {
    async fn send(&self, node: &Router, path: &str) -> Reply {
        let cookies: Vec<String> = self.0.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mut request = Request::get(path);
        if !cookies.is_empty() {
            request = request.header(header::COOKIE, cookies.join("; "));
        }
        let request = request.body(Body::empty()).expect("a request");
        let response = node.clone().oneshot(request).await.expect("an answer");
        let (parts, body) = response.into_parts();
        let cookies = parts.headers.get_all(header::SET_COOKIE).iter();
        let cookies = cookies.filter_map(|line| Some(line.to_str().ok()?.to_owned()));
        let body = body.collect().await.map(|body| body.to_bytes());
        Reply {
            status: parts.status,
            cookies: cookies.collect(),
            body: String::from_utf8_lossy(&body.unwrap_or_default()).into_owned(),
        }
    }

    fn keep(&mut self, reply: &Reply) {
        for line in &reply.cookies {
            let pair = line.split(';').next().unwrap_or_default();
            let Some((name, value)) = pair.split_once('=') else {
                continue;
            };
            let is_gone = value.is_empty() || line.contains("Max-Age=0");
            if is_gone {
                self.0.remove(name);
            } else {
                self.0.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    async fn get(&mut self, node: &Router, path: &str) -> Reply {
        let reply = self.send(node, path).await;
        self.keep(&reply);
        reply
    }

    /// Who it is, without taking over what the answer sets.
    async fn me(&self, node: &Router) -> String {
        self.send(node, "/me").await.body
    }
}

async fn logged_in(subject: &Subject) -> Browser {
    let mut browser = Browser::default();
    browser.get(&subject.nodes[0], "/login").await;
    assert_eq!(
        browser.me(&subject.nodes[0]).await,
        "u1",
        "{}",
        subject.name
    );
    browser
}

fn spawn(
    subject: &Subject,
    browser: &Browser,
    path: &'static str,
) -> tokio::task::JoinHandle<Reply> {
    let (node, browser) = (subject.nodes[0].clone(), browser.clone());
    tokio::spawn(async move { browser.send(&node, path).await })
}

async fn lost_update(subject: &Subject) -> String {
    let browser = logged_in(subject).await;
    let both = ["/slow/a", "/slow/b"].map(|path| spawn(subject, &browser, path));
    subject.gate.has(2).await;
    subject.gate.open.add_permits(2);
    for one in both {
        one.await.expect("an answer");
    }
    let mut kept = 0;
    for path in ["/get/a", "/get/b"] {
        kept += u32::from(browser.send(&subject.nodes[0], path).await.body == "1");
    }
    format!("{kept} of 2 kept")
}

async fn revival(subject: &Subject) -> String {
    let browser = logged_in(subject).await;
    let in_flight = spawn(subject, &browser, "/slow/w");
    subject.gate.has(1).await;
    let left = browser.send(&subject.nodes[0], "/logout").await;
    assert!(left.status.is_success());
    subject.gate.open.add_permits(1);
    let late = in_flight.await.expect("an answer");
    let mut after = browser.clone();
    after.keep(&late);
    let alive = [
        browser.me(&subject.nodes[0]).await,
        after.me(&subject.nodes[0]).await,
    ];
    let is_dead = alive.iter().all(|who| who == "nobody");
    if is_dead { "dead" } else { "**alive again**" }.to_owned()
}

async fn rotation_and_5xx(subject: &Subject) -> String {
    let old = logged_in(subject).await;
    let mut browser = old.clone();
    let failed = browser.get(&subject.nodes[0], "/rotate/fail").await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
    let now = browser.me(&subject.nodes[0]).await;
    let before = old.me(&subject.nodes[0]).await;
    let has_new = browser.0 != old.0;
    match (&*now, &*before, has_new) {
        ("u1", "nobody", true) => "new cookie good, old dead".to_owned(),
        ("u1", "u1", false) => "not rotated, still logged in".to_owned(),
        ("nobody", ..) => "**logged out**".to_owned(),
        _ => "**both cookies good**".to_owned(),
    }
}

async fn rotation_and_disconnect(subject: &Subject) -> String {
    let old = logged_in(subject).await;
    // The answer is on its way and never arrives.
    let lost = old.send(&subject.nodes[0], "/rotate/ok").await;
    let mut new = old.clone();
    new.keep(&lost);
    let good = [&old, &new].map(|browser| browser.me(&subject.nodes[0]));
    let [before, after] = good;
    let (before, after) = (before.await == "u1", after.await == "u1");
    // The client goes away while the handler runs.
    let client = logged_in(subject).await;
    let running = spawn(subject, &client, "/rotate/wait");
    subject.gate.has(1).await;
    running.abort();
    let _ = running.await;
    let still = client.me(&subject.nodes[0]).await == "u1";
    let late = if before && after {
        "**both cookies good**"
    } else {
        "one cookie good"
    };
    let early = if still {
        "not rotated"
    } else {
        "rotated, signed out"
    };
    format!("answer lost: {late}; handler dropped: {early}")
}

async fn failed_read(subject: &Subject) -> String {
    let browser = logged_in(subject).await;
    browser.send(&subject.nodes[0], "/set/cart").await;
    subject.reads_fail.store(true, Ordering::SeqCst);
    let mut client = browser.clone();
    let reply = client.get(&subject.nodes[1], "/set/x").await;
    subject.reads_fail.store(false, Ordering::SeqCst);
    // What is in the store counts: a node without anything in its memory looks.
    let who = browser.me(&subject.nodes[1]).await;
    let cart = browser.send(&subject.nodes[1], "/get/cart").await.body;
    let kept = if who == "u1" && cart == "1" {
        "record unchanged"
    } else {
        "**record lost**"
    };
    let cookie = if client.0 == browser.0 {
        "cookie kept"
    } else {
        "**another cookie**"
    };
    format!("{}, {kept}, {cookie}", reply.status.as_u16())
}

type Subjects = Vec<Subject>;

async fn subjects() -> Subjects {
    vec![
        keep::subject(),
        peers::tower_sessions(),
        peers::axum_session().await,
    ]
}

#[tokio::main]
async fn main() {
    let races = [
        "two requests at once, two keys",
        "logout while a request is in flight",
        "rotation, then 500",
        "rotation, then the client is gone",
        "a failed read, then a write",
    ];
    let names: Vec<&str> = subjects()
        .await
        .iter()
        .map(|subject| subject.name)
        .collect();
    println!("| race | {} |", names.join(" | "));
    println!("|---|{}", "---|".repeat(names.len()));
    for (race, title) in races.iter().enumerate() {
        let mut row = Vec::new();
        for subject in subjects().await {
            row.push(match race {
                0 => lost_update(&subject).await,
                1 => revival(&subject).await,
                2 => rotation_and_5xx(&subject).await,
                3 => rotation_and_disconnect(&subject).await,
                _ => failed_read(&subject).await,
            });
        }
        println!("| {title} | {} |", row.join(" | "));
    }
}

impl Subject {
    pub fn new(
        name: &'static str,
        app: impl Fn(Gate) -> Router,
        reads_fail: Arc<AtomicBool>,
    ) -> Self {
        let gate = Gate::new();
        Self {
            name,
            nodes: [app(gate.clone()), app(gate.clone())],
            gate,
            reads_fail,
        }
    }
}
