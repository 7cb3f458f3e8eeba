//! A client over real HTTP with a cookie jar, as a browser or curl would be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

/// One browser: its own cookies.
#[derive(Clone, Debug)]
pub struct Browser {
    client: Client<HttpConnector, Full<Bytes>>,
    server: SocketAddr,
    cookies: Arc<Mutex<BTreeMap<String, String>>>,
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(|value| value.to_str().unwrap())
            .unwrap_or_default()
    }
}

/// An answer that goes on.
#[derive(Debug)]
pub struct Stream {
    body: hyper::body::Incoming,
    text: String,
}

impl Stream {
    /// Reads until `mark` has come, and returns everything so far.
    pub async fn until(&mut self, mark: &str) -> &str {
        // For all of it: an event stream is never silent for long.
        let patience = std::time::Duration::from_secs(60);
        let deadline = tokio::time::Instant::now() + patience;
        while !self.text.contains(mark) {
            let frame = tokio::time::timeout_at(deadline, self.body.frame()).await;
            let frame = frame.unwrap_or_else(|_| panic!("no {mark} in {:?}", self.text));
            let frame = frame.expect("the stream goes on").unwrap();
            let data = frame.into_data().unwrap_or_default();
            self.text.push_str(std::str::from_utf8(&data).unwrap());
        }
        &self.text
    }

    /// Reads to the end.
    pub async fn rest(self) -> String {
        let rest = self.body.collect().await.unwrap().to_bytes();
        self.text + std::str::from_utf8(&rest).unwrap()
    }
}

impl Browser {
    pub fn new(server: SocketAddr) -> Self {
        Self {
            client: Client::builder(TokioExecutor::new()).build_http(),
            server,
            cookies: Arc::default(),
        }
    }

    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// The same cookies at another process of the same application.
    pub fn at(&self, server: SocketAddr) -> Self {
        Self {
            server,
            ..self.clone()
        }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[], None).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send(Method::DELETE, path, &[], None).await
    }

    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        self.send(Method::POST, path, headers, Some(body.to_string()))
            .await
    }

    /// Sends a form as a page does.
    pub async fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Reply {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(fields);
        let kind = [("content-type", "application/x-www-form-urlencoded")];
        self.send(Method::POST, path, &kind, Some(body.finish()))
            .await
    }

    /// Opens an answer that goes on, such as an event stream.
    pub async fn open(&self, path: &str) -> Stream {
        self.listen(path, None).await
    }

    /// Opens an event stream again, as a browser does by itself that has seen the event `last`.
    pub async fn resume(&self, path: &str, last: &str) -> Stream {
        self.listen(path, Some(last)).await
    }

    async fn listen(&self, path: &str, last: Option<&str>) -> Stream {
        let mut request = Request::get(format!("http://{}{path}", self.server))
            .header(header::COOKIE, self.cookie_line());
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let request = request.body(Full::default()).unwrap();
        let response = self.client.request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Stream {
            body: response.into_body(),
            text: String::new(),
        }
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> Reply {
        let reply = self.try_send(method, path, headers, body).await;
        reply.unwrap_or_else(|| panic!("no answer of {}{path}", self.server))
    }

    /// The same, of a server that may end meanwhile.
    pub async fn try_send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> Option<Reply> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.server));
        let typed = headers.iter().any(|(name, _)| *name == "content-type");
        if body.is_some() && !typed {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let cookies = self.cookie_line();
        if !cookies.is_empty() {
            request = request.header(header::COOKIE, cookies);
        }
        let request = request.body(Full::from(body.unwrap_or_default())).unwrap();
        let (parts, body) = self.client.request(request).await.ok()?.into_parts();
        self.keep_cookies(&parts.headers);
        Some(Reply {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.ok()?.to_bytes(),
        })
    }

    pub fn cookie(&self, name: &str) -> Option<String> {
        self.cookies.lock().unwrap().get(name).cloned()
    }

    /// Puts a cookie into the jar, as a thief would.
    pub fn plant(&self, name: &str, value: &str) {
        let mut cookies = self.cookies.lock().unwrap();
        cookies.insert(name.to_owned(), value.to_owned());
    }

    fn cookie_line(&self) -> String {
        let cookies = self.cookies.lock().unwrap();
        cookies
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join("; ")
    }

    fn keep_cookies(&self, headers: &HeaderMap) {
        let mut cookies = self.cookies.lock().unwrap();
        for line in headers.get_all(header::SET_COOKIE) {
            let line = line.to_str().unwrap();
            let (name, value) = line
                .split(';')
                .next()
                .and_then(|pair| pair.split_once('='))
                .unwrap();
            if line.contains("Max-Age=0") {
                cookies.remove(name);
            } else {
                cookies.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}
