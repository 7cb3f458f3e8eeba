//! Who is asking: an authenticated principal, and the lazy question for it.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use super::problem::Problem;
use super::store_error::StoreError;
use super::store_future::StoreFuture;

/// Who an authenticating layer says is asking. Never read from a body or a client's header.
///
/// Put one into the request's extensions to name the principal for the layers inside.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    id: Arc<str>,
    roles: Arc<[Box<str>]>,
}

impl Principal {
    /// Makes a principal without roles.
    #[must_use]
    pub fn new(id: impl AsRef<str>) -> Self {
        Self {
            id: Arc::from(id.as_ref()),
            roles: Arc::from([]),
        }
    }

    /// Sets the roles.
    #[must_use]
    pub fn roles<S: AsRef<str>>(mut self, roles: impl IntoIterator<Item = S>) -> Self {
        self.roles = roles
            .into_iter()
            .map(|role| Box::from(role.as_ref()))
            .collect();
        self
    }

    /// Returns the id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Says whether the principal has `role`.
    #[must_use]
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|own| &**own == role)
    }

    /// Returns the roles in the order they were set.
    pub fn iter_roles(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().map(|role| &**role)
    }
}

impl fmt::Debug for Principal {
    /// The id is left out: it may be personal, and Debug text ends up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Principal")
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

/// Why no principal could be named; in the extensions of such a response, so that a session layer outside can
/// make its own document of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PrincipalRejection {
    /// Nobody is logged in: 401.
    Required,
    /// The session store cannot answer: 503.
    Unavailable {
        /// Whole seconds until it is asked again, 1 to 30.
        retry_after: u64,
    },
}

impl PrincipalRejection {
    /// Makes the problem document.
    #[must_use]
    pub fn response(&self) -> http::Response<bytes::Bytes> {
        let mut response = match self {
            Self::Required => {
                let problem = Problem::new(http::StatusCode::UNAUTHORIZED, "SESSION_REQUIRED");
                let mut response = problem.detail("log in first").response();
                let challenge = http::HeaderValue::from_static("Session");
                response
                    .headers_mut()
                    .insert(http::header::WWW_AUTHENTICATE, challenge);
                response
            }
            Self::Unavailable { retry_after } => {
                Problem::store_unavailable(*retry_after).response()
            }
        };
        response.extensions_mut().insert(*self);
        response
    }
}

impl From<StoreError> for PrincipalRejection {
    fn from(error: StoreError) -> Self {
        Self::Unavailable {
            retry_after: error.retry_after_secs(),
        }
    }
}

/// A mark in the response extensions: this answer was made for one visitor; never share it. A session layer leaves it
/// where the request bears [`CacheOutside`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Personal;

/// A mark in the request extensions: a cache outside may store this answer. A session layer inside then leaves
/// [`Personal`] and its [`Visitor`] in the response, so that a session touched while the body streams is seen there, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheOutside {
    /// What is being fetched, by which caches of this process.
    pub(crate) fetched: SmallVec<[(usize, [u8; 16]); 1]>,
}

/// Answers the lazy question "who is this"; a session layer implements it.
pub trait AskVisitor: Any + fmt::Debug + Send + Sync {
    /// Returns the principal, reading the session at most once per request.
    ///
    /// # Errors
    /// The session store's error; the asking layer decides by its own failure mode.
    fn principal(self: Arc<Self>) -> StoreFuture<Option<Principal>>;

    /// Marks the answer as made for one visitor.
    fn mark_personal(&self);

    /// Says whether the answer was made for one visitor.
    fn is_personal(&self) -> bool;
}

/// The lazy question "who is this", in the request extensions: a session is read only when somebody asks.
#[derive(Clone, Debug)]
pub struct Visitor {
    ask: Arc<dyn AskVisitor>,
}

impl Visitor {
    /// Wraps whoever can answer.
    #[must_use]
    pub fn new(ask: Arc<dyn AskVisitor>) -> Self {
        Self { ask }
    }

    /// Asks who the visitor is; one store read per request at most, shared with the handler.
    ///
    /// # Errors
    /// The session store's error.
    pub fn principal(&self) -> StoreFuture<Option<Principal>> {
        Arc::clone(&self.ask).principal()
    }

    /// Returns whoever answers, if it is a `T`: the layer that put the visitor there finds its own handle again.
    #[must_use]
    pub fn downcast<T: AskVisitor>(&self) -> Option<Arc<T>> {
        let ask: &dyn Any = &*self.ask;
        if !ask.is::<T>() {
            return None;
        }
        let ask: Arc<dyn Any + Send + Sync> = Arc::clone(&self.ask) as _;
        ask.downcast().ok()
    }

    /// Marks the answer as made for one visitor, so that no shared cache keeps it.
    pub fn mark_personal(&self) {
        self.ask.mark_personal();
    }

    /// Says whether the answer was made for one visitor.
    #[must_use]
    pub fn is_personal(&self) -> bool {
        self.ask.is_personal()
    }
}

/// Finds the principal of a request: one that was put there, else by asking the [`Visitor`].
///
/// # Errors
/// The session store's error.
pub fn principal_of(extensions: &http::Extensions) -> StoreFuture<Option<Principal>> {
    if let Some(principal) = extensions.get::<Principal>() {
        return StoreFuture::ok(Some(principal.clone()));
    }
    extensions
        .get::<Visitor>()
        .map_or_else(|| StoreFuture::ok(None), Visitor::principal)
}
