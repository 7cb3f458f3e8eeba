//! Both ends of the gateway byte by byte: a scripted origin and a client that read and write raw HTTP/1.1.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support::Program;

/// What the origin does with one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These bytes, then the connection ends.
    Bytes(Vec<u8>),
    /// Nothing: the connection ends.
    Cut,
    /// Nothing, ever.
    Hang,
    /// These bytes once it is told so, then the connection ends.
    Later(Arc<Notify>, Vec<u8>),
}

/// Requests as they came, by path.
type Seen = Arc<Mutex<HashMap<String, Vec<String>>>>;
type Script = Arc<Mutex<HashMap<String, VecDeque<Reply>>>>;

/// An origin that answers each path by its script, then with 404, and keeps what it was asked.
#[derive(Clone)]
pub struct Origin {
    address: SocketAddr,
    script: Script,
    seen: Seen,
}

impl Origin {
    pub async fn start() -> Self {
        Self::start_at(0).await
    }

    pub async fn start_at(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (script, seen) = (Script::default(), Seen::default());
        let (own_script, own_seen) = (Arc::clone(&script), Arc::clone(&seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(
                    stream,
                    Arc::clone(&own_script),
                    Arc::clone(&own_seen),
                ));
            }
        });
        Self {
            address,
            script,
            seen,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn says(&self, path: &str, replies: impl IntoIterator<Item = Reply>) {
        let mut script = self.script.lock().unwrap();
        script.entry(path.to_owned()).or_default().extend(replies);
    }

    /// The requests for `path` so far, whole.
    pub fn seen(&self, path: &str) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .get(path)
            .cloned()
            .unwrap_or_default()
    }
}

async fn answer(mut stream: TcpStream, script: Script, seen: Seen) {
    let Some((head, body)) = read_request(&mut stream).await else {
        return;
    };
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let text = head + &String::from_utf8_lossy(&body);
    seen.lock()
        .unwrap()
        .entry(path.clone())
        .or_default()
        .push(text);
    let reply = script
        .lock()
        .unwrap()
        .get_mut(&path)
        .and_then(VecDeque::pop_front);
    match reply.unwrap_or_else(|| response(404, &[], "unscripted")) {
        Reply::Bytes(bytes) => {
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Reply::Later(told, bytes) => {
            told.notified().await;
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
        Reply::Cut => {}
        Reply::Hang => std::future::pending().await,
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let end = loop {
        if let Some(at) = all.windows(4).position(|part| part == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut all).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let lower = head.to_ascii_lowercase();
    let length = lower
        .split("\r\n")
        .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    let chunked = lower.contains("\r\ntransfer-encoding: chunked\r\n");
    let mut body = all.split_off(end);
    while body.len() < length.unwrap_or(0) || (chunked && !body.ends_with(b"\r\n\r\n")) {
        if stream.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, body))
}

/// An answer with these fields, a length and a body.
pub fn response(status: u16, fields: &[(&str, &str)], body: &str) -> Reply {
    let mut text = format!("HTTP/1.1 {status} Said\r\nconnection: close\r\n");
    for (name, value) in fields {
        text += &format!("{name}: {}\r\n", dated(value));
    }
    if !matches!(status, 204 | 304) {
        text += &format!("content-length: {}\r\n", body.len());
    }
    text += "\r\n";
    Reply::Bytes((text + body).into_bytes())
}

/// Writes `@-3000` as the date that many seconds from now; anything else stays.
pub fn dated(value: &str) -> String {
    let Some(offset) = value
        .strip_prefix('@')
        .and_then(|offset| offset.parse::<i64>().ok())
    else {
        return value.to_owned();
    };
    let (now, shift) = (
        SystemTime::now(),
        Duration::from_secs(offset.unsigned_abs()),
    );
    httpdate::fmt_http_date(if offset < 0 { now - shift } else { now + shift })
}

/// An answer as the client read it.
#[derive(Clone, Debug)]
pub struct Got {
    /// The whole, as it came.
    pub raw: Vec<u8>,
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Got {
    /// The values of a field, in any case of its name.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let lines = self
            .head
            .split("\r\n")
            .filter_map(|line| line.split_once(": "));
        lines
            .filter(|(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    pub fn field(&self, name: &str) -> &str {
        self.all(name).first().copied().unwrap_or_default()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn is_hit(&self) -> bool {
        self.field("cache-status").contains(";hit")
    }
}

/// A gateway before an origin.
pub struct Gateway {
    pub origin: Origin,
    pub program: Program,
}

impl Gateway {
    pub async fn start(options: &[&str]) -> Self {
        let origin = Origin::start().await;
        let url = origin.url();
        let mut all = vec!["--listen", "127.0.0.1:0", "--upstream", &url];
        all.extend(options);
        let program = Program::start("gateway", &all);
        Self { origin, program }
    }

    /// Sends a request with these fields and reads the answer to its end.
    pub async fn send(
        &self,
        method: &str,
        target: &str,
        fields: &[(&str, &str)],
        body: &str,
    ) -> Got {
        let mut text =
            format!("{method} {target} HTTP/1.1\r\nHost: origin.test\r\nConnection: close\r\n");
        for (name, value) in fields {
            text += &format!("{name}: {}\r\n", dated(value));
        }
        if !body.is_empty() {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        text += "\r\n";
        self.raw((text + body).as_bytes()).await
    }

    pub async fn get(&self, target: &str, fields: &[(&str, &str)]) -> Got {
        self.send("GET", target, fields, "").await
    }

    /// Asks the gateway that listens there.
    pub async fn get_at(address: SocketAddr, target: &str) -> Got {
        let text =
            format!("GET {target} HTTP/1.1\r\nHost: origin.test\r\nConnection: close\r\n\r\n");
        Self::raw_at(address, text.as_bytes()).await
    }

    /// Sends bytes and reads to the end of the connection.
    pub async fn raw(&self, bytes: &[u8]) -> Got {
        Self::raw_at(self.program.address(), bytes).await
    }

    async fn raw_at(address: SocketAddr, bytes: &[u8]) -> Got {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut raw = Vec::new();
        // A cut connection is an end, too; what came is what is looked at.
        let _ = stream.read_to_end(&mut raw).await;
        let end = raw.windows(4).position(|part| part == b"\r\n\r\n");
        let end = end.map_or(raw.len(), |at| at + 4);
        let head = raw[..end]
            .iter()
            .map(|byte| char::from(*byte))
            .collect::<String>();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0);
        let body = raw[end..].to_vec();
        Got {
            raw,
            status,
            head,
            body,
        }
    }
}
