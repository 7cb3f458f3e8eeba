//! Driving a service in process: one request in, the whole answer out.

use std::error::Error;
use std::fmt;

use axum::body::Body;
use bytes::Bytes;
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use tower::{Service, ServiceExt};

/// An answer with its body collected.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub extensions: Extensions,
}

impl Answer {
    /// A field's value; empty where the field is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    /// The `code` of a problem document.
    #[track_caller]
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends GET `uri`.
pub async fn get<S, O>(service: &S, uri: &str) -> Answer
where
    S: Service<Request<Body>, Response = Response<O>, Error: fmt::Debug> + Clone,
    O: http_body::Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    send(service, request(Method::GET, uri, &[], "")).await
}

/// Sends POST `uri` with these header fields.
pub async fn post<S, O>(
    service: &S,
    uri: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer
where
    S: Service<Request<Body>, Response = Response<O>, Error: fmt::Debug> + Clone,
    O: http_body::Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    send(service, request(Method::POST, uri, headers, body)).await
}

/// Makes a request.
pub fn request(
    method: Method,
    uri: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Body::from(body.into())).unwrap()
}

/// Sends `request` through a clone of `service`.
pub async fn send<S, I, O>(service: &S, request: Request<I>) -> Answer
where
    S: Service<Request<I>, Response = Response<O>, Error: fmt::Debug> + Clone,
    O: http_body::Body<Error: Into<Box<dyn Error + Send + Sync>>>,
{
    let response = service.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.map_err(Into::into).unwrap();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.to_bytes(),
        extensions: parts.extensions,
    }
}

#[tokio::test]
async fn drives_a_hyper_service_and_an_axum_router() {
    let echo = tower::service_fn(async |request: Request<Body>| {
        let kind = request.headers()["x-kind"].clone();
        let mut response = Response::new(request.into_body());
        response.headers_mut().insert("x-kind", kind);
        Ok::<_, std::convert::Infallible>(response)
    });
    let answer = post(&echo, "/", &[("x-kind", "a")], "hello").await;
    assert_eq!((answer.header("x-kind"), answer.text()), ("a", "hello"));

    let router = axum::Router::new().route("/", axum::routing::get("root"));
    assert_eq!(get(&router, "/").await.text(), "root");
    assert_eq!(get(&router, "/none").await.status, StatusCode::NOT_FOUND);
}
