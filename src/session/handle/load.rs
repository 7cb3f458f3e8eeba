//! The one load that concurrent first questions of a request share.

use std::sync::Arc;

use super::Shared;
use super::state::{Core, Own, State};
use crate::core::telemetry::count;
use crate::core::{AskVisitor, Principal, StoreError, StoreFuture, Timestamp};
use crate::session::data::Value;
use crate::session::error::SessionError;
use crate::session::store::{Loaded, NotLive, Part, Read, SessionRecord, SessionRef};

/// What a question finds.
pub(super) enum Asked {
    /// It is known, here and now.
    Known,
    Failed(SessionError),
    /// Ask again after this; an error is noted in the state.
    Later(StoreFuture<()>),
}

/// A value as the store has it.
pub(super) struct Stored {
    pub(super) version: u64,
    pub(super) value: Value,
}

impl Shared {
    /// Makes `part` known, by at most one store call of the request at a time; at once where the store answers at once.
    ///
    /// Dropping what is to be awaited lets the next one ask.
    pub(super) fn know(self: &Arc<Self>, state: &mut State, part: Part) -> Asked {
        if let Some(error) = &state.failed {
            return Asked::Failed(error.clone());
        }
        let Own::Ref(at) = self.own(state) else {
            return Asked::Known;
        };
        let is_known = match state.core {
            Core::Unknown => false,
            Core::Nobody | Core::NotLive(_) => true,
            Core::Live(_) => part == Part::Core || state.data.is_some(),
        };
        if is_known {
            return Asked::Known;
        }
        if state.is_loading {
            let me = Arc::clone(self);
            return Asked::Later(StoreFuture::boxed(async move {
                me.wait().await;
                Ok(())
            }));
        }
        if std::mem::take(&mut state.is_in_doubt) {
            return self.after_turn();
        }
        let renew = (!self.is_passive).then(|| self.sighting.clone());
        match self.config.store.load(at, Read { part, renew }).try_now() {
            Ok(answer) if self.is_in_doubt(&answer) => self.after_turn(),
            Ok(answer) => match self.settle(state, at, part, answer) {
                Ok(()) => Asked::Known,
                Err(error) => Asked::Failed(error),
            },
            Err(later) => {
                state.is_loading = true;
                let loading = Loading {
                    shared: Arc::clone(self),
                    at,
                    epoch: state.epoch,
                    part,
                };
                Asked::Later(later.then(move |answer| loading.settle(answer)))
            }
        }
    }

    /// Reads the core; `None` where nobody is live, or the store away and the layer open.
    pub(super) async fn core<R>(
        self: &Arc<Self>,
        read: impl FnOnce(&SessionRecord, Timestamp) -> R,
    ) -> Result<Option<R>, SessionError> {
        loop {
            let later = {
                let mut state = self.state();
                match self.know(&mut state, Part::Core) {
                    Asked::Known => {
                        return Ok(state.record().map(|(record, now)| read(record, now)));
                    }
                    Asked::Failed(_) if self.is_open() => return Ok(None),
                    Asked::Failed(error) => return Err(error),
                    Asked::Later(later) => later,
                }
            };
            // An error is found in the state.
            let _ = later.await;
        }
    }

    /// Returns what the store has under `name`, or what to wait for.
    pub(super) fn stored(
        self: &Arc<Self>,
        state: &mut State,
        name: &str,
    ) -> Result<Result<Option<Stored>, SessionError>, StoreFuture<()>> {
        match self.know(state, Part::Whole) {
            Asked::Known => {}
            Asked::Failed(_) if self.is_open() => return Ok(Ok(None)),
            Asked::Failed(error) => return Ok(Err(error)),
            Asked::Later(later) => return Err(later),
        }
        let entry = match (&state.core, &state.data) {
            (Core::Live(_), Some(data)) => data.get(name),
            _ => None,
        };
        Ok(Ok(entry.map(|entry| Stored {
            version: entry.version,
            value: entry.value.clone(),
        })))
    }

    /// Says whether a login or rotation of this very request, on another thread, may be about to hear of its success:
    /// then a superseded secret tells nothing yet.
    fn is_in_doubt(&self, answer: &Result<Loaded, StoreError>) -> bool {
        matches!(answer, Ok(Loaded::NotLive(NotLive::Superseded))) && self.turn.try_lock().is_err()
    }

    /// Asks again after whoever has the turn.
    fn after_turn(self: &Arc<Self>) -> Asked {
        let me = Arc::clone(self);
        Asked::Later(StoreFuture::boxed(async move {
            drop(me.turn.lock().await);
            Ok(())
        }))
    }

    async fn wait(&self) {
        let loaded = self.loaded.notified();
        tokio::pin!(loaded);
        loaded.as_mut().enable();
        if self.state().is_loading {
            loaded.await;
        }
    }

    fn settle(
        &self,
        state: &mut State,
        at: SessionRef,
        part: Part,
        answer: Result<Loaded, StoreError>,
    ) -> Result<(), SessionError> {
        let answer = answer.map_err(|error| self.note_failed(state, error.into()))?;
        count!(
            "keep_session_loads_total", 1,
            "part" => if part == Part::Core { "core" } else { "whole" },
            "answer" => answer.as_str(),
        );
        match answer {
            Loaded::Live(mut live) => {
                state.was_seen_live = true;
                if let Some(data) = live.data.take() {
                    state.data = Some(data);
                }
                let renewed = live.renewed;
                state.core = Core::Live(live);
                self.renewed(state, renewed);
            }
            Loaded::NotLive(why) => self.found_dead(state, at, why),
        }
        Ok(())
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
        let mut state = self.shared.state();
        // A login or logout of this very request came in between: the answer is about another session.
        if state.epoch != self.epoch && answer.is_ok() {
            return Ok(());
        }
        // Whoever asks waits for it, and looks again.
        if self.shared.is_in_doubt(&answer) {
            state.is_in_doubt = true;
            return Ok(());
        }
        let settled = self.shared.settle(&mut state, self.at, self.part, answer);
        settled.map_err(|error| error.to_store_error())
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
    fn principal(self: Arc<Self>) -> StoreFuture<Option<Principal>> {
        self.touch_as(super::TOUCHED);
        let ask = |me: &Arc<Self>| {
            let mut state = me.state();
            match me.know(&mut state, Part::Core) {
                Asked::Known => Ok(Ok(state.principal())),
                Asked::Failed(error) => Ok(Err(error.to_store_error())),
                Asked::Later(later) => Err(later),
            }
        };
        match ask(&self) {
            Ok(answer) => StoreFuture::ready(answer),
            Err(mut later) => StoreFuture::boxed(async move {
                loop {
                    // An error is found in the state; whoever waited for another's load looks again.
                    let _ = later.await;
                    match ask(&self) {
                        Ok(answer) => return answer,
                        Err(again) => later = again,
                    }
                }
            }),
        }
    }

    fn mark_personal(&self) {
        self.touch_as(super::TOUCHED | super::PERSONAL);
    }

    fn is_personal(&self) -> bool {
        self.has(super::PERSONAL)
    }
}
