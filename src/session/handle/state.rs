//! What is known so far, and what is buffered.

use std::borrow::Cow;
use std::sync::Arc;

use crate::core::{Principal, Timestamp};
use crate::session::data::{self, Data, Value};
use crate::session::error::{SessionError, SessionErrorKind};
use crate::session::event::SessionEventKind;
use crate::session::record::UserId;
use crate::session::store::{
    Live, NotLive, Operation, Operations, Patch, SessionRecord, SessionRef, Sighting,
};
use crate::session::token::{SessionId, Token};

#[derive(Default)]
pub(super) struct State {
    pub(super) own: Own,
    pub(super) core: Core,
    /// All data, as the store had it.
    pub(super) data: Option<Data>,
    pub(super) is_loading: bool,
    /// A load found the secret superseded while a login or rotation of this very request was under way.
    pub(super) is_in_doubt: bool,
    /// Counts changes of `own`: what was asked about the session before does not count any more.
    pub(super) epoch: u32,
    pub(super) was_seen_live: bool,
    pub(super) buffer: Buffer,
    pub(super) issued: Option<Box<Issued>>,
    /// A cookie of our name came, well-formed or not.
    pub(super) had_cookie: bool,
    /// The token came as a bearer token.
    pub(super) is_bearer: bool,
    pub(super) removes_cookie: bool,
    pub(super) clears_site_data: bool,
    /// Sessions that a logout has taken from the request and the store has not answered for.
    pub(super) ending: Vec<SessionRef>,
    pub(super) failed: Option<SessionError>,
    /// A commit was dropped at the store: whether its patch was applied nobody knows.
    pub(super) is_patch_in_doubt: bool,
    /// Values that could not be decoded, by name and version: the next patch removes them.
    pub(super) undecodable: Vec<(Arc<str>, u64)>,
    /// Told when the lock is given back.
    pub(super) untold: Vec<(SessionEventKind, Option<SessionId>, Option<UserId>)>,
}

/// Which session the request is about.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Own {
    #[default]
    Undecoded,
    Nobody,
    Ref(SessionRef),
}

/// What is known of it.
#[derive(Debug, Default)]
pub(super) enum Core {
    #[default]
    Unknown,
    Nobody,
    NotLive(NotLive),
    /// As it was read; its data lie beside it.
    Live(Box<Live>),
}

/// A new token, on its way to the client.
pub(super) enum Issued {
    Cookie { token: Token, max_age: Option<u64> },
    Bearer { token: Token, taken: bool },
}

impl State {
    pub(super) fn record(&self) -> Option<(&SessionRecord, Timestamp)> {
        match &self.core {
            Core::Live(live) => Some((&live.record, live.now)),
            _ => None,
        }
    }

    pub(super) fn principal(&self) -> Option<Principal> {
        self.record()?.0.principal.clone()
    }

    /// Adds to `patch` the removal of what could not be decoded, unless somebody changed it meanwhile.
    pub(super) fn clean(&self, patch: &mut Patch) {
        if patch.clear {
            return;
        }
        for (name, version) in &self.undecodable {
            if patch.operations.iter().all(|(own, _)| **own != **name) {
                let removal = Operation::RemoveIf(*version);
                patch
                    .operations
                    .push((Cow::Owned(name.as_ref().to_owned()), removal));
            }
        }
    }

    /// Tells something of the request's session, once the lock is given back.
    pub(super) fn tell(&mut self, kind: SessionEventKind) {
        let session = match self.own {
            Own::Ref(at) => Some(at.id),
            Own::Nobody | Own::Undecoded => None,
        };
        let user = self.record().and_then(|(record, _)| record.user());
        let user = user.and_then(UserId::try_new);
        self.untold.push((kind, session, user));
    }

    /// The request is about no session any more.
    pub(super) fn forget(&mut self) {
        self.own = Own::Nobody;
        self.core = Core::Nobody;
        self.data = None;
        self.buffer = Buffer::default();
        self.issued = None;
        self.was_seen_live = false;
        self.undecodable.clear();
        self.epoch += 1;
    }
}

/// What is to be written, one operation per key.
#[derive(Clone, Debug, Default)]
pub(super) struct Buffer {
    clear: bool,
    operations: Operations,
}

/// What the buffer says of a key.
pub(super) enum Buffered {
    /// Ask the store.
    Nothing,
    /// It will be this.
    Value(Value),
    /// It will be gone.
    Gone,
    /// The store's value plus this.
    Increment(i64),
}

impl Buffer {
    pub(super) fn is_empty(&self) -> bool {
        !self.clear && self.operations.is_empty()
    }

    pub(super) fn get(&self, name: &str) -> Buffered {
        match self.operations.iter().find(|(own, _)| &**own == name) {
            Some((_, Operation::Set(value) | Operation::SetIf(_, value))) => {
                Buffered::Value(value.clone())
            }
            Some((_, Operation::Remove | Operation::RemoveIf(_))) => Buffered::Gone,
            Some((_, Operation::Increment(by))) if self.clear => {
                data::incremented(None, *by).map_or(Buffered::Gone, Buffered::Value)
            }
            Some((_, Operation::Increment(by))) => Buffered::Increment(*by),
            None if self.clear => Buffered::Gone,
            None => Buffered::Nothing,
        }
    }

    pub(super) fn clear(&mut self) {
        self.operations.clear();
        self.clear = true;
    }

    pub(super) fn set(&mut self, name: Cow<'static, str>, operation: Operation) {
        match self.operations.iter_mut().find(|(own, _)| *own == name) {
            Some((_, own)) => *own = operation,
            None => self.operations.push((name, operation)),
        }
    }

    pub(super) fn increment(
        &mut self,
        name: Cow<'static, str>,
        by: i64,
    ) -> Result<(), SessionError> {
        let folded = match self.get(&name) {
            Buffered::Nothing => Operation::Increment(by),
            Buffered::Increment(before) => Operation::Increment(before.saturating_add(by)),
            Buffered::Gone => Operation::Set(sum(None, by)?),
            Buffered::Value(value) => Operation::Set(sum(Some(&value), by)?),
        };
        self.set(name, folded);
        Ok(())
    }

    pub(super) fn into_patch(self, limit: usize, sighting: &Sighting) -> Patch {
        Patch {
            clear: self.clear,
            operations: self.operations,
            limit,
            sighting: sighting.clone(),
        }
    }

    /// Puts back what was taken and not sent, before what came later.
    pub(super) fn restore(&mut self, earlier: Self) {
        let later = std::mem::replace(self, earlier);
        if later.clear {
            *self = later;
            return;
        }
        for (name, operation) in later.operations {
            match operation {
                // Both are integers or the store says no to the sum anyway.
                Operation::Increment(by) => drop(self.increment(name, by)),
                operation => self.set(name, operation),
            }
        }
    }
}

fn sum(before: Option<&Value>, by: i64) -> Result<Value, SessionError> {
    data::incremented(before, by).ok_or(SessionError::new(SessionErrorKind::NotANumber))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(buffer: Buffer) -> (bool, Vec<(String, Operation)>) {
        let patch = buffer.into_patch(0, &Sighting::default());
        let operations = patch.operations.into_iter();
        let named = operations.map(|(name, operation)| (name.into_owned(), operation));
        (patch.clear, named.collect())
    }

    #[test]
    fn what_was_taken_and_not_sent_comes_before_what_was_buffered_meanwhile() {
        let value = |n: i64| sum(None, n).unwrap();
        let mut earlier = Buffer::default();
        earlier.set("a".into(), Operation::Set(value(1)));
        earlier.increment("b".into(), 2).unwrap();
        let mut later = Buffer::default();
        later.set("a".into(), Operation::Remove);
        later.increment("b".into(), 3).unwrap();
        let mut whole = later.clone();
        whole.restore(earlier.clone());
        let both = vec![
            ("a".to_owned(), Operation::Remove),
            ("b".to_owned(), Operation::Increment(5)),
        ];
        assert_eq!(written(whole), (false, both));
        later.clear();
        later.set("c".into(), Operation::Remove);
        let mut whole = later;
        whole.restore(earlier);
        let after = vec![("c".to_owned(), Operation::Remove)];
        assert_eq!(written(whole), (true, after));
    }
}
