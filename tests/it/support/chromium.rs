//! A real browser without a screen, driven over the pipe of its own debugging protocol.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// As long as anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running browser with windows that know nothing of each other; killed on drop.
#[derive(Debug)]
pub struct Chromium {
    _child: Child,
    _profile: TempDir,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
    number: u64,
}

/// A window with cookies of its own.
#[derive(Clone, Debug)]
pub struct Window(String);

impl Chromium {
    pub fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        // The protocol's pipe is descriptors 3 and 4; the shell makes them of the ones we have.
        command.args([
            "-c",
            "exec chromium \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>&1",
            "sh",
        ]);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-extensions",
            "--disable-background-networking",
            "--no-first-run",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
        ]);
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.env("HOME", profile.path()).kill_on_drop(true);
        let (stdin, stdout) = (std::process::Stdio::piped(), std::process::Stdio::piped());
        let mut child = command.stdin(stdin).stdout(stdout).spawn().unwrap();
        Self {
            orders: child.stdin.take().unwrap(),
            answers: BufReader::new(child.stdout.take().unwrap()),
            _child: child,
            _profile: profile,
            number: 0,
        }
    }

    /// Opens a window of this width, as somebody else's.
    pub async fn window(&mut self, width: u32, height: u32) -> Window {
        let context = self
            .ask(None, "Target.createBrowserContext", json!({}))
            .await;
        let id = &context["browserContextId"];
        let wanted = json!({ "url": "about:blank", "browserContextId": id });
        let target = self.ask(None, "Target.createTarget", wanted).await;
        let wanted = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.ask(None, "Target.attachToTarget", wanted).await;
        let window = Window(attached["sessionId"].as_str().unwrap().to_owned());
        let screen = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.ask(Some(&window), "Emulation.setDeviceMetricsOverride", screen)
            .await;
        window
    }

    /// Goes to a page, as by the address line.
    pub async fn open(&mut self, window: &Window, url: &str) {
        self.ask(Some(window), "Page.navigate", json!({ "url": url }))
            .await;
    }

    /// Lets the page compute something.
    pub async fn eval(&mut self, window: &Window, expression: &str) -> Value {
        let wanted =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.ask(Some(window), "Runtime.evaluate", wanted).await;
        answer["result"]["value"].clone()
    }

    /// Waits until something is true of the page, whichever page that is by then.
    pub async fn until(&mut self, window: &Window, condition: &str) {
        let waiting = async {
            while self.eval(window, condition).await != json!(true) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            let page = self
                .eval(window, "location.href + document.body.innerText")
                .await;
            panic!("never {condition} on {page}");
        }
    }

    /// Says whether the visitor likes dark pages.
    pub async fn dark(&mut self, window: &Window, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let wanted = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.ask(Some(window), "Emulation.setEmulatedMedia", wanted)
            .await;
    }

    /// Clicks what a selector finds, once it is there.
    pub async fn click(&mut self, window: &Window, selector: &str) {
        let found = format!("document.querySelector({selector:?}) !== null");
        self.until(window, &found).await;
        let click = format!("void document.querySelector({selector:?}).click()");
        self.eval(window, &click).await;
    }

    /// Keeps a picture of the whole page.
    pub async fn picture(&mut self, window: &Window, file: &Path) {
        let wanted = json!({ "captureBeyondViewport": true });
        let shot = self
            .ask(Some(window), "Page.captureScreenshot", wanted)
            .await;
        let data = shot["data"].as_str().unwrap();
        tokio::fs::write(file, data).await.unwrap();
    }

    /// Sends an order and waits for its answer; what is told besides is of no interest.
    async fn ask(&mut self, window: Option<&Window>, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut order = json!({ "id": self.number, "method": method, "params": params });
        if let Some(Window(session)) = window {
            order["sessionId"] = json!(session);
        }
        let line = order.to_string() + "\0";
        self.orders.write_all(line.as_bytes()).await.unwrap();
        let answered = async {
            loop {
                let mut told = Vec::new();
                let length = self.answers.read_until(0, &mut told).await.unwrap();
                assert!(length > 0, "chromium ended at {method}");
                told.pop();
                let told: Value = serde_json::from_slice(&told).unwrap();
                if told["id"] == self.number {
                    return told;
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, answered).await;
        let mut answer = answer.unwrap_or_else(|_| panic!("no answer to {method}"));
        // A page that is just being left has no world to compute in: nothing, and whoever waits asks again.
        answer["result"].take()
    }
}
