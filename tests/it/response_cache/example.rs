//! The example program, as it runs; two processes of it on one Redis are one cache.

use std::time::Duration;

use http::{Method, StatusCode};

use crate::support::{Browser, Program, RedisServer};

const FORM: [(&str, &str); 1] = [("content-type", "application/x-www-form-urlencoded")];

async fn run(browser: &Browser, path: &str) -> String {
    browser.get(path).await.json()["run"].to_string()
}

async fn purge(browser: &Browser, form: &str) {
    let form = Some(form.to_owned());
    let reply = browser.send(Method::POST, "/purge", &FORM, form).await;
    assert_eq!(&reply.body[..], b"done\n");
}

#[tokio::test]
async fn tags_prefixes_urls_and_a_rename_drop_what_they_name() {
    let program = Program::start("response_cache", &["127.0.0.1:0"]);
    let browser = Browser::new(program.address());
    for _ in 0..2 {
        assert_eq!(run(&browser, "/experts?utm_source=mail").await, "1");
        assert_eq!(run(&browser, "/experts/e1").await, "2");
    }
    for (form, next) in [
        ("tag=expert%3Ae1", "3"),
        ("prefix=/experts", "4"),
        ("url=/experts/e1", "5"),
    ] {
        purge(&browser, form).await;
        assert_eq!(run(&browser, "/experts/e1").await, next, "{form}");
    }
    let form = Some("name=Eve".to_owned());
    let renamed = browser.send(Method::PUT, "/experts/e1", &FORM, form).await;
    assert_eq!(renamed.status, StatusCode::NO_CONTENT);
    assert_eq!(browser.get("/experts/e1").await.json()["shows"], "Eve");
}

#[tokio::test]
async fn what_one_process_drops_another_one_drops_within_a_second() {
    let server = RedisServer::start().await;
    let url = server.url();
    let start = || Program::start("response_cache", &["127.0.0.1:0", &url]);
    let (one, two) = (start(), start());
    let (one, two) = (Browser::new(one.address()), Browser::new(two.address()));
    let before = run(&one, "/experts/e2").await;
    purge(&two, "url=/experts/e2").await;
    for _ in 0..200 {
        if run(&one, "/experts/e2").await != before {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it was never dropped");
}
