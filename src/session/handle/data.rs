//! Values: read lazily, written blind, updated by compare and set.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::commit::{Committed, Committing, DRAWS};
use super::load::Stored;
use super::state::{Buffer, Buffered, Core, Own};
use super::{Session, Shared};
use crate::core::StoreFuture;
use crate::core::telemetry::count;
use crate::session::data::{self, Value};
use crate::session::error::{SessionError, SessionErrorKind};
use crate::session::event::SessionEventKind;
use crate::session::key::{SessionKey, check_name};
use crate::session::policy::{self, DeadWrite};
use crate::session::store::{
    Establish, Established, Identity, NotLive, Operation, Otherwise, Patch, Patched, SessionRef,
};
use crate::session::token::{Secret, SessionId};

/// Attempts of one `update`.
const ATTEMPTS: u32 = 64;
/// From this attempt on it waits a little first.
const PATIENT_FROM: u32 = 5;

impl Session {
    /// Reads a value; what this request buffered counts. The first one costs one store call, all others none.
    ///
    /// # Errors
    /// The store cannot answer, or the name is out of its bounds. A value that cannot be decoded is `None`.
    pub async fn get<T: DeserializeOwned>(
        &self,
        key: impl Into<SessionKey<T>>,
    ) -> Result<Option<T>, SessionError> {
        let key = key.into();
        let name = key.checked()?;
        let shared = self.ask();
        loop {
            let later = match shared.value(name) {
                Ok(Here::Stored(found)) => {
                    return Ok(found?.and_then(|found| shared.decode(&key, &found)));
                }
                Ok(Here::Buffered(value)) => return Ok(value.and_then(|value| key.decode(&value))),
                Err(later) => later,
            };
            // An error is found in the state.
            let _ = later.await;
        }
    }

    /// Writes a value when the request ends well, without loading anything.
    ///
    /// # Errors
    /// The value is no JSON or too large by itself, the name is out of its bounds, or the headers have left.
    pub fn insert<T: Serialize>(
        &self,
        key: impl Into<SessionKey<T>>,
        value: &T,
    ) -> Result<(), SessionError> {
        let key = key.into();
        let shared = self.ask();
        shared.check_sealed()?;
        let (name, value) = (key.checked()?, key.encode(value)?);
        if name.len() + value.json.len() > shared.config.data_limit {
            return Err(SessionError::new(SessionErrorKind::TooLarge));
        }
        shared.buffer(|buffer| buffer.set(key.into_name(), Operation::Set(value)))
    }

    /// Removes a value when the request ends well, without loading anything.
    ///
    /// # Errors
    /// The name is out of its bounds, or the headers have left.
    pub fn remove(&self, key: impl AsRef<str>) -> Result<(), SessionError> {
        let shared = self.ask();
        shared.check_sealed()?;
        let name = Cow::Owned(check_name(key.as_ref())?.to_owned());
        shared.buffer(|buffer| buffer.set(name, Operation::Remove))
    }

    /// Adds to an integer when the request ends well, without loading anything; absent counts as 0.
    ///
    /// Integers stay within ±(2^53 − 1), saturating.
    ///
    /// # Errors
    /// As [`Session::remove`]; what this request buffered is no integer.
    pub fn increment(&self, key: impl AsRef<str>, by: i64) -> Result<(), SessionError> {
        let shared = self.ask();
        shared.check_sealed()?;
        let name = Cow::Owned(check_name(key.as_ref())?.to_owned());
        shared.buffer(|buffer| buffer.increment(name, by))?
    }

    /// Removes all values when the request ends well; the login stays.
    ///
    /// # Errors
    /// The headers have left.
    pub fn clear(&self) -> Result<(), SessionError> {
        let shared = self.ask();
        shared.buffer(Buffer::clear)
    }

    /// Sends what is buffered now.
    ///
    /// Dropping it: the patch is applied whole or not at all, and later commits of this request fail, since nobody
    /// knows which.
    ///
    /// # Errors
    /// The store cannot answer, or could not answer an earlier call; the data is too large; what was incremented is no integer; the session is over
    /// ([`SessionErrorKind::Ended`]), and nothing was written.
    pub async fn commit(&self) -> Result<(), SessionError> {
        let shared = self.ask();
        match Committing::new(Arc::clone(shared)).await? {
            Committed::Applied => Ok(()),
            Committed::Dropped => Err(match &shared.state().failed {
                Some(error) => error.clone(),
                None => SessionError::new(SessionErrorKind::Ended),
            }),
        }
    }

    /// Changes a value by `change` and commits it: of many parallel updates of one key none is lost.
    ///
    /// What is buffered is sent first. `change` starts from `T::default()` where there is no value, and may run
    /// more than once. Dropping it: the change is committed whole or not at all.
    ///
    /// # Errors
    /// The store cannot answer; others were faster 64 times ([`SessionErrorKind::Busy`]); the session is over;
    /// the data is too large; a new session would need a header that has left.
    pub async fn update<T, R>(
        &self,
        key: impl Into<SessionKey<T>>,
        mut change: impl FnMut(&mut T) -> R,
    ) -> Result<R, SessionError>
    where
        T: Serialize + DeserializeOwned + Default,
    {
        let key = key.into();
        let name = key.checked()?;
        self.commit().await?;
        let shared = &self.shared;
        let mut found = shared.read(name).await?;
        shared.check_answered()?;
        for attempt in 1..=ATTEMPTS {
            let (answer, value) = {
                let before = found.as_ref().and_then(|found| shared.decode(&key, found));
                let mut value = before.unwrap_or_default();
                (change(&mut value), key.encode(&value)?)
            };
            match shared
                .replace(key.name().clone(), found.as_ref(), value)
                .await?
            {
                Replaced::Done => return Ok(answer),
                Replaced::Conflict(entry) => found = entry,
            }
            count!("keep_session_update_retries_total", 1);
            wait_a_little(attempt).await;
        }
        Err(SessionError::new(SessionErrorKind::Busy))
    }
}

/// What an attempt to replace a value found.
enum Replaced {
    Done,
    Conflict(Option<Stored>),
}

/// A value as this request sees it, without waiting.
enum Here {
    Stored(Result<Option<Stored>, SessionError>),
    Buffered(Option<Value>),
}

impl Shared {
    /// Finds a value, or what to wait for: the buffer first, then the store, read at most once.
    fn value(self: &Arc<Self>, name: &str) -> Result<Here, StoreFuture<()>> {
        let mut state = self.state();
        Ok(match state.buffer.get(name) {
            Buffered::Gone => Here::Buffered(None),
            Buffered::Value(value) => Here::Buffered(Some(value)),
            Buffered::Nothing => Here::Stored(self.stored(&mut state, name)?),
            Buffered::Increment(by) => match self.stored(&mut state, name)? {
                Ok(found) => {
                    let before = found.map(|found| found.value);
                    Here::Buffered(data::incremented(before.as_ref(), by))
                }
                Err(error) => Here::Stored(Err(error)),
            },
        })
    }

    /// Returns what the store has, read at most once.
    async fn read(self: &Arc<Self>, name: &str) -> Result<Option<Stored>, SessionError> {
        loop {
            let later = {
                let mut state = self.state();
                match self.stored(&mut state, name) {
                    Ok(found) => return found,
                    Err(later) => later,
                }
            };
            // An error is found in the state.
            let _ = later.await;
        }
    }

    /// Writes need an answer, also where reads go on without one.
    pub(super) fn check_answered(&self) -> Result<(), SessionError> {
        match &self.state().failed {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// Decodes a stored value; what cannot be decoded is removed by the next patch.
    fn decode<T: DeserializeOwned>(&self, key: &SessionKey<T>, stored: &Stored) -> Option<T> {
        let decoded = key.decode(&stored.value);
        if decoded.is_none() {
            let mut state = self.state();
            let found = (Arc::from(key.as_ref()), stored.version);
            if !state.undecodable.contains(&found) {
                state.undecodable.push(found);
                state.tell(SessionEventKind::Undecodable);
            }
        }
        decoded
    }

    /// Stores `value` if nobody changed the key since `found` was read.
    async fn replace(
        self: &Arc<Self>,
        name: Cow<'static, str>,
        found: Option<&Stored>,
        value: Value,
    ) -> Result<Replaced, SessionError> {
        let version = found.map_or(0, |found| found.version);
        let operation = Operation::SetIf(version, value.clone());
        let patch = self.patch_of(name.clone(), operation);
        let Some(at) = self.live_ref()? else {
            return self.establish_with(patch).await;
        };
        let answer = self.config.store.patch(at, &patch).await;
        let is_superseded = matches!(answer, Ok(Patched::NotLive(NotLive::Superseded)));
        if is_superseded && self.turn.try_lock().is_err() {
            // A login or rotation of this very request may be about to hear of its success: wait for it.
            let _turn = self.turn.lock().await;
            return Ok(Replaced::Conflict(None));
        }
        let mut state = self.state();
        match answer {
            Ok(Patched::Applied { version, renewed }) => {
                count!("keep_session_writes_total", 1, "answer" => "applied");
                self.renewed(&mut state, renewed);
                if let Some(data) = &mut state.data {
                    data.put(&name, version, value);
                }
                Ok(Replaced::Done)
            }
            Ok(Patched::Conflict(entries)) => {
                state.data = None;
                let found = entries.into_iter().next();
                Ok(Replaced::Conflict(found.map(|entry| Stored {
                    version: entry.version,
                    value: entry.value,
                })))
            }
            Ok(Patched::TooLarge) => Err(SessionError::new(SessionErrorKind::TooLarge)),
            Ok(Patched::NotANumber) => Err(SessionError::new(SessionErrorKind::NotANumber)),
            // A login or rotation of this very request came in between: nothing was done, look again.
            Ok(Patched::NotLive(_)) if matches!(state.own, Own::Ref(own) if own != at) => {
                Ok(Replaced::Conflict(None))
            }
            Ok(Patched::NotLive(why)) => {
                self.found_dead(&mut state, at, why);
                Err(SessionError::new(SessionErrorKind::Ended))
            }
            Err(error) => {
                drop(state);
                let error = SessionError::from(error);
                self.failed(&error);
                Err(error)
            }
        }
    }

    fn patch_of(&self, name: Cow<'static, str>, operation: Operation) -> Patch {
        Patch {
            clear: false,
            operations: smallvec::smallvec![(name, operation)],
            limit: self.config.data_limit,
            sighting: self.sighting.clone(),
        }
    }

    /// The session to write to; `None` if one has to be set up.
    fn live_ref(&self) -> Result<Option<SessionRef>, SessionError> {
        let state = self.state();
        let why = match (&state.own, &state.core) {
            (Own::Ref(at), Core::Live(_) | Core::Unknown) => return Ok(Some(*at)),
            (_, Core::NotLive(why)) => *why,
            _ => NotLive::Missing,
        };
        match policy::dead_write(why, state.was_seen_live) {
            DeadWrite::StartAnew => Ok(None),
            DeadWrite::Drop => Err(SessionError::new(SessionErrorKind::Ended)),
        }
    }

    /// Sets up a new session with `patch`.
    async fn establish_with(self: &Arc<Self>, patch: Patch) -> Result<Replaced, SessionError> {
        let _turn = self.turn.lock().await;
        let _making = self.making()?;
        if self.live_ref()?.is_some() {
            // Another call of this request set one up meanwhile: look again, there.
            return Ok(Replaced::Conflict(None));
        }
        for _ in 0..DRAWS {
            let secret = Secret::draw()?;
            let order = Establish {
                current: None,
                fresh: SessionId::draw(None)?,
                verifier: secret.verifier(),
                identity: Identity::Keep,
                otherwise: Otherwise::Create,
                lifetimes: self.config.lifetimes,
                extended: self.config.extended,
                limit: self.config.limit,
                patch: patch.clone(),
                age: Duration::ZERO,
            };
            match self.config.store.establish(order).await {
                Ok(Established::Done(done)) => {
                    self.adopt(*done, &secret);
                    return Ok(Replaced::Done);
                }
                Ok(Established::Taken) => {}
                Ok(_) => return Err(SessionError::new(SessionErrorKind::TooLarge)),
                Err(error) => {
                    let error = SessionError::from(error);
                    self.failed(&error);
                    return Err(error);
                }
            }
        }
        Err(SessionError::new(SessionErrorKind::Unavailable))
    }
}

/// Lets others finish: from the fifth attempt on for 0 to as many milliseconds as there were attempts.
async fn wait_a_little(attempt: u32) {
    if attempt < PATIENT_FROM {
        return;
    }
    let millis = getrandom::u32().unwrap_or(attempt) % (attempt + 1);
    tokio::time::sleep(Duration::from_millis(u64::from(millis))).await;
}
