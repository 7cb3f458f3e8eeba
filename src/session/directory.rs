//! Sessions of any user, for administrators, outside any request.

use std::sync::Arc;

use super::config::Config;
use super::error::{SessionError, SessionErrorKind};
use super::event::SessionEventKind;
use super::record::{Roles, SessionInfo, UserId};
use super::store::{Listed, Revoked, Target, Whose};
use super::token::SessionId;

/// Lists and ends anybody's sessions; made by [`SessionLayer::directory`](super::SessionLayer::directory).
///
/// Dropping a call leaves it done or not done, whole; every call is safe to repeat.
#[derive(Clone, Debug)]
pub struct SessionDirectory {
    config: Arc<Config>,
}

impl SessionDirectory {
    pub(super) const fn new(config: Arc<Config>) -> Self {
        Self { config }
    }

    /// Lists a user's live sessions, latest activity first.
    ///
    /// # Errors
    /// The store cannot answer, or the id is out of its bounds.
    pub async fn list(&self, user: &str) -> Result<Vec<SessionInfo>, SessionError> {
        let whose = Whose::User(user_id(user)?);
        match self.config.store.list(whose).await? {
            Listed::Sessions(records) => Ok(records
                .iter()
                .map(|record| SessionInfo::of(record, None))
                .collect()),
            Listed::NoUser | Listed::NotLive(_) => Ok(Vec::new()),
        }
    }

    /// Ends one session of a user; `false` if there is none such.
    ///
    /// # Errors
    /// As [`SessionDirectory::list`].
    pub async fn revoke(&self, user: &str, id: SessionId) -> Result<bool, SessionError> {
        let target = Target::One(Whose::User(user_id(user)?), id);
        Ok(self.end(target).await? > 0)
    }

    /// Ends all sessions of a user, and refuses logins that began before. Returns how many.
    ///
    /// # Errors
    /// As [`SessionDirectory::list`].
    pub async fn revoke_all(&self, user: &str) -> Result<u64, SessionError> {
        self.end(Target::All(Whose::User(user_id(user)?))).await
    }

    /// Ends all sessions of everybody that were set up until now.
    ///
    /// # Errors
    /// The store cannot answer.
    pub async fn revoke_everyone(&self) -> Result<(), SessionError> {
        self.end(Target::Everyone).await?;
        self.config
            .tell(SessionEventKind::EveryoneEnded, None, None);
        Ok(())
    }

    /// Replaces the roles in all live sessions of a user: the next request on any node sees them. Returns how many.
    ///
    /// # Errors
    /// As [`SessionDirectory::list`], also for roles out of their bounds.
    pub async fn assign_roles<S: AsRef<str>>(
        &self,
        user: &str,
        roles: impl IntoIterator<Item = S>,
    ) -> Result<u64, SessionError> {
        let user = user_id(user)?;
        let roles = Roles::try_new(roles).ok_or(SessionError::new(SessionErrorKind::Key))?;
        let changed = self.config.store.assign_roles(user.clone(), roles).await?;
        self.config
            .tell(SessionEventKind::RolesAssigned, None, Some(user));
        Ok(changed)
    }

    async fn end(&self, target: Target) -> Result<u64, SessionError> {
        match self.config.store.revoke(target).await? {
            Revoked::Done(ended) => {
                let many = ended.len() as u64;
                self.config.tell_ended(ended);
                Ok(many)
            }
            Revoked::NoUser | Revoked::NotLive(_) => Ok(0),
        }
    }
}

fn user_id(user: &str) -> Result<UserId, SessionError> {
    UserId::try_new(user).ok_or(SessionError::new(SessionErrorKind::Key))
}
