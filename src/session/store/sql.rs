//! Sessions in SQL: a row per session. A step locks its rows, is taken by the memory store on a copy of them, and what
//! it changed is written back, all in one transaction; a read is one SELECT.

#[cfg(feature = "postgres")]
mod on_postgres;
#[cfg(feature = "sqlite")]
mod on_sqlite;
mod rows;
mod scratch;
mod statements;
mod step;

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use sha2::{Digest, Sha256};

use self::scratch::{Facts, Scratch};
use self::statements::Statements;
use self::step::{find, step, sweep_now_and_then};
use super::{
    Establish, Established, Identity, Listed, Loaded, Part, Patch, Patched, Read, Revoked, Roles,
    SessionId, SessionRef, SessionStore, Target, UserId, Whose,
};
use crate::backend::sql::SqlStore;
use crate::core::{StoreError, StoreErrorKind, StoreFuture};

const LOCK_LABEL: &[u8] = b"keep-session-lock:";

/// The part of a handle.
struct Own {
    sql: Statements,
    /// The name of the cut-off's lock.
    cut_off: i64,
    set_up: AtomicU32,
}

fn part(db: &SqlStore) -> Arc<Own> {
    db.part(
        |db| Some(statements::schema(db.table_prefix(), db.dialect())),
        |db| Own {
            sql: Statements::new(db.table_prefix(), db.dialect()),
            cut_off: lock_name(db, b""),
            set_up: AtomicU32::new(0),
        },
    )
}

/// 64 bits for what is locked by name; of two that share one, one waits for the other without need.
fn lock_name(db: &SqlStore, user: &[u8]) -> i64 {
    let prefix = db.table_prefix().as_bytes();
    let digest = Sha256::new()
        .chain_update(LOCK_LABEL)
        .chain_update(prefix)
        .chain_update([0])
        .chain_update(user)
        .finalize();
    let mut name = [0; 8];
    name.copy_from_slice(&digest[..8]);
    i64::from_be_bytes(name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CutOffLock {
    /// Sets up a session.
    Shared,
    /// Moves the cut-off.
    Exclusive,
}

/// Which rows a step needs under lock.
#[derive(Clone, Debug, Default)]
struct Wanted {
    /// A session with its data.
    whole: Option<SessionId>,
    /// Another, there or not.
    other: Option<SessionId>,
    /// All of this user's, and that none comes meanwhile.
    user: Option<UserId>,
    /// Of the user of `whole`, if it has one.
    family: bool,
    cut_off: Option<CutOffLock>,
    newer: NewerRows,
}

/// What happens to a user's rows that a newer version wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum NewerRows {
    /// They are left alone.
    #[default]
    Stay,
    /// They end like the others.
    End,
    /// Without them nothing can be done.
    Refuse,
}

impl SessionStore for SqlStore {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        let db = self.clone();
        StoreFuture::boxed(async move {
            let own = part(&db);
            let text = match read.part {
                Part::Core => &own.sql.core,
                Part::Whole => &own.sql.whole,
            };
            let raws = find(&db, text, at.id.as_bytes()).await?;
            let Some(raw) = raws.first() else {
                return Ok(Loaded::NotLive(super::NotLive::Missing));
            };
            let scratch = Scratch::new(&raws, Some(at.id), None, Facts::beside(raw));
            let answer = scratch.store.load(at, read.clone()).await?;
            let is_readable = scratch.newer.is_empty() && scratch.damaged.is_empty();
            if is_readable && scratch.changes(None).is_empty() {
                return Ok(answer);
            }
            let wanted = Wanted {
                whole: Some(at.id),
                ..Wanted::default()
            };
            step(&db, &wanted, |store| store.load(at, read.clone())).await
        })
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        let (db, patch) = (self.clone(), patch.clone());
        StoreFuture::boxed(async move {
            let wanted = Wanted {
                whole: Some(at.id),
                ..Wanted::default()
            };
            step(&db, &wanted, |store| store.patch(at, &patch)).await
        })
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        let db = self.clone();
        sweep_now_and_then(self);
        StoreFuture::boxed(async move {
            let login = match &order.identity {
                Identity::Set(login) => Some(login),
                Identity::Keep => None,
            };
            let ends_all = login.is_some_and(|login| login.revoke_others);
            let wanted = Wanted {
                whole: order.current.map(|current| current.id),
                other: Some(order.fresh),
                user: login.map(|login| login.user.clone()),
                cut_off: Some(CutOffLock::Shared),
                newer: if ends_all {
                    NewerRows::End
                } else {
                    NewerRows::Stay
                },
                ..Wanted::default()
            };
            step(&db, &wanted, |store| store.establish(order.clone())).await
        })
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        let db = self.clone();
        StoreFuture::boxed(async move {
            let own = part(&db);
            let raws = match &of {
                Whose::User(user) => find(&db, &own.sql.user, user.as_str().as_bytes()).await?,
                Whose::Session(at) => find(&db, &own.sql.family, at.id.as_bytes()).await?,
            };
            let facts = raws.first().map(Facts::beside).unwrap_or_default();
            let scratch = Scratch::new(&raws, None, None, facts);
            if let Whose::Session(at) = &of
                && scratch.newer.contains(&at.id)
            {
                return Err(newer());
            }
            scratch.store.list(of).await
        })
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        let db = self.clone();
        StoreFuture::boxed(async move {
            let wanted = Wanted {
                user: Some(user.clone()),
                newer: NewerRows::Refuse,
                ..Wanted::default()
            };
            step(&db, &wanted, |store| {
                store.assign_roles(user.clone(), roles.clone())
            })
            .await
        })
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        let db = self.clone();
        StoreFuture::boxed(async move {
            let wanted = Wanted::of(&target);
            step(&db, &wanted, |store| store.revoke(target.clone())).await
        })
    }

    fn register(&self) {
        drop(part(self));
    }
}

impl Wanted {
    fn of(target: &Target) -> Self {
        let none = Self::default();
        match target {
            Target::Own(at, _) => Self {
                whole: Some(at.id),
                ..none
            },
            // Only leaves a user's set: a login that counts it meanwhile waits at the row.
            Target::One(whose, id) => Self {
                whole: match whose {
                    Whose::Session(at) => Some(at.id),
                    Whose::User(_) => None,
                },
                other: Some(*id),
                // Neither ended nor denied.
                newer: NewerRows::Refuse,
                ..none
            },
            Target::Others(at) | Target::All(Whose::Session(at)) => Self {
                whole: Some(at.id),
                family: true,
                newer: NewerRows::End,
                ..none
            },
            Target::All(Whose::User(user)) => Self {
                user: Some(user.clone()),
                newer: NewerRows::End,
                ..none
            },
            Target::Everyone => Self {
                cut_off: Some(CutOffLock::Exclusive),
                ..none
            },
        }
    }

    /// Says whether all that is needed can be read.
    fn check(&self, scratch: &Scratch) -> Result<(), StoreError> {
        let is_own = |id: &SessionId| self.whole == Some(*id);
        let stuck = match self.newer {
            NewerRows::Refuse => !scratch.newer.is_empty(),
            NewerRows::Stay | NewerRows::End => scratch.newer.iter().any(is_own),
        };
        if stuck { Err(newer()) } else { Ok(()) }
    }

    fn ids(&self) -> [&[u8]; 2] {
        [&self.whole, &self.other].map(|id| id.as_ref().map_or(&[][..], |id| id.as_bytes()))
    }
}

fn newer() -> StoreError {
    StoreError::with_source(StoreErrorKind::Failed, "a newer version wrote this session")
}
