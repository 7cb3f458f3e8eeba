//! The one load that concurrent first questions of a request share.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use super::state::{Core, Own};
use crate::core::telemetry::count;
use crate::core::{AskVisitor, Principal, StoreError, StoreFuture};
use crate::session::error::SessionError;
use crate::session::store::{Loaded, Part, Read, SessionRef};

/// What a question finds.
enum Begin {
    Known,
    Failed(SessionError),
    /// Somebody else asks the store; wait.
    Wait,
    Load(SessionRef, Loading),
}

impl Shared {
    /// Makes `part` known, by at most one store call of the request at a time.
    ///
    /// Dropping it before its answer lets the next one ask.
    pub(super) fn know(self: &Arc<Self>, part: Part) -> StoreFuture<()> {
        match self.begin_load(part) {
            Begin::Known => StoreFuture::ok(()),
            Begin::Failed(error) => StoreFuture::ready(Err(error.to_store_error())),
            Begin::Load(at, loading) => {
                let renew = (!self.is_passive).then(|| self.sighting.clone());
                let answer = self.config.store.load(at, Read { part, renew });
                answer.then(move |answer| loading.settle(answer))
            }
            Begin::Wait => {
                let me = Arc::clone(self);
                StoreFuture::boxed(async move {
                    me.wait().await;
                    me.know(part).await
                })
            }
        }
    }

    fn begin_load(self: &Arc<Self>, part: Part) -> Begin {
        let mut state = self.state();
        if let Some(error) = &state.failed {
            return Begin::Failed(error.clone());
        }
        let Own::Ref(at) = self.own(&mut state) else {
            return Begin::Known;
        };
        let is_known = match state.core {
            Core::Unknown => false,
            Core::Nobody | Core::NotLive(_) => true,
            Core::Live(..) => part == Part::Core || state.data.is_some(),
        };
        if is_known {
            return Begin::Known;
        }
        if state.is_loading {
            return Begin::Wait;
        }
        state.is_loading = true;
        let epoch = state.epoch;
        let shared = Arc::clone(self);
        Begin::Load(
            at,
            Loading {
                shared,
                at,
                epoch,
                part,
            },
        )
    }

    async fn wait(&self) {
        let loaded = self.loaded.notified();
        tokio::pin!(loaded);
        loaded.as_mut().enable();
        if self.state().is_loading {
            loaded.await;
        }
    }
}

/// A load under way; when it is dropped, others may ask.
struct Loading {
    shared: Arc<Shared>,
    at: SessionRef,
    epoch: u32,
    part: Part,
}

impl Loading {
    fn settle(self, answer: Result<Loaded, StoreError>) -> Result<(), StoreError> {
        let shared = &self.shared;
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let error = SessionError::from(error);
                shared.failed(&error);
                return Err(error.to_store_error());
            }
        };
        count!(
            "keep_session_loads_total", 1,
            "part" => if self.part == Part::Core { "core" } else { "whole" },
            "answer" => if matches!(answer, Loaded::Live(_)) { "live" } else { "not_live" },
        );
        let mut state = shared.state();
        if state.epoch != self.epoch {
            return Ok(());
        }
        match answer {
            Loaded::Live(live) => {
                state.was_seen_live = true;
                if live.data.is_some() {
                    state.data = live.data;
                }
                state.core = Core::Live(Box::new(live.record), live.now);
                shared.renewed(&mut state, live.renewed);
            }
            Loaded::NotLive(why) => shared.found_dead(&mut state, self.at, why),
        }
        Ok(())
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.shared.state().is_loading = false;
        self.shared.loaded.notify_waiters();
    }
}

/// What other layers ask; it touches the session, but does not make the answer personal.
impl AskVisitor for Shared {
    fn principal(&self) -> StoreFuture<Option<Principal>> {
        self.touch();
        let Some(me) = self.me.upgrade() else {
            return StoreFuture::ok(None);
        };
        let known = me.know(Part::Core);
        known.map(move |()| {
            let state = me.state();
            state
                .record()
                .and_then(|(record, _)| record.principal.clone())
        })
    }

    fn mark_personal(&self) {
        self.touch();
        self.personal.store(true, Ordering::Relaxed);
    }

    fn is_personal(&self) -> bool {
        self.personal.load(Ordering::Relaxed)
    }
}
