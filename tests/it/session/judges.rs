//! Independent judges of the cookies: curl's cookie engine and a real Chromium, over loopback HTTP on `localhost`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::Path as AnyPath;
use axum::response::Html;
use axum::routing::{any, get, post};
use axum::{Json, Router};
use http::{HeaderMap, HeaderName};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;
use tower_keep::session::{SameSite, SessionCookie, SessionLayer};

use super::app::{App, clock, memory};
use crate::support::launch::{Launch, Process, find};

const PLANTED: [&str; 2] = [
    // A judge that keeps this one judges nothing: `__Host-` allows no Domain.
    "__Host-bad=1; Path=/; Secure; Domain=localhost",
    // And this one goes along with requests from other sites.
    "control=1; Path=/; Secure; SameSite=None",
];

async fn plant() -> HeaderMap {
    let name = HeaderName::from_static("set-cookie");
    let lines = PLANTED.map(|line| (name.clone(), http::HeaderValue::from_static(line)));
    lines.into_iter().collect()
}

pub(super) async fn listen(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Runs a program to its end while the server goes on answering; gives its output.
async fn run(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(find(program));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    String::from_utf8(output.await.unwrap().stdout).unwrap()
}

/// curl with a jar: one process per request, so that the jar on disk is all it remembers.
struct Curl<'a> {
    server: SocketAddr,
    jar: &'a Path,
}

impl Curl<'_> {
    async fn get(&self, path: &str) -> String {
        let url = format!("http://localhost:{}{path}", self.server.port());
        let jar = self.jar.to_str().unwrap();
        run("curl", &["-4", "-s", "-c", jar, "-b", jar, &url]).await
    }

    /// What the jar says of our cookie: flags, path, secure, when it ends, name.
    fn cookie(&self, name: &str) -> Option<Vec<String>> {
        let jar = std::fs::read_to_string(self.jar).unwrap();
        let rows = jar.lines().map(|line| line.split('\t').collect::<Vec<_>>());
        let row = rows.into_iter().find(|row| row.get(5) == Some(&name))?;
        Some(row[..6].iter().map(|part| (*part).to_owned()).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn curl_keeps_the_cookie_as_it_was_meant_and_forgets_it_on_removal() {
    let folder = tempfile::tempdir().unwrap();
    let cookies = [
        (SessionCookie::host("id"), "__Host-id", "TRUE"),
        (
            SessionCookie::insecure("sid").same_site(SameSite::Strict),
            "sid",
            "FALSE",
        ),
        (SessionCookie::host("p").partitioned(), "__Host-p", "TRUE"),
    ];
    for (cookie, name, secure) in cookies {
        let app = App::new(SessionLayer::new(memory(&clock())).cookie(cookie));
        let router = app.router().route("/plant", get(plant));
        let server = listen(router).await;
        let jar = folder.path().join(name);
        let curl = Curl { server, jar: &jar };
        curl.get("/plant").await;
        assert_eq!(curl.cookie("__Host-bad"), None, "the judge judges");
        curl.get("/login/u1").await;
        // Host only, sent nowhere else, gone with the browser.
        let expected = ["#HttpOnly_localhost", "FALSE", "/", secure, "0", name];
        assert_eq!(curl.cookie(name).unwrap(), expected);
        assert_eq!(curl.get("/maybe").await, "u1");
        assert_eq!(curl.get("/rotate").await, "");
        assert_eq!(
            curl.get("/maybe").await,
            "u1",
            "the new secret took its place"
        );
        curl.get("/logout").await;
        assert_eq!(curl.cookie(name), None);
        assert_eq!(curl.get("/maybe").await, "nobody");
        curl.get("/login/u1?remember=86400").await;
        let ends: u64 = curl.cookie(name).unwrap()[4].parse().unwrap();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let left = ends - now.unwrap().as_secs();
        assert!((86_000..=86_400).contains(&left), "remembered for {left} s");
    }
}

/// Three pages, one after the other: this site, another one, and this one again by a form of the other.
const HERE: &str = r#"<!doctype html><script>
const ask = async path => (await fetch(path)).text();
(async () => {
  await ask('/plant');
  await ask('/login/u1');
  const told = { user: await ask('/maybe'), script: document.cookie };
  await ask('/seen/here');
  sessionStorage.told = JSON.stringify(told);
  location = `http://127.0.0.1:${location.port}/elsewhere`;
})();
</script>"#;

const ELSEWHERE: &str = r#"<!doctype html><form method=post></form><script>
const form = document.querySelector('form');
form.action = `http://localhost:${location.port}/seen/by-form`;
form.submit();
</script>"#;

const AGAIN: &str = r#"<!doctype html><script>
const ask = async path => (await fetch(path)).text();
(async () => {
  const told = JSON.parse(sessionStorage.told);
  await ask('/rotate');
  told.rotated = await ask('/maybe');
  await ask('/logout');
  told.after = await ask('/maybe');
  await ask('/seen/after');
  await fetch('/told', {
    method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(told),
  });
})();
</script>"#;

#[tokio::test(flavor = "multi_thread")]
async fn chromium_keeps_the_cookie_from_scripts_and_other_sites_and_forgets_it_on_removal() {
    let seen: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let see = Arc::clone(&seen);
    let app = App::new(SessionLayer::new(memory(&clock())));
    let router = app
        .router()
        .route("/plant", get(plant))
        .route("/here", get(async || Html(HERE)))
        .route("/elsewhere", get(async || Html(ELSEWHERE)))
        .route(
            "/seen/{by}",
            any(
                async move |AnyPath(by): AnyPath<String>, headers: HeaderMap| {
                    let lines = headers.get_all("cookie").iter();
                    let lines = lines.map(|line| line.to_str().unwrap());
                    let names: Vec<&str> = lines
                        .flat_map(|line| line.split("; "))
                        .map(|pair| pair.split('=').next().unwrap())
                        .collect();
                    see.lock().push((by, names.join(" ")));
                    Html(AGAIN)
                },
            ),
        );
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let router = router.route(
        "/told",
        post(async move |Json(answers): Json<Value>| drop(tell.try_send(answers))),
    );
    let server = listen(router).await;
    let folder = tempfile::tempdir().unwrap();
    let mut arguments: Vec<String> = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-extensions",
        "--disable-background-networking",
        "--no-first-run",
        "--remote-debugging-port=0",
    ]
    .map(str::to_owned)
    .to_vec();
    arguments.push(format!("--user-data-dir={}", folder.path().display()));
    arguments.push(format!("http://localhost:{}/here", server.port()));
    let chromium = Process::start(Launch {
        program: "chromium",
        arguments,
        user: None,
        folder: folder.path(),
        stop: "TERM",
    });
    let told = tokio::time::timeout(Duration::from_secs(60), told.recv()).await;
    let told = told
        .expect("an answer of the page within a minute")
        .unwrap();
    drop(chromium);
    let expected = serde_json::json!({
        "user": "u1", "script": "control=1", "rotated": "u1", "after": "nobody",
    });
    assert_eq!(told, expected);
    let seen: Vec<_> = std::mem::take(&mut *seen.lock());
    let seen: Vec<_> = seen.iter().map(|(by, names)| (&**by, &**names)).collect();
    assert_eq!(
        seen,
        [
            ("here", "control __Host-id"),
            ("by-form", "control"),
            ("after", "control"),
        ]
    );
}
