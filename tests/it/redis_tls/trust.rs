//! Who is trusted and who is not, what is said of it, and what is never said at all.

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tower_keep::backend::health::{StoreHealth, StoreMode};
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::StoreErrorKind;

use super::{patient, trusting, until_it_answers, until_refused_for, whole};
use crate::support::{Authority, Browser, Program, RedisServer};

#[tokio::test]
async fn a_server_by_an_unknown_root_is_refused_and_the_breaker_opens_as_for_one_that_is_away() {
    let (own, other) = (Authority::new(), Authority::new());
    let server = RedisServer::start_tls(&own, &["127.0.0.1"], &[]).await;
    let url = server.tls_url("127.0.0.1");
    let store = trusting(&other, &url).await;
    let error = until_refused_for(&store, &["UnknownIssuer"]).await;
    assert!(whole(&error).contains("certificate"), "{}", whole(&error));
    while !store.is_open_circuit() {
        let error = store.ping().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    }
    let sent = store.commands();
    let refused = store.ping().await.unwrap_err();
    assert!(refused.retry_after_secs() >= 1);
    assert_eq!((sent, store.commands()), (0, 0));
    // Roots that are given one by one are trusted together.
    let both = patient(&url).root_certificates(other.root());
    let both = both.root_certificates(own.root()).open().await.unwrap();
    until_it_answers(&both).await;
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let own = Authority::new();
    let by_name = RedisServer::start_tls(&own, &["localhost"], &[]).await;
    let store = trusting(&own, &by_name.tls_url("127.0.0.1")).await;
    until_refused_for(&store, &["NotValidForName", "not valid for name"]).await;
    until_it_answers(&trusting(&own, &by_name.tls_url("localhost")).await).await;
    let by_address = RedisServer::start_tls(&own, &["127.0.0.1", "redis.example"], &[]).await;
    let store = trusting(&own, &by_address.tls_url("localhost")).await;
    until_refused_for(&store, &["NotValidForName", "not valid for name"]).await;
    until_it_answers(&trusting(&own, &by_address.tls_url("127.0.0.1")).await).await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_one_is_asked_for() {
    let (own, other) = (Authority::new(), Authority::new());
    for version in ["TLSv1.2", "TLSv1.3"] {
        let more = ["--tls-auth-clients", "yes", "--tls-protocols", version];
        let server = RedisServer::start_tls(&own, &["127.0.0.1"], &more).await;
        let url = server.tls_url("127.0.0.1");
        let trusting = || patient(&url).root_certificates(own.root());
        let shown = own.certify(&["a client"]);
        let known = trusting().client_certificate(&shown.chain, &shown.key);
        let known = known.open().await.unwrap();
        until_it_answers(&known).await;
        // A link that is cut comes back by a ticket, which has to remember who we are.
        let cut = redis::cmd("CLIENT")
            .arg(&["KILL", "TYPE", "normal"])
            .query_async::<u32>(&mut server.raw().await)
            .await;
        assert!(cut.unwrap() >= 1);
        until_it_answers(&known).await;
        // What a server says of it, it says when the client believes itself to be greeted, or while it hangs up.
        let nobody = trusting().open().await.unwrap();
        let words = ["HandshakeFailure", "without a client certificate"];
        until_refused_for(&nobody, &words).await;
        let foreign = other.certify(&["a client"]);
        let stranger = trusting().client_certificate(foreign.chain, foreign.key);
        let refused = stranger.open().await.unwrap().ping().await.unwrap_err();
        assert_eq!(refused.kind(), StoreErrorKind::Unavailable);
        assert!(!whole(&refused).contains("without a client"), "{version}");
    }
}

#[tokio::test]
async fn a_server_that_speaks_no_tls_is_an_error_in_time_and_is_told_no_password() {
    let own = Authority::new();
    let server = RedisServer::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let told = tokio::spawn(async move {
        let (mut stream, _) = silent.accept().await.unwrap();
        let mut told = Vec::new();
        // Until the client gives up.
        let _ = stream.read_to_end(&mut told).await;
        told
    });
    let urls = [
        server.tls_url("me:hunter2@127.0.0.1"),
        format!("rediss://me:hunter2@127.0.0.1:{port}/"),
    ];
    for url in urls {
        let builder = RedisStore::builder(&url).root_certificates(own.root());
        let store = builder.open().await.unwrap();
        let began = Instant::now();
        let error = store.ping().await.unwrap_err();
        let gone = [StoreErrorKind::TimedOut, StoreErrorKind::Unavailable];
        assert!(gone.contains(&error.kind()));
        assert!(began.elapsed() < Duration::from_secs(5));
    }
    let told = tokio::time::timeout(Duration::from_secs(30), told).await;
    let told = told.expect("the client gives up").unwrap();
    // The record of a greeting, and nothing of the door.
    assert_eq!(told[..2], [0x16, 3]);
    assert!(!told.windows(7).any(|part| part == b"hunter2"));
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_when_the_handle_is_opened_and_is_not_repeated() {
    let (own, other) = (Authority::new(), Authority::new());
    let (shown, foreign) = (own.certify(&["a client"]), other.certify(&["a client"]));
    let url = "rediss://u:hunter2@localhost";
    let broken = shown.key.replace("PRIVATE KEY-----", "hunter2");
    let no_certificate = "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n";
    let plain = |url| RedisStore::builder(url);
    let trusting = || plain(url).root_certificates(own.root());
    for (builder, why) in [
        (plain(url).root_certificates(""), "root certificates"),
        (plain(url).root_certificates("hunter2"), "root certificates"),
        (
            plain(url).root_certificates(&shown.key),
            "root certificates",
        ),
        (
            plain(url).root_certificates(no_certificate),
            "root certificate",
        ),
        (
            trusting().client_certificate("hunter2", &shown.key),
            "client certificate",
        ),
        (
            trusting().client_certificate(&shown.chain, &broken),
            "private key",
        ),
        (
            trusting().client_certificate(&shown.chain, &shown.chain),
            "private key",
        ),
        (
            trusting().client_certificate(&shown.chain, &foreign.key),
            "client certificate",
        ),
        (
            plain("redis://u:hunter2@localhost").root_certificates(own.root()),
            "rediss://",
        ),
        (plain("rediss://u:hunter2@localhost/#insecure"), "#fragment"),
        (
            plain("rediss+cluster://u:hunter2@localhost/#insecure"),
            "#fragment",
        ),
        (
            plain("rediss+sentinel://u:hunter2@localhost/main#insecure"),
            "#fragment",
        ),
        (plain("rediss+cluster://u:hunter2@localhost/3"), "databases"),
    ] {
        let error = builder.open().await.unwrap_err();
        assert_eq!(error.kind(), StoreErrorKind::Failed, "{why}");
        let said = whole(&error);
        assert!(said.contains(why), "{said}");
        assert!(!said.contains("hunter2"), "{said}");
    }
}

#[tokio::test]
async fn no_builder_and_no_handle_shows_a_key() {
    let own = Authority::new();
    let shown = own.certify(&["a client"]);
    let url = "rediss://u:hunter2@localhost";
    let builder = RedisStore::builder(url).client_certificate(&shown.chain, &shown.key);
    let builder = builder.root_certificates(own.root());
    let bodies: Vec<&str> = shown
        .key
        .lines()
        .filter(|line| !line.contains('-'))
        .collect();
    let check = |shown: &dyn Debug| {
        let shown = format!("{shown:?} {shown:#?}");
        let is_secret = |word: &&str| shown.contains(*word);
        assert!(!bodies.iter().chain(&["hunter2"]).any(is_secret), "{shown}");
    };
    assert!(!bodies.is_empty());
    check(&builder);
    check(&builder.open().await.unwrap());
    check(&tower_keep::store::builder(url).client_certificate(&shown.chain, &shown.key));
}

#[tokio::test]
async fn a_store_that_is_opened_by_its_url_goes_by_tls() {
    let own = Authority::new();
    let more = ["--tls-auth-clients", "yes"];
    let server = RedisServer::start_tls(&own, &["127.0.0.1"], &more).await;
    let url = server.tls_url("127.0.0.1");
    let shown = own.certify(&["a client"]);
    let open = async |url: &str| {
        let builder = tower_keep::store::builder(url).timeout(Duration::from_secs(10));
        let builder = builder.client_certificate(&shown.chain, &shown.key);
        builder.root_certificates(own.root()).open().await
    };
    let store = open(&url).await.unwrap();
    let started = Instant::now();
    while store.probe().await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(store.mode(), StoreMode::Redis);
    // Memory has no wire; whoever brings certificates to one in the clear is mistaken.
    open("memory:").await.unwrap();
    let error = open(&server.tcp_url()).await.unwrap_err();
    assert!(whole(&error).contains("rediss://"), "{}", whole(&error));
}

/// By its URL alone: the roots are the platform's, which OpenSSL's variable replaces.
#[tokio::test]
async fn a_program_that_has_only_the_url_trusts_the_roots_of_its_platform() {
    let (own, other) = (Authority::new(), Authority::new());
    let server = RedisServer::start_tls(&own, &["127.0.0.1"], &[]).await;
    let url = server.tls_url("127.0.0.1");
    let start = |file: &Path| {
        let roots = ("SSL_CERT_FILE", file.as_os_str());
        Program::start_with("rate_limit", &["127.0.0.1:0", &url], roots)
    };
    let pay = async |program: &Program, user: &str| {
        let (browser, user) = (Browser::new(program.address()), [("x-user", user)]);
        browser.send(Method::POST, "/payments", &user, None).await
    };
    // Without the store there is no payment there.
    let stranger = start(&other.root_file());
    assert_eq!(pay(&stranger, "u").await.code(), "STORE_UNAVAILABLE");
    let known = start(&own.root_file());
    let started = Instant::now();
    for user in 0.. {
        let paid = pay(&known, &user.to_string()).await;
        if paid.status == StatusCode::OK {
            break;
        }
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{:?}",
            paid.body
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
