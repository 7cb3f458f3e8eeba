//! Whose key it is: a key belongs to one caller, and no caller reaches another's answer.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use smallvec::SmallVec;

use super::mac::{Hasher, Keyed};
use crate::core::telemetry::{Once, warn};
use crate::core::{ClientIp, StoreError, principal_of};

/// Whose key it is. There is no default: without a scope there is no layer.
#[derive(Clone)]
#[must_use]
pub struct Scope(Rule);

#[derive(Clone)]
enum Rule {
    Principal,
    PrincipalOrClientIp,
    By(Arc<Decide>),
    Global,
}

type Decide = dyn Fn(&Parts) -> Option<ScopeId> + Send + Sync;

impl Scope {
    /// The [`Principal`](crate::core::Principal) in the request's extensions, else the
    /// [`Visitor`](crate::core::Visitor) is asked; nobody is 403.
    pub const fn principal() -> Self {
        Self(Rule::Principal)
    }

    /// Lets callers without a principal be told apart by their [`ClientIp`].
    ///
    /// # Panics
    /// The scope is not [`Scope::principal`].
    pub fn or_client_ip(self) -> Self {
        assert!(
            matches!(self.0, Rule::Principal | Rule::PrincipalOrClientIp),
            "or_client_ip belongs to Scope::principal()"
        );
        Self(Rule::PrincipalOrClientIp)
    }

    /// Whatever `decide` finds in the request's head; `None` is 403. It must never be a value that the client chose freely.
    pub fn by(decide: impl Fn(&Parts) -> Option<ScopeId> + Send + Sync + 'static) -> Self {
        Self(Rule::By(Arc::new(decide)))
    }

    /// One scope for all: only where every caller was verified as one and the same party.
    pub const fn global() -> Self {
        Self(Rule::Global)
    }

    pub(super) async fn of(&self, parts: &Parts) -> Result<Option<ScopeId>, StoreError> {
        static NOBODY: Once = Once::new();
        let found = match &self.0 {
            Rule::Principal | Rule::PrincipalOrClientIp => {
                let principal = principal_of(&parts.extensions).await?;
                principal
                    .map(|principal| ScopeId::principal(principal.id()))
                    .or_else(|| {
                        let or_ip = matches!(self.0, Rule::PrincipalOrClientIp);
                        let ip = parts.extensions.get::<ClientIp>().filter(|_| or_ip)?;
                        Some(ScopeId::client_ip(ip.0))
                    })
            }
            Rule::By(decide) => decide(parts),
            Rule::Global => Some(ScopeId::global()),
        };
        if found.is_none() && NOBODY.first() {
            warn!(
                "idempotency: a request had no scope and was refused; does the layer stand inside the authentication?"
            );
        }
        Ok(found)
    }

    pub(super) const fn is_global(&self) -> bool {
        matches!(self.0, Rule::Global)
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Rule::Principal => "Scope::principal",
            Rule::PrincipalOrClientIp => "Scope::principal.or_client_ip",
            Rule::By(_) => "Scope::by",
            Rule::Global => "Scope::global",
        })
    }
}

const GLOBAL: u8 = 4;

/// One caller. Kinds never meet: a principal named like an address is not that address.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ScopeId {
    kind: u8,
    value: SmallVec<[u8; 36]>,
}

impl ScopeId {
    /// A caller named by the application, for [`Scope::by`].
    #[must_use]
    pub fn new(value: impl AsRef<[u8]>) -> Self {
        Self::of(3, value.as_ref())
    }

    /// The principal with this id.
    #[must_use]
    pub fn principal(id: &str) -> Self {
        Self::of(1, id.as_bytes())
    }

    /// The anonymous caller at this address.
    #[must_use]
    pub fn client_ip(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::of(2, &ip.octets()),
            IpAddr::V6(ip) => Self::of(2, &ip.octets()),
        }
    }

    /// The one scope of [`Scope::global`].
    #[must_use]
    pub fn global() -> Self {
        Self::of(GLOBAL, b"")
    }

    fn of(kind: u8, value: &[u8]) -> Self {
        Self {
            kind,
            value: SmallVec::from_slice(value),
        }
    }

    /// Takes the caller in.
    pub(super) fn put(&self, hasher: &mut Hasher) {
        hasher.number(u64::from(self.kind)).part(&self.value);
    }

    pub(super) fn hash(&self, keyed: &Keyed) -> [u8; 32] {
        let mut hasher = keyed.start();
        self.put(&mut hasher);
        hasher.finish()
    }

    pub(super) const fn is_global(&self) -> bool {
        self.kind == GLOBAL
    }
}

impl fmt::Debug for ScopeId {
    /// The value is left out: it may be personal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeId")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
