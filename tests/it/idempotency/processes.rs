//! Two processes on one store: killed in the handler, paused past the lease, asked a hundred times at once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tower_keep::SECOND;
use tower_keep::backend::redis::RedisStore;
use tower_keep::backend::sql::SqlStore;
use tower_keep::idempotency::{IdempotencyLayer, RecordState, Scope, ScopeId};

use crate::support::sql::{execute, number};
use crate::support::{Program, RedisServer};

/// What a process may need at most for anything here, on a loaded machine.
const LONGEST: Duration = Duration::from_secs(60);

/// A store of claims, a place for effects, and processes that share both.
struct Stage {
    url: String,
    folder: tempfile::TempDir,
    _redis: Option<RedisServer>,
    client: Client<HttpConnector, Full<Bytes>>,
}

#[derive(Debug)]
struct Told {
    status: u16,
    is_replay: bool,
    outcome: Option<String>,
    body: String,
}

impl Stage {
    async fn all() -> Vec<Self> {
        vec![
            Self::redis().await,
            Self::sqlite().await,
            Self::postgres().await,
        ]
    }

    async fn sql() -> Vec<Self> {
        vec![Self::sqlite().await, Self::postgres().await]
    }

    async fn redis() -> Self {
        let server = RedisServer::start().await;
        Self::at(server.url(), Some(server)).await
    }

    async fn sqlite() -> Self {
        let stage = Self::at(String::new(), None).await;
        let url = format!("sqlite:{}", stage.path("keys.db"));
        Self { url, ..stage }.with_effects().await
    }

    async fn postgres() -> Self {
        let url = crate::support::postgres::shared().await.database().await;
        Self::at(url, None).await.with_effects().await
    }

    async fn at(url: String, redis: Option<RedisServer>) -> Self {
        let stage = Self {
            url,
            folder: tempfile::tempdir().unwrap(),
            _redis: redis,
            client: Client::builder(TokioExecutor::new()).build_http(),
        };
        let sink = "create table sink (k text primary key, n integer, fence integer)";
        execute(&stage.sink().await, sink).await;
        stage
    }

    async fn with_effects(self) -> Self {
        execute(&self.db().await, "create table effects (k text)").await;
        self
    }

    async fn sink(&self) -> SqlStore {
        SqlStore::connect(&self.sink_url()).await.unwrap()
    }

    async fn db(&self) -> SqlStore {
        let db = SqlStore::builder(&self.url).acquire_timeout(20 * SECOND);
        db.open().await.unwrap()
    }

    fn sink_url(&self) -> String {
        format!("sqlite:{}", self.path("sink.db"))
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn start(&self, mode: &str, lease_ms: u32, twins: &str) -> Program {
        let (sink, lease) = (self.sink_url(), lease_ms.to_string());
        Program::start("idempotency_runs", &[mode, &self.url, &sink, &lease, twins])
    }

    async fn leased_effects(&self, key: &str) -> i64 {
        let sql = format!("select coalesce(sum(n), 0) from sink where k = '{key}'");
        number(&self.sink().await, &sql).await
    }

    async fn committed_effects(&self, key: &str) -> i64 {
        let sql = format!("select count(*) from effects where k = '{key}'");
        number(&self.db().await, &sql).await
    }

    /// Sends a request; `None` if the process ended before its answer.
    async fn send(&self, to: SocketAddr, key: &str, fields: &[(&str, &str)]) -> Option<Told> {
        send(self.client.clone(), to, key, fields).await
    }

    /// Sends a request in the background that waits at `stop`, and waits until it is there.
    async fn stopped_at(
        &self,
        to: SocketAddr,
        key: &str,
        stop: &'static str,
    ) -> (PathBuf, tokio::task::JoinHandle<Option<Told>>) {
        let go = self.folder.path().join(format!("go-{key}"));
        let (client, named, key) = (self.client.clone(), go.clone(), key.to_owned());
        let sent = tokio::spawn(async move {
            let named = named.display().to_string();
            send(client, to, &key, &[("x-stop", stop), ("x-go", &named)]).await
        });
        let reached = format!("{}.reached", go.display());
        until(|| Path::new(&reached).exists()).await;
        (go, sent)
    }

    /// Asks until the answer is none of `passing`.
    async fn settled(&self, to: SocketAddr, key: &str, passing: &[u16]) -> Told {
        let started = Instant::now();
        loop {
            let told = self.send(to, key, &[]).await.expect("an answer");
            if !passing.contains(&told.status) {
                return told;
            }
            assert!(started.elapsed() < LONGEST, "{told:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn send(
    client: Client<HttpConnector, Full<Bytes>>,
    to: SocketAddr,
    key: &str,
    fields: &[(&str, &str)],
) -> Option<Told> {
    let mut request = Request::post(format!("http://{to}/pay")).header("idempotency-key", key);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let answer = client.request(request.body(Full::default()).unwrap()).await;
    let (parts, body) = answer.ok()?.into_parts();
    let body = body.collect().await.ok()?.to_bytes();
    let field = |name| {
        let value = parts.headers.get(name);
        value.map(|value: &http::HeaderValue| value.to_str().unwrap().to_owned())
    };
    Some(Told {
        status: parts.status.as_u16(),
        is_replay: field("idempotency-replayed").is_some(),
        outcome: field("idempotency-status"),
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < LONGEST, "not within a minute");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_run_killed_before_its_effect_is_taken_over_after_its_lease() {
    for stage in Stage::all().await {
        let mut first = stage.start("leased", 1_000, "reject");
        let second = stage.start("leased", 1_000, "reject");
        let (_, sent) = stage.stopped_at(first.address(), "k", "before").await;
        first.signal("KILL");
        first.wait();
        assert!(sent.await.unwrap().is_none());
        let told = stage.settled(second.address(), "k", &[409]).await;
        assert_eq!((told.status, told.is_replay), (201, false), "{}", stage.url);
        assert!(
            stage
                .send(second.address(), "k", &[])
                .await
                .unwrap()
                .is_replay
        );
        assert_eq!(stage.leased_effects("k").await, 1, "{}", stage.url);
    }
}

#[tokio::test]
async fn a_run_killed_after_its_effect_is_unknown_until_an_operator_says_what_happened() {
    for stage in Stage::all().await {
        let mut first = stage.start("undecided", 1_000, "reject");
        let second = stage.start("undecided", 1_000, "reject");
        let (_, sent) = stage.stopped_at(first.address(), "k", "after").await;
        first.signal("KILL");
        first.wait();
        assert!(sent.await.unwrap().is_none());
        let started = Instant::now();
        loop {
            let told = stage.send(second.address(), "k", &[]).await.unwrap();
            assert_eq!(told.status, 409, "{told:?}");
            if told.body.contains("IDEMPOTENCY_OUTCOME_UNKNOWN") {
                break;
            }
            assert!(told.body.contains("IDEMPOTENCY_IN_PROGRESS"), "{told:?}");
            assert!(started.elapsed() < LONGEST);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let admin = if stage.url.starts_with("redis") {
            let store = RedisStore::connect(&stage.url).await.unwrap();
            IdempotencyLayer::new(store, Scope::global()).admin()
        } else {
            IdempotencyLayer::new(stage.db().await, Scope::global()).admin()
        };
        let id = admin.id(&ScopeId::global(), "k");
        let info = admin.get(&id).await.unwrap().unwrap();
        assert_eq!(info.state, RecordState::Unknown);
        let answer = http::Response::builder().status(201);
        let answer = answer.body(Bytes::from_static(b"by hand")).unwrap();
        admin.complete(&info, answer).await.unwrap();
        let told = stage.send(second.address(), "k", &[]).await.unwrap();
        assert_eq!((told.is_replay, &told.body[..]), (true, "by hand"));
        assert_eq!(stage.leased_effects("k").await, 1, "{}", stage.url);
    }
}

#[tokio::test]
async fn a_zombie_that_wakes_after_its_lease_changes_neither_the_effect_nor_the_answer() {
    for stage in Stage::all().await {
        let first = stage.start("leased", 1_000, "reject");
        let second = stage.start("leased", 1_000, "reject");
        let (go, sent) = stage.stopped_at(first.address(), "k", "before").await;
        first.signal("STOP");
        let heir = stage.settled(second.address(), "k", &[409]).await;
        assert_eq!((heir.status, heir.is_replay), (201, false));
        std::fs::write(go, "").unwrap();
        first.signal("CONT");
        let zombie = sent.await.unwrap().expect("its own answer");
        assert_eq!(zombie.status, 410, "its effect was fenced off: {zombie:?}");
        assert_eq!(zombie.outcome.as_deref(), Some("unrecorded"));
        for program in [&first, &second] {
            let again = stage.send(program.address(), "k", &[]).await.unwrap();
            assert_eq!((again.is_replay, &again.body), (true, &heir.body));
        }
        assert_eq!(stage.leased_effects("k").await, 1, "{}", stage.url);
    }
}

#[tokio::test]
async fn a_run_killed_before_its_commit_has_done_nothing_and_the_retry_runs_at_once() {
    for stage in Stage::sql().await {
        let mut first = stage.start("transactional", 60_000, "reject");
        let second = stage.start("transactional", 60_000, "reject");
        let (_, sent) = stage.stopped_at(first.address(), "k", "after").await;
        first.signal("KILL");
        first.wait();
        assert!(sent.await.unwrap().is_none());
        assert_eq!(stage.committed_effects("k").await, 0);
        // Until the server has noticed that the session is gone, its lock may still be there.
        let told = stage.settled(second.address(), "k", &[409, 503]).await;
        assert_eq!((told.status, told.is_replay), (201, false));
        let again = stage.send(second.address(), "k", &[]).await.unwrap();
        assert_eq!((again.is_replay, &again.body), (true, &told.body));
        assert_eq!(stage.committed_effects("k").await, 1);
    }
}

/// The database ends a session that is idle inside a transaction; SQLite's lock waits for its holder.
#[tokio::test]
async fn a_paused_transaction_commits_in_time_or_not_at_all() {
    for stage in Stage::sql().await {
        let first = stage.start("transactional", 2_000, "reject");
        let second = stage.start("transactional", 60_000, "reject");
        let (go, sent) = stage.stopped_at(first.address(), "k", "after").await;
        first.signal("STOP");
        let is_postgres = stage.url.starts_with("postgres");
        if is_postgres {
            let heir = stage.settled(second.address(), "k", &[409, 503]).await;
            assert_eq!((heir.status, heir.is_replay), (201, false));
        } else {
            tokio::time::sleep(Duration::from_millis(2_500)).await;
        }
        std::fs::write(go, "").unwrap();
        first.signal("CONT");
        let zombie = sent.await.unwrap().expect("its own answer");
        let was_kept = zombie.status == 201;
        assert!(!(was_kept && is_postgres), "{zombie:?}");
        let told = stage.settled(second.address(), "k", &[409, 503]).await;
        assert_eq!(
            (told.status, told.is_replay),
            (201, was_kept || is_postgres)
        );
        assert_eq!(stage.committed_effects("k").await, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_twins_of_two_processes_are_one_run() {
    for stage in Stage::all().await {
        for mode in ["leased", "transactional"] {
            if mode == "transactional" && stage.url.starts_with("redis") {
                continue;
            }
            for twins in ["reject", "attach"] {
                hundred(&stage, mode, twins).await;
            }
        }
    }
}

async fn hundred(stage: &Stage, mode: &str, twins: &str) {
    let programs = [(); 2].map(|()| stage.start(mode, 60_000, twins));
    let key = format!("{mode}-{twins}");
    let sent: Vec<_> = (0..100)
        .map(|n| {
            let (client, to) = (stage.client.clone(), programs[n % 2].address());
            let key = key.clone();
            tokio::spawn(async move { send(client, to, &key, &[("x-sleep", "100")]).await })
        })
        .collect();
    let (mut firsts, mut replays, mut conflicts) = (Vec::new(), Vec::new(), 0);
    for told in sent {
        let told = told.await.unwrap().expect("an answer");
        match (told.status, told.is_replay) {
            (201, false) => firsts.push(told.body),
            (201, true) => replays.push(told.body),
            (409, _) if twins == "reject" => conflicts += 1,
            _ => panic!("{mode} {twins}: {told:?}"),
        }
    }
    let at = format!("{} {key}", stage.url);
    assert_eq!((firsts.len(), replays.len() + conflicts), (1, 99), "{at}");
    assert!(replays.iter().all(|body| *body == firsts[0]), "{at}");
    let effects = match mode {
        "leased" => stage.leased_effects(&key).await,
        _ => stage.committed_effects(&key).await,
    };
    assert_eq!(effects, 1, "{at}");
}

#[tokio::test]
async fn the_example_does_what_it_says() {
    let program = Program::start("idempotency", &["127.0.0.1:0"]);
    let client: Client<HttpConnector, Full<Bytes>> =
        Client::builder(TokioExecutor::new()).build_http();
    let ask = async |method: &str, path: &str, key: Option<&str>, body: &'static str| {
        let mut request = Request::builder().method(method);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.uri(format!("http://{}{path}", program.address()));
        let request = request.body(Full::from(body)).unwrap();
        let (parts, body) = client.request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let is_replay = parts.headers.contains_key("idempotency-replayed");
        let body = String::from_utf8(body.to_vec()).unwrap();
        (parts.status.as_u16(), is_replay, body)
    };
    for path in ["/mails", "/transfers"] {
        let first = ask("POST", path, Some("\"a\""), "30").await;
        assert!((200..300).contains(&first.0) && !first.1, "{first:?}");
        let again = ask("POST", path, Some("\"a\""), "30").await;
        assert_eq!(again, (first.0, true, first.2));
        assert_eq!(ask("POST", path, Some("\"a\""), "31").await.0, 422);
        assert_eq!(ask("POST", path, None, "30").await.0, 400);
    }
    let refused = ask("POST", "/transfers", Some("\"b\""), "500").await;
    assert_eq!((refused.0, refused.1), (409, false));
    let again = ask("POST", "/transfers", Some("\"b\""), "500").await;
    assert_eq!(again, (409, true, refused.2));
    assert_eq!(ask("GET", "/balance", None, "").await.2, "70\n");
}
