//! The user's other sessions: list and revocation, each proven by the asking session in the same step.

use std::sync::Arc;

use super::{Session, Shared};
use crate::session::error::SessionError;
use crate::session::record::SessionInfo;
use crate::session::rejection::SessionRejection;
use crate::session::store::{EndedSession, Listed, Revoked, SessionRef, Target, Whose};
use crate::session::token::SessionId;

impl Session {
    /// Lists the user's live sessions, latest activity first, exactly one `current`; one store call.
    ///
    /// # Errors
    /// 401 without a user; the store cannot answer.
    pub async fn list(&self) -> Result<Vec<SessionInfo>, SessionRejection> {
        let shared = self.ask();
        shared.check_answered()?;
        // Behind a login that is under way, which would leave this one asking with an old secret.
        let _turn = shared.turn.lock().await;
        let at = shared.asking()?;
        match shared.answered(shared.config.store.list(Whose::Session(at)).await)? {
            Listed::Sessions(records) => {
                let current = Some(at.id);
                Ok(records
                    .iter()
                    .map(|record| SessionInfo::of(record, current))
                    .collect())
            }
            Listed::NoUser => Err(SessionRejection::LoginRequired),
            Listed::NotLive(why) => {
                shared.found_dead(&mut shared.state(), at, why);
                Err(SessionRejection::LoginRequired)
            }
        }
    }

    /// Ends one of the user's sessions; `false` if it is unknown or not the user's. The current one: a logout.
    ///
    /// As a logout it is asked of the store also where an earlier call of this request failed.
    ///
    /// Dropping it: ended or not; safe to repeat.
    ///
    /// # Errors
    /// 401 without a user; the store cannot answer.
    pub async fn revoke(&self, id: SessionId) -> Result<bool, SessionRejection> {
        let shared = self.ask();
        let own = shared.reference();
        if own.map_or_else(|| shared.is_ending(id), |own| own.id == id) {
            return Ok(shared.log_out().await?);
        }
        if shared.is_ending(id) {
            return Ok(shared.end_listed(Some(id)).await?);
        }
        shared.asking()?;
        let one = |at| Target::One(Whose::Session(at), id);
        let (_, ended) = shared.revoke(one).await?;
        Ok(!ended.is_empty())
    }

    /// Ends all other sessions of the user, and refuses logins that began before. Returns how many.
    ///
    /// Dropping it: ended or not, all or none; safe to repeat.
    ///
    /// # Errors
    /// 401 without a user; the store cannot answer.
    pub async fn revoke_others(&self) -> Result<u64, SessionRejection> {
        let shared = self.ask();
        let (_, ended) = shared.revoke(Target::Others).await?;
        shared.begins_anew();
        Ok(ended.len() as u64)
    }

    /// Ends all sessions of the user, this one included, and refuses logins that began before. Returns how many.
    ///
    /// Dropping it: ended or not, all or none; safe to repeat.
    ///
    /// # Errors
    /// 401 without a user; the store cannot answer.
    pub async fn revoke_all(&self) -> Result<u64, SessionRejection> {
        let shared = self.ask();
        let all = |at| Target::All(Whose::Session(at));
        let (at, ended) = shared.revoke(all).await?;
        shared.own_was_ended(at);
        shared.begins_anew();
        Ok(ended.len() as u64)
    }
}

impl Shared {
    /// The session in whose name something is asked.
    fn asking(&self) -> Result<SessionRef, SessionRejection> {
        self.reference().ok_or(SessionRejection::LoginRequired)
    }

    /// In the name of the session as it is when its turn has come: a login before it gave it another secret.
    async fn revoke(
        self: &Arc<Self>,
        target: impl FnOnce(SessionRef) -> Target,
    ) -> Result<(SessionRef, Vec<EndedSession>), SessionRejection> {
        let _turn = self.turn.lock().await;
        let at = self.asking()?;
        match self.answered(self.config.store.revoke(target(at)).await)? {
            Revoked::Done(ended) => {
                self.config.tell_ended(ended.clone());
                Ok((at, ended))
            }
            Revoked::NoUser => Err(SessionRejection::LoginRequired),
            Revoked::NotLive(why) => {
                self.found_dead(&mut self.state(), at, why);
                Err(SessionRejection::LoginRequired)
            }
        }
    }

    pub(super) fn answered<T>(
        &self,
        answer: Result<T, crate::core::StoreError>,
    ) -> Result<T, SessionError> {
        answer.map_err(|error| {
            let error = SessionError::from(error);
            self.failed(&error);
            error
        })
    }
}
