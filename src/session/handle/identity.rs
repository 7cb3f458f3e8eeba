//! Who: principal, login, rotation, logout, and what a route requires.

use std::sync::Arc;
use std::time::Duration;

use super::commit::DRAWS;
use super::state::{Buffer, Own};
use super::{Login, Session, Shared};
use crate::core::Principal;
use crate::session::error::{SessionError, SessionErrorKind};
use crate::session::limits::Lifetimes;
use crate::session::record::{AuthStamp, Roles, SessionRecord, UserId};
use crate::session::rejection::SessionRejection;
use crate::session::store::{
    EndCause, Establish, Established, Identity, Loaded, LoginIdentity, Otherwise, Part, Patch,
    Read, Revoked, SessionRef, Target,
};
use crate::session::token::{Secret, SessionId, home_of_user};

impl Session {
    /// Says who is logged in. The first question costs one store call, all others none.
    ///
    /// # Errors
    /// The store cannot answer.
    pub async fn principal(&self) -> Result<Option<Principal>, SessionError> {
        let principal = self.ask().core(|record, _| record.principal.clone());
        Ok(principal.await?.flatten())
    }

    /// Refuses who has not this role: 401 without a login, 403 without the role.
    ///
    /// # Errors
    /// The refusal, or the store cannot answer.
    pub async fn require_role(&self, role: &str) -> Result<(), SessionRejection> {
        match self.principal().await? {
            None => Err(SessionRejection::LoginRequired),
            Some(principal) if principal.has_role(role) => Ok(()),
            Some(_) => Err(SessionRejection::RoleRequired),
        }
    }

    /// Refuses whose last login is `max_age` ago or more: 401 (RFC 9470).
    ///
    /// # Errors
    /// The refusal, or the store cannot answer.
    pub async fn require_fresh(&self, max_age: Duration) -> Result<(), SessionRejection> {
        let authenticated = self
            .ask()
            .core(|record, now| record.authenticated.map(|at| (at, now)));
        match authenticated.await?.flatten() {
            None => Err(SessionRejection::LoginRequired),
            Some((at, now)) if now.since(at) < max_age => Ok(()),
            Some(_) => Err(SessionRejection::FreshLoginRequired { max_age }),
        }
    }

    /// Returns the time to the nearer end by the store's clock; `None` without a session.
    ///
    /// # Errors
    /// The store cannot answer.
    pub async fn expires_in(&self) -> Result<Option<Duration>, SessionError> {
        self.ask()
            .core(|record, now| record.expires_at().since(now))
            .await
    }

    /// Asks the store again whether the session is live, recording no activity; for sockets between messages.
    ///
    /// # Errors
    /// The store cannot answer.
    pub async fn is_live(&self) -> Result<bool, SessionError> {
        let shared = self.ask();
        shared.check_answered()?;
        let _turn = shared.turn.lock().await;
        let Some(at) = shared.reference() else {
            return Ok(false);
        };
        let read = Read {
            part: Part::Core,
            renew: None,
        };
        Ok(matches!(
            shared.config.store.load(at, read).await?,
            Loaded::Live(_)
        ))
    }

    /// Logs a user in: new secret, the old one dead at once; data stays, but for another user's.
    ///
    /// Committed when it returns, whatever the response becomes. Dropping it: logged in or not, whole; if it
    /// was, nobody holds the new secret and the session ends by idle time.
    ///
    /// Other calls of this session wait for it: await or drop it before the same task awaits another.
    ///
    /// # Errors
    /// The user has too many sessions; the user's sessions or rights changed since this request began, but for its own
    /// [`Session::revoke_others`] and [`Session::revoke_all`]; the store cannot answer; the headers have left.
    pub async fn login(&self, login: impl Into<Login>) -> Result<(), SessionRejection> {
        let login = login.into();
        let shared = self.ask();
        let identity = identity_of(&login).ok_or(SessionError::new(SessionErrorKind::Key))?;
        let lifetimes = match login.remember_for {
            Some(lifetime) => Lifetimes::new(lifetime, lifetime),
            None => shared.config.lifetimes,
        };
        let home = home_of_user(login.principal.id());
        let order = Order {
            identity: Identity::Set(Box::new(identity)),
            otherwise: Otherwise::Create,
            lifetimes,
            home: Some(home),
        };
        shared.establish(order).await
    }

    /// Replaces the secret and nothing else; for a change of rights inside a session.
    ///
    /// Dropping it: replaced or not, whole; if it was, the client holds the old secret, which opens nothing.
    ///
    /// Other calls of this session wait for it: await or drop it before the same task awaits another.
    ///
    /// # Errors
    /// The session is not live; the store cannot answer; the headers have left.
    pub async fn rotate(&self) -> Result<(), SessionError> {
        let shared = self.ask();
        let order = Order {
            identity: Identity::Keep,
            otherwise: Otherwise::Refuse,
            lifetimes: shared.config.lifetimes,
            home: None,
        };
        match shared.establish(order).await {
            Ok(()) => Ok(()),
            Err(SessionRejection::Fault(error)) => Err(error),
            Err(_) => Err(SessionError::new(SessionErrorKind::Ended)),
        }
    }

    /// Ends the session and removes the cookie; Ok without a live one. What is buffered is dropped. It is asked of the
    /// store also where an earlier call of this request failed: what Redis cannot do in an
    /// outage it makes up for while this process lives; in SQL it has to be asked again.
    ///
    /// Dropping it: ended or not; safe to repeat.
    ///
    /// # Errors
    /// The store cannot answer; the cookie is removed all the same.
    pub async fn logout(&self) -> Result<(), SessionError> {
        self.ask().log_out().await.map(drop)
    }

    /// Ends the session unless its login rests on `bytes`; for passwords that change behind our back.
    ///
    /// # Errors
    /// [`SessionRejection::LoginRequired`] if it does not, or nobody is logged in; the store cannot answer.
    pub async fn check_auth_stamp(&self, bytes: impl AsRef<[u8]>) -> Result<(), SessionRejection> {
        let stamp = AuthStamp::of(bytes);
        let shared = self.ask();
        match shared
            .core(|record, _| fits(record, stamp))
            .await?
            .flatten()
        {
            Some(true) => Ok(()),
            Some(false) => shared.end_unfit(stamp).await,
            None => Err(SessionRejection::LoginRequired),
        }
    }
}

/// Says whether the login rests on `stamp`; `None` without a login.
fn fits(record: &SessionRecord, stamp: AuthStamp) -> Option<bool> {
    let is_login = record.principal.is_some();
    is_login.then_some(record.stamp == Some(stamp))
}

fn identity_of(login: &Login) -> Option<LoginIdentity> {
    Some(LoginIdentity {
        user: UserId::try_new(login.principal.id())?,
        roles: Roles::try_new(login.principal.iter_roles())?,
        stamp: login.stamp,
        remembered: login.remember_for.is_some(),
        revoke_others: login.revoke_others,
    })
}

/// What is asked of `establish`, apart from what the handle knows.
struct Order {
    identity: Identity,
    otherwise: Otherwise,
    lifetimes: Lifetimes,
    home: Option<u16>,
}

impl Shared {
    /// The session that the request brought or made, whatever became of it.
    pub(super) fn reference(&self) -> Option<SessionRef> {
        let mut state = self.state();
        match self.own(&mut state) {
            Own::Ref(at) => Some(at),
            Own::Nobody | Own::Undecoded => None,
        }
    }

    async fn establish(self: &Arc<Self>, order: Order) -> Result<(), SessionRejection> {
        let _turn = self.turn.lock().await;
        if matches!(order.identity, Identity::Set(_)) {
            self.has_begun().await;
        }
        let _making = self.making()?;
        self.check_answered()?;
        let current = self.reference();
        // A rotation leaves what is buffered to the end of the request.
        let buffer = match order.identity {
            Identity::Set(_) => std::mem::take(&mut self.state().buffer),
            Identity::Keep => Buffer::default(),
        };
        let patch = buffer.clone();
        let patch = patch.into_patch(self.config.data_limit, &self.sighting);
        let answer = self.establish_once(&order, current, &patch).await;
        if answer.is_err() {
            self.state().buffer.restore(buffer);
        }
        answer
    }

    async fn establish_once(
        &self,
        order: &Order,
        current: Option<SessionRef>,
        patch: &Patch,
    ) -> Result<(), SessionRejection> {
        for _ in 0..DRAWS {
            let secret = Secret::draw().map_err(SessionError::from)?;
            let whole = Establish {
                current,
                fresh: SessionId::draw(order.home).map_err(SessionError::from)?,
                verifier: secret.verifier(),
                identity: order.identity.clone(),
                otherwise: order.otherwise,
                lifetimes: order.lifetimes,
                extended: self.config.extended,
                limit: self.config.limit,
                patch: patch.clone(),
                age: self.age(),
            };
            let kind = match self.config.store.establish(whole).await {
                Ok(Established::Done(done)) => {
                    self.adopt(*done, &secret);
                    return Ok(());
                }
                Ok(Established::Taken) => continue,
                Ok(Established::Limit) => return Err(SessionRejection::Limit),
                Ok(Established::Overtaken) => return Err(SessionRejection::Overtaken),
                Ok(Established::TooLarge) => SessionErrorKind::TooLarge,
                Ok(Established::NotANumber) => SessionErrorKind::NotANumber,
                Ok(Established::NotLive(why)) => {
                    if let Some(at) = current {
                        self.found_dead(&mut self.state(), at, why);
                    }
                    SessionErrorKind::Ended
                }
                Err(error) => {
                    let error = SessionError::from(error);
                    self.failed(&error);
                    return Err(error.into());
                }
            };
            return Err(SessionError::new(kind).into());
        }
        Err(SessionError::new(SessionErrorKind::Unavailable).into())
    }

    /// Ends the request's own session; the cookie goes even if the store does not answer. Says whether it was live.
    ///
    /// What an earlier call of this request was to end and did not hear of is asked for again.
    pub(super) async fn log_out(&self) -> Result<bool, SessionError> {
        let _turn = self.turn.lock().await;
        // What failed before in this request is no reason: the store remembers what it cannot do now.
        {
            let mut state = self.state();
            if let Own::Ref(at) = self.own(&mut state) {
                state.ending.push(at);
            }
            let had_cookie = state.had_cookie || state.issued.is_some();
            state.forget();
            state.removes_cookie |= had_cookie;
            state.clears_site_data = self.config.clears_site_data;
        }
        self.end_listed(None).await
    }

    /// Ends what calls of this request were to end; `only` that session, where a login has come since.
    pub(super) async fn end_listed(&self, only: Option<SessionId>) -> Result<bool, SessionError> {
        let (mut was_live, mut failed, mut next) = (false, None, 0);
        loop {
            let Some(at) = self.state().ending.get(next).copied() else {
                return failed.map_or(Ok(was_live), Err);
            };
            if only.is_some_and(|only| at.id != only) {
                next += 1;
                continue;
            }
            match self.end(at, EndCause::Logout).await {
                Ok(answer) => {
                    self.state().ending.retain(|ended| ended.id != at.id);
                    was_live |= matches!(answer, Revoked::Done(_));
                }
                Err(error) => {
                    failed = Some(error);
                    next += 1;
                }
            }
        }
    }

    /// Says whether a logout of this request is still to end the session.
    pub(super) fn is_ending(&self, id: SessionId) -> bool {
        self.state().ending.iter().any(|at| at.id == id)
    }

    /// Ends the session whose login rests on something else; what becomes of the cookie is known with the answer.
    async fn end_unfit(&self, stamp: AuthStamp) -> Result<(), SessionRejection> {
        let _turn = self.turn.lock().await;
        let Some(at) = self.reference() else {
            return Err(SessionRejection::LoginRequired);
        };
        // A login of this very request may have come in between.
        let record_fits = self.state().record().map(|(record, _)| fits(record, stamp));
        if record_fits == Some(Some(true)) {
            return Ok(());
        }
        match self.end(at, EndCause::AuthStamp).await? {
            Revoked::Done(_) | Revoked::NoUser => self.own_was_ended(at),
            Revoked::NotLive(why) => self.found_dead(&mut self.state(), at, why),
        }
        Err(SessionRejection::LoginRequired)
    }

    async fn end(&self, at: SessionRef, cause: EndCause) -> Result<Revoked, SessionError> {
        let answer = self.answered(self.config.store.revoke(Target::Own(at, cause)).await)?;
        if let Revoked::Done(ended) = &answer {
            self.config.tell_ended(ended.clone());
        }
        Ok(answer)
    }

    /// Notes that a revocation ended the request's own session, unless a login of this request made another since.
    pub(super) fn own_was_ended(&self, at: SessionRef) {
        let mut state = self.state();
        if !matches!(state.own, Own::Ref(own) if own == at) {
            return;
        }
        let had_cookie = state.had_cookie || state.issued.is_some();
        state.forget();
        state.removes_cookie |= had_cookie;
    }
}
