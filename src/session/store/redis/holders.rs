//! Whose the sessions are that this process has seen live: a revocation that could not be sent outlives the session in
//! whose name it was asked for.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::{SessionId, SessionRecord, SessionRef, Target, UserId, Verifier, Whose};
use crate::backend::redis::RedisStore;

/// So many are remembered at least, and twice as many at most.
const MANY: usize = 8_192;

/// The users of the sessions that were seen last, each with the secret that was right.
#[derive(Debug, Default)]
pub(super) struct Holders {
    ages: Mutex<Ages>,
}

/// Two ages: when the younger one is full it takes the place of the older.
#[derive(Debug, Default)]
struct Ages {
    young: HashMap<SessionId, (Verifier, UserId)>,
    old: HashMap<SessionId, (Verifier, UserId)>,
}

impl Holders {
    pub(super) fn of(store: &RedisStore) -> Arc<Self> {
        store.beside(Self::default)
    }

    /// Notes a live session; done for each that is read, so it costs no more than a look where nothing changed.
    pub(super) fn note(&self, verifier: Verifier, record: &SessionRecord) {
        let Some(user) = record.user() else {
            return;
        };
        let ages = &mut *self.ages.lock();
        let is_known =
            |(own, known): &(Verifier, UserId)| *own == verifier && known.as_str() == user;
        if ages.young.get(&record.id).is_some_and(is_known) {
            return;
        }
        let Some(user) = UserId::try_new(user) else {
            return;
        };
        if ages.young.len() == MANY {
            ages.old = std::mem::take(&mut ages.young);
        }
        ages.young.insert(record.id, (verifier, user));
    }

    fn user_of(&self, at: SessionRef) -> Option<UserId> {
        let ages = self.ages.lock();
        let known = ages.young.get(&at.id).or_else(|| ages.old.get(&at.id));
        let (verifier, user) = known?;
        (*verifier == at.verifier).then(|| user.clone())
    }

    /// Says what `target` means where the session that asks is over by the time it can be sent: its user's sessions.
    /// `None` where it does not depend on one, or nobody knows whose it was.
    pub(super) fn without_asking(&self, target: &Target) -> Option<Target> {
        let user = |at: &SessionRef| self.user_of(*at).map(Whose::User);
        match target {
            Target::Own(at, _) => Some(Target::One(user(at)?, at.id)),
            Target::One(Whose::Session(at), id) => Some(Target::One(user(at)?, *id)),
            // The one that was to stay is over, or has a newer secret, which whoever asked may not hold.
            Target::Others(at) | Target::All(Whose::Session(at)) => Some(Target::All(user(at)?)),
            Target::One(Whose::User(_), _) | Target::All(Whose::User(_)) | Target::Everyone => None,
        }
    }
}
