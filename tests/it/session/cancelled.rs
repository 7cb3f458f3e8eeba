//! Every call of a session, dropped at each of its awaits: what it was to do is done whole or not at all.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use tower::ServiceExt;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::core::{ManualClock, StoreFailure, StoreFuture};
use tower_keep::session::store::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionRef,
    Target, UserId, Whose,
};
use tower_keep::session::{SessionDirectory, SessionLayer, SessionStore};

use super::app::{App, Browser, Probe, clock, memory};

/// While it is slow, each step waits before it is taken, and again before its answer is there.
#[derive(Clone, Debug)]
struct Slow {
    store: MemoryStore,
    slow: Arc<AtomicBool>,
}

impl Slow {
    fn step<T, F>(&self, step: impl FnOnce(MemoryStore) -> F + Send + 'static) -> StoreFuture<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, tower_keep::core::StoreError>> + Send + 'static,
    {
        let store = self.store.clone();
        let waits = u32::from(self.slow.load(Ordering::SeqCst)) * 2;
        StoreFuture::boxed(async move {
            for _ in 0..waits {
                tokio::task::yield_now().await;
            }
            let answer = step(store).await;
            for _ in 0..waits {
                tokio::task::yield_now().await;
            }
            answer
        })
    }
}

impl SessionStore for Slow {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.step(async move |store| SessionStore::load(&store, at, read).await)
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        let patch = patch.clone();
        self.step(async move |store| store.patch(at, &patch).await)
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        self.step(async move |store| store.establish(order).await)
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        self.step(async move |store| SessionStore::list(&store, of).await)
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.step(async move |store| store.assign_roles(user, roles).await)
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        self.step(async move |store| SessionStore::revoke(&store, target).await)
    }
}

/// What is found afterwards: who the browser is, its value, who the other browser is, and how many sessions
/// of `u1` and of `u2` there are.
pub type Found = (String, String, String, usize, usize);

pub struct World {
    app: App,
    directory: SessionDirectory,
    slow: Arc<AtomicBool>,
    pub store: Probe,
    pub browser: Browser,
    other: Browser,
    pub clock: ManualClock,
}

impl World {
    pub async fn new(failure: StoreFailure) -> Self {
        let clock = clock();
        let slow = Arc::new(AtomicBool::new(false));
        let store = Probe::new(Slow {
            store: memory(&clock),
            slow: Arc::clone(&slow),
        });
        let layer = SessionLayer::new(store.clone()).on_store_failure(failure);
        let directory = layer.directory();
        let app = App::new(layer);
        let (browser, other) = (app.browser(), app.browser());
        assert_eq!(other.status("/login/u1").await, 200);
        assert_eq!(browser.status("/set/n/1").await, 204);
        assert_eq!(browser.status("/login/u1").await, 200);
        Self {
            app,
            directory,
            slow,
            store,
            browser,
            other,
            clock,
        }
    }

    /// Polls a request so often and drops it; says whether it came to its end before.
    async fn drop_after(&self, path: &str, polls: usize) -> bool {
        self.slow.store(true, Ordering::SeqCst);
        let request = Request::get(path).header("cookie", self.browser.cookie().unwrap());
        let request = request.body(Body::empty()).unwrap();
        let mut call = Box::pin(self.app.router().oneshot(request));
        let mut done = false;
        for _ in 0..polls {
            done = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_ready())).await;
            if done {
                break;
            }
        }
        drop(call);
        self.slow.store(false, Ordering::SeqCst);
        done
    }

    pub async fn look(&self) -> Found {
        let seen = self.browser.copy();
        let me = seen.body("/me").await;
        let value = seen.body("/get/n").await;
        let live = |user: &'static str| async move {
            let listed = self.directory.list(user).await;
            listed.unwrap().len()
        };
        let other = self.other.copy().body("/me").await;
        (me, value, other, live("u1").await, live("u2").await)
    }
}

/// What may be found.
pub type Legal = (&'static str, &'static str, &'static str, usize, usize);

pub fn found(legal: &[Legal]) -> BTreeSet<Found> {
    let one = |(me, value, other, ones, twos): &Legal| {
        ((*me).into(), (*value).into(), (*other).into(), *ones, *twos)
    };
    legal.iter().map(one).collect()
}

/// Drops `path` at every await; what is found each time is one of `legal`, and each of those is found.
async fn dropped_everywhere(path: &str, legal: &[Legal]) {
    let legal = found(legal);
    let mut seen = BTreeSet::new();
    for polls in 0..200 {
        let world = World::new(StoreFailure::Closed).await;
        let done = world.drop_after(path, polls).await;
        let now = world.look().await;
        assert!(
            legal.contains(&now),
            "{path} after {polls} polls (done: {done}): {now:?}"
        );
        seen.insert(now);
        // Whatever became of it, the visitor can go on. (A login at the moment of a revocation is overtaken.)
        world.clock.advance(Duration::from_secs(1));
        assert_eq!(world.browser.status("/login/u1").await, 200, "{path}");
        assert_eq!(world.browser.body("/me").await, "u1", "{path}");
        if done {
            assert_eq!(seen, legal, "{path} came to its end after {polls} polls");
            return;
        }
    }
    panic!("{path} never came to its end");
}

pub const BEFORE: Legal = ("u1", "1", "u1", 2, 0);

#[tokio::test]
async fn a_question_that_is_dropped_changes_nothing() {
    for path in ["/me", "/get/n", "/list", "/fresh/60", "/expires", "/none"] {
        dropped_everywhere(path, &[BEFORE]).await;
    }
}

#[tokio::test]
async fn a_write_that_is_dropped_is_there_whole_or_not_at_all() {
    for path in ["/set/n/2", "/add/n/1", "/update/n"] {
        dropped_everywhere(path, &[BEFORE, ("u1", "2", "u1", 2, 0)]).await;
    }
    for path in ["/remove/n", "/clear"] {
        dropped_everywhere(path, &[BEFORE, ("u1", "null", "u1", 2, 0)]).await;
    }
}

/// The client holds the secret from before: it has no session then, and no second one is left behind.
#[tokio::test]
async fn a_login_that_is_dropped_has_happened_or_has_not() {
    for path in ["/rotate", "/login/u1"] {
        dropped_everywhere(path, &[BEFORE, ("nobody", "null", "u1", 2, 0)]).await;
    }
    dropped_everywhere("/login/u2", &[BEFORE, ("nobody", "null", "u1", 1, 1)]).await;
    let others = ("nobody", "null", "nobody", 1, 0);
    dropped_everywhere("/login/u1?others", &[BEFORE, others]).await;
}

#[tokio::test]
async fn an_ending_that_is_dropped_has_happened_or_has_not() {
    dropped_everywhere("/logout", &[BEFORE, ("nobody", "null", "u1", 1, 0)]).await;
    let others = ("u1", "1", "nobody", 1, 0);
    dropped_everywhere("/revoke_others", &[BEFORE, others]).await;
    let all = ("nobody", "null", "nobody", 0, 0);
    dropped_everywhere("/revoke_all", &[BEFORE, all]).await;
    // A stamp that does not fit ends the session.
    let ended = ("nobody", "null", "u1", 1, 0);
    dropped_everywhere("/stamp/other", &[BEFORE, ended]).await;
}
