//! Random requests of two browsers, each with several calls of the handle, against plain maps.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};
use tokio::runtime::Builder;
use tower::{Layer, ServiceExt, service_fn};
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{ManualClock, Principal};
use tower_keep::session::{Login, Session, SessionError, SessionLayer, SessionRejection};

use super::app::clock;

const IDLE: u64 = 900_000;
const DAY: u64 = 86_400_000;
const FRESH: Duration = Duration::from_secs(100);

/// What a handler calls, and with what.
#[derive(Clone, Debug)]
enum Call {
    Get(u8),
    Insert(u8, i64),
    Remove(u8),
    Increment(u8, i64),
    Clear,
    Commit,
    Update(u8, i64),
    Login(u8),
    Rotate,
    Logout,
    List,
    RevokeOthers,
    RevokeAll,
    Principal,
    IsLive,
    Stamp(u8),
    Fresh,
}

#[derive(Clone, Debug)]
struct Visit {
    browser: usize,
    /// Milliseconds since the visit before.
    after: u64,
    calls: Vec<Call>,
    status: u16,
}

fn call() -> impl Strategy<Value = Call> {
    let (key, number, user) = (0..3_u8, -5..5_i64, 0..2_u8);
    prop_oneof![
        4 => key.clone().prop_map(Call::Get),
        4 => (key.clone(), number.clone()).prop_map(|(key, to)| Call::Insert(key, to)),
        2 => key.clone().prop_map(Call::Remove),
        3 => (key.clone(), number.clone()).prop_map(|(key, by)| Call::Increment(key, by)),
        1 => Just(Call::Clear),
        2 => Just(Call::Commit),
        3 => (key, number).prop_map(|(key, by)| Call::Update(key, by)),
        3 => user.clone().prop_map(Call::Login),
        2 => Just(Call::Rotate),
        2 => Just(Call::Logout),
        1 => Just(Call::List),
        1 => Just(Call::RevokeOthers),
        1 => Just(Call::RevokeAll),
        3 => Just(Call::Principal),
        1 => Just(Call::IsLive),
        1 => user.prop_map(Call::Stamp),
        1 => Just(Call::Fresh),
    ]
}

fn visit() -> impl Strategy<Value = Visit> {
    let after = prop_oneof![
        4 => Just(0),
        4 => prop::sample::select(vec![30_000, 60_000, 60_001, 99_999, 100_000, 400_000, IDLE - 1, IDLE]),
    ];
    let status = prop_oneof![5 => Just(200), 1 => Just(500), 1 => Just(404)];
    (
        0..2_usize,
        after,
        prop::collection::vec(call(), 0..6),
        status,
    )
        .prop_map(|(browser, after, calls, status)| Visit {
            browser,
            after,
            calls,
            status,
        })
}

/// A session that is live.
#[derive(Clone, Debug)]
struct Facts {
    user: Option<u8>,
    data: BTreeMap<u8, i64>,
    last: u64,
    end: u64,
    login: u64,
}

/// All there is. Each secret has a number of its own.
#[derive(Default)]
struct World {
    now: u64,
    secrets: u32,
    live: BTreeMap<u32, Facts>,
    /// When sessions were revoked.
    revoked: BTreeMap<u32, u64>,
    /// When a user's sessions were last revoked.
    changed: BTreeMap<u8, u64>,
    jars: [Option<u32>; 2],
}

impl World {
    fn put(&mut self, facts: Facts) -> u32 {
        self.secrets += 1;
        self.live.insert(self.secrets, facts);
        self.secrets
    }

    /// Somebody new.
    fn nobody(&self) -> Facts {
        Facts {
            user: None,
            data: BTreeMap::new(),
            last: self.now,
            end: self.now + DAY,
            login: 0,
        }
    }

    fn revoke(&mut self, user: u8, but: Option<u32>) -> usize {
        let (now, before) = (self.now, self.live.len());
        let revoked = &mut self.revoked;
        self.live.retain(|own, facts| {
            let stays = facts.user != Some(user) || Some(*own) == but;
            if !stays {
                revoked.insert(*own, now);
            }
            stays
        });
        self.changed.insert(user, now);
        before - self.live.len()
    }
}

/// What is buffered of a key.
#[derive(Clone, Copy)]
enum Buffered {
    Value(i64),
    Gone,
    Sum(i64),
}

#[derive(Clone, Default)]
struct Buffer {
    clear: bool,
    keys: BTreeMap<u8, Buffered>,
}

impl Buffer {
    fn write(self, data: &mut BTreeMap<u8, i64>) {
        if self.clear {
            data.clear();
        }
        for (key, buffered) in self.keys {
            match buffered {
                Buffered::Value(to) => drop(data.insert(key, to)),
                Buffered::Gone => drop(data.remove(&key)),
                Buffered::Sum(by) => *data.entry(key).or_default() += by,
            }
        }
    }

    fn add(&mut self, key: u8, by: i64) {
        let sum = match self.keys.get(&key) {
            Some(Buffered::Value(to)) => Buffered::Value(to + by),
            Some(Buffered::Sum(sum)) => Buffered::Sum(sum + by),
            Some(Buffered::Gone) => Buffered::Value(by),
            None if self.clear => Buffered::Value(by),
            None => Buffered::Sum(by),
        };
        self.keys.insert(key, sum);
    }
}

/// A request as it should go.
struct Model<'a> {
    world: &'a mut World,
    own: Option<u32>,
    /// It came with a session that was revoked a moment ago: its writes go nowhere.
    was_revoked: bool,
    buffer: Buffer,
    /// What the browser is told to keep.
    told: Option<Option<u32>>,
}

impl Model<'_> {
    fn live(&mut self) -> Option<&mut Facts> {
        self.world.live.get_mut(&self.own?)
    }

    /// Reading and writing record activity: a minute after the last.
    fn touched(&mut self) -> Option<&mut Facts> {
        let now = self.world.now;
        let facts = self.live()?;
        if now - facts.last > 60_000 {
            facts.last = now;
        }
        Some(facts)
    }

    fn user(&mut self) -> Option<u8> {
        self.live()?.user
    }

    fn issue(&mut self, facts: Facts) {
        self.own = Some(self.world.put(facts));
        (self.told, self.was_revoked) = (Some(self.own), false);
    }

    /// The session ends with what is buffered; whatever is written from now on is somebody new's.
    fn leave(&mut self) {
        if self.own.take().is_some() {
            self.told = Some(None);
        }
        (self.buffer, self.was_revoked) = (Buffer::default(), false);
    }

    fn commit(&mut self) -> Result<(), String> {
        let buffer = std::mem::take(&mut self.buffer);
        if !buffer.clear && buffer.keys.is_empty() {
            return Ok(());
        }
        if let Some(facts) = self.touched() {
            buffer.write(&mut facts.data);
            return Ok(());
        }
        if self.was_revoked {
            return Err("Ended".into());
        }
        if buffer
            .keys
            .values()
            .any(|one| !matches!(one, Buffered::Gone))
        {
            let mut facts = self.world.nobody();
            buffer.write(&mut facts.data);
            self.issue(facts);
        }
        Ok(())
    }

    fn get(&mut self, key: u8) -> Option<i64> {
        let stored = |model: &mut Self| model.touched()?.data.get(&key).copied();
        match self.buffer.keys.get(&key).copied() {
            Some(Buffered::Value(to)) => Some(to),
            Some(Buffered::Gone) => None,
            Some(Buffered::Sum(by)) => Some(stored(self).unwrap_or(0) + by),
            None if self.buffer.clear => None,
            None => stored(self),
        }
    }

    fn update(&mut self, key: u8, by: i64) -> Result<i64, String> {
        self.commit()?;
        if let Some(facts) = self.touched() {
            let value = facts.data.entry(key).or_default();
            *value += by;
            return Ok(*value);
        }
        if self.was_revoked {
            return Err("Ended".into());
        }
        let mut facts = self.world.nobody();
        facts.data.insert(key, by);
        self.issue(facts);
        Ok(by)
    }

    fn login(&mut self, user: u8) -> String {
        let now = self.world.now;
        if self.world.changed.get(&user) == Some(&now) {
            return "401".into();
        }
        let current = self.own.and_then(|own| self.world.live.remove(&own));
        let mut facts = current.unwrap_or_else(|| self.world.nobody());
        if facts.user.is_some_and(|before| before != user) {
            facts.data.clear();
        }
        std::mem::take(&mut self.buffer).write(&mut facts.data);
        (facts.user, facts.login) = (Some(user), now);
        (facts.last, facts.end) = (now, now + DAY);
        self.issue(facts);
        "ok".into()
    }

    fn call(&mut self, call: &Call) -> String {
        let ok = "ok".to_owned();
        let nobody = "401".to_owned();
        match *call {
            Call::Get(key) => format!("{:?}", self.get(key)),
            Call::Insert(key, to) => {
                self.buffer.keys.insert(key, Buffered::Value(to));
                ok
            }
            Call::Remove(key) => {
                self.buffer.keys.insert(key, Buffered::Gone);
                ok
            }
            Call::Increment(key, by) => {
                self.buffer.add(key, by);
                ok
            }
            Call::Clear => {
                self.buffer = Buffer {
                    clear: true,
                    ..Buffer::default()
                };
                ok
            }
            Call::Commit => self.commit().map_or_else(|kind| kind, |()| ok),
            Call::Update(key, by) => self
                .update(key, by)
                .map_or_else(|kind| kind, |value| value.to_string()),
            Call::Login(user) => self.login(user),
            Call::Rotate => match self.touched().cloned() {
                Some(facts) => {
                    self.own.map(|own| self.world.live.remove(&own));
                    self.issue(facts);
                    ok
                }
                None => "Ended".into(),
            },
            Call::Logout => {
                self.own.map(|own| self.world.live.remove(&own));
                self.leave();
                ok
            }
            Call::List => self.user().map_or(nobody, |user| {
                let theirs = |facts: &&Facts| facts.user == Some(user);
                self.world.live.values().filter(theirs).count().to_string()
            }),
            Call::RevokeOthers => self
                .user()
                .map_or(nobody, |user| self.world.revoke(user, self.own).to_string()),
            Call::RevokeAll => self.user().map_or(nobody, |user| {
                let ended = self.world.revoke(user, None);
                self.leave();
                ended.to_string()
            }),
            Call::Principal => format!("{:?}", self.touched().and_then(|facts| facts.user)),
            Call::IsLive => self.live().is_some().to_string(),
            Call::Stamp(stamp) => match self.touched().and_then(|facts| facts.user) {
                Some(user) if user == stamp => ok,
                Some(_) => {
                    self.own.map(|own| self.world.live.remove(&own));
                    self.leave();
                    nobody
                }
                None => nobody,
            },
            Call::Fresh => {
                let now = self.world.now;
                let login = self.touched().filter(|facts| facts.user.is_some());
                match login.map(|facts| now - facts.login) {
                    Some(age) if u128::from(age) < FRESH.as_millis() => ok,
                    Some(_) => "stale".into(),
                    None => nobody,
                }
            }
        }
    }
}

/// What the calls of a visit should say, and what the browser should be told to keep.
fn expected(world: &mut World, visit: &Visit) -> (Vec<String>, Option<Option<u32>>) {
    world.now += visit.after;
    let now = world.now;
    world
        .live
        .retain(|_, facts| facts.last + IDLE > now && facts.end > now);
    let own = world.jars[visit.browser];
    let revoked = own.and_then(|own| world.revoked.get(&own));
    let mut model = Model {
        was_revoked: revoked.is_some_and(|at| now - at <= 60_000),
        world,
        own,
        buffer: Buffer::default(),
        told: None,
    };
    let said = visit.calls.iter().map(|call| model.call(call)).collect();
    if visit.status < 500 {
        let _ = model.commit();
    }
    (said, model.told)
}

fn kind(error: SessionError) -> String {
    format!("{:?}", error.kind())
}

fn refusal(rejection: SessionRejection) -> String {
    match rejection {
        SessionRejection::FreshLoginRequired { .. } => "stale".into(),
        SessionRejection::Fault(error) => kind(error),
        other => other.status().as_u16().to_string(),
    }
}

/// The same call of a real session.
async fn called(session: &Session, call: Call) -> String {
    let ok = |()| "ok".to_owned();
    let key = |key: u8| format!("k{key}");
    match call {
        Call::Get(k) => {
            let value = session.get::<i64>(key(k)).await;
            value.map_or_else(kind, |value| format!("{value:?}"))
        }
        Call::Insert(k, to) => session.insert(key(k), &to).map_or_else(kind, ok),
        Call::Remove(k) => session.remove(key(k)).map_or_else(kind, ok),
        Call::Increment(k, by) => session.increment(key(k), by).map_or_else(kind, ok),
        Call::Clear => session.clear().map_or_else(kind, ok),
        Call::Commit => session.commit().await.map_or_else(kind, ok),
        Call::Update(k, by) => {
            let add = |value: &mut i64| {
                *value += by;
                *value
            };
            let value = session.update(key(k), add).await;
            value.map_or_else(kind, |value| value.to_string())
        }
        Call::Login(user) => {
            let login = Login::new(Principal::new(user.to_string())).auth_stamp([user]);
            session.login(login).await.map_or_else(refusal, ok)
        }
        Call::Rotate => session.rotate().await.map_or_else(kind, ok),
        Call::Logout => session.logout().await.map_or_else(kind, ok),
        Call::List => session.list().await.map_or_else(refusal, |sessions| {
            assert_eq!(sessions.iter().filter(|one| one.current).count(), 1);
            sessions.len().to_string()
        }),
        Call::RevokeOthers => {
            let ended = session.revoke_others().await;
            ended.map_or_else(refusal, |ended| ended.to_string())
        }
        Call::RevokeAll => {
            let ended = session.revoke_all().await;
            ended.map_or_else(refusal, |ended| ended.to_string())
        }
        Call::Principal => session.principal().await.map_or_else(kind, |principal| {
            let user = principal.map(|principal| principal.id().parse::<u8>().unwrap());
            format!("{user:?}")
        }),
        Call::IsLive => session
            .is_live()
            .await
            .map_or_else(kind, |is| is.to_string()),
        Call::Stamp(stamp) => {
            let fits = session.check_auth_stamp([stamp]).await;
            fits.map_or_else(refusal, ok)
        }
        Call::Fresh => session.require_fresh(FRESH).await.map_or_else(refusal, ok),
    }
}

/// The token that a response tells the browser to keep; empty to remove it.
fn told<B>(response: &Response<B>) -> Option<String> {
    let mut lines = response.headers().get_all("set-cookie").iter();
    let (first, second) = (lines.next(), lines.next());
    assert_eq!(second, None, "one cookie at most");
    let pair = first?.to_str().unwrap().split(';').next().unwrap();
    Some(pair.split_once('=').unwrap().1.to_owned())
}

async fn goes_as_it_should(clock: ManualClock, visits: Vec<Visit>) -> Result<(), TestCaseError> {
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let said = Arc::<Mutex<Vec<String>>>::default();
    let (mut world, mut jars) = (World::default(), [const { None::<String> }; 2]);
    for visit in visits {
        let before = world.jars[visit.browser];
        let (expected, kept) = expected(&mut world, &visit);
        clock.advance(Duration::from_millis(visit.after));
        let (handled, heard) = (visit.clone(), Arc::clone(&said));
        let handler = service_fn(move |request: Request<()>| {
            let (visit, said) = (handled.clone(), Arc::clone(&heard));
            async move {
                let session = Session::of(request.extensions()).unwrap();
                let mut answers = Vec::new();
                for call in visit.calls {
                    answers.push(called(&session, call).await);
                }
                *said.lock() = answers;
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::from_u16(visit.status).unwrap();
                Ok::<_, Infallible>(response)
            }
        });
        let jar = &mut jars[visit.browser];
        let cookie = jar.iter().map(|token| format!("__Host-id={token}"));
        let request = cookie.fold(Request::builder(), |request, cookie| {
            request.header("cookie", cookie)
        });
        let service = SessionLayer::new(store.clone()).layer(handler);
        let answer = service.oneshot(request.body(()).unwrap()).await;
        let response = answer.unwrap_or_else(|never| match never {});
        prop_assert_eq!(&*said.lock(), &expected, "{:?}", visit);
        prop_assert_eq!(response.status().as_u16(), visit.status);
        let told = told(&response);
        match kept {
            Some(Some(_)) => prop_assert!(told.as_ref().is_some_and(|token| !token.is_empty())),
            Some(None) => prop_assert_eq!(told.as_deref(), Some("")),
            // A dead one goes where the store was asked about it; it opens nothing either way.
            None => {
                let is_dead = before.is_some_and(|own| !world.live.contains_key(&own));
                prop_assert!(told.is_none() || is_dead && told.as_deref() == Some(""));
            }
        }
        if let Some(token) = told {
            world.jars[visit.browser] = kept.flatten();
            *jar = Some(token).filter(|token| !token.is_empty());
        }
    }
    Ok(())
}

#[test]
fn whatever_handlers_call_their_sessions_do_as_plain_maps_would() {
    let cases = std::env::var("KEEP_HISTORIES").map_or(400, |cases| cases.parse().unwrap());
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases)
    };
    let seeded = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let visits = prop::collection::vec(visit(), 1..8);
    let all = TestRunner::new_with_rng(config, seeded).run(&visits, |visits| {
        runtime.block_on(goes_as_it_should(clock(), visits))
    });
    all.unwrap();
}
