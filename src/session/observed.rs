//! Watches the store calls: a span and a duration each, and one word at the beginning and the end of an outage.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::store::{
    Establish, Established, Listed, Loaded, Patch, Patched, Read, Revoked, Roles, SessionId,
    SessionRef, SessionStore, Target, UserId, Whose,
};
use crate::core::telemetry::{error, info, seconds};
use crate::core::{Clock, StoreError, StoreFuture, SystemClock};

/// A store whose calls are told to whoever watches; without the features `tracing` and `metrics` the store itself.
pub(super) fn observed(store: Arc<dyn SessionStore>) -> Arc<dyn SessionStore> {
    if cfg!(any(feature = "tracing", feature = "metrics")) {
        Arc::new(Observed {
            store,
            is_away: Arc::default(),
        })
    } else {
        store
    }
}

struct Observed {
    store: Arc<dyn SessionStore>,
    is_away: Arc<AtomicBool>,
}

impl Observed {
    fn watch<T: Send + 'static>(
        &self,
        method: &'static str,
        session: Option<SessionId>,
        answer_of: fn(&T) -> &'static str,
        call: impl FnOnce(&dyn SessionStore) -> StoreFuture<T>,
    ) -> StoreFuture<T> {
        let span = Span::begin(method, session);
        let began = SystemClock.now_micros();
        let is_away = Arc::clone(&self.is_away);
        call(&*self.store).then(move |answer| {
            let micros = SystemClock.now_micros().saturating_sub(began);
            let took = std::time::Duration::from_micros(micros);
            seconds!("keep_session_store_seconds", took, "method" => method);
            span.end(match &answer {
                Ok(answer) => answer_of(answer),
                Err(error) if error.is_unknown() => "unavailable",
                Err(_) => "failed",
            });
            outage(&is_away, answer.as_ref().err());
            answer
        })
    }
}

/// Says once that the store is away, and once that it is back.
fn outage(is_away: &AtomicBool, problem: Option<&StoreError>) {
    match problem {
        Some(problem) if problem.is_unknown() => {
            if !is_away.swap(true, Ordering::Relaxed) {
                error!("the session store does not answer: {problem}");
            }
        }
        _ => {
            if is_away.load(Ordering::Relaxed) && is_away.swap(false, Ordering::Relaxed) {
                info!("the session store answers again");
            }
        }
    }
}

/// One span per store call: which session, what was asked, what was answered.
struct Span {
    #[cfg(feature = "tracing")]
    span: tracing::Span,
}

impl Span {
    fn begin(method: &'static str, session: Option<SessionId>) -> Self {
        #[cfg(not(feature = "tracing"))]
        let _ = (method, session);
        Self {
            #[cfg(feature = "tracing")]
            span: tracing::debug_span!(
                "session_store",
                session = session.map(tracing::field::display),
                method,
                answer = tracing::field::Empty,
            ),
        }
    }

    fn end(self, answer: &'static str) {
        #[cfg(not(feature = "tracing"))]
        let _ = answer;
        #[cfg(feature = "tracing")]
        self.span.record("answer", answer);
    }
}

impl SessionStore for Observed {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        self.watch("load", Some(at.id), Loaded::as_str, |store| {
            store.load(at, read)
        })
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        self.watch("patch", Some(at.id), Patched::as_str, |store| {
            store.patch(at, patch)
        })
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        let session = order.current.map_or(order.fresh, |current| current.id);
        self.watch("establish", Some(session), Established::as_str, |store| {
            store.establish(order)
        })
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        self.watch("list", asking(&of), Listed::as_str, |store| store.list(of))
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        self.watch(
            "assign_roles",
            None,
            |_| "done",
            |store| store.assign_roles(user, roles),
        )
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        let session = match &target {
            Target::Own(at, _) | Target::Others(at) => Some(at.id),
            Target::One(_, id) => Some(*id),
            Target::All(whose) => asking(whose),
            Target::Everyone => None,
        };
        self.watch("revoke", session, Revoked::as_str, |store| {
            store.revoke(target)
        })
    }
}

fn asking(whose: &Whose) -> Option<SessionId> {
    match whose {
        Whose::Session(at) => Some(at.id),
        Whose::User(_) => None,
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}
