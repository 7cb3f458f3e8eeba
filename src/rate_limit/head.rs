//! The head of a request: whole, or taken apart for closures that want its `Parts`.

use std::net::IpAddr;

use http::request::Parts;
use http::{Extensions, HeaderMap, Method, Request, Uri};

use crate::core::ClientIp;

/// A request that is looked at; taking it apart and joining it again is not free, so that is done only where it is asked for.
pub(super) trait Head {
    fn view(&self) -> View<'_>;
    fn extensions_mut(&mut self) -> &mut Extensions;
}

#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) method: &'a Method,
    pub(super) uri: &'a Uri,
    pub(super) headers: &'a HeaderMap,
    pub(super) extensions: &'a Extensions,
    /// There wherever a closure reads them.
    pub(super) parts: Option<&'a Parts>,
}

impl<B> Head for Request<B> {
    fn view(&self) -> View<'_> {
        View {
            method: self.method(),
            uri: self.uri(),
            headers: self.headers(),
            extensions: self.extensions(),
            parts: None,
        }
    }

    fn extensions_mut(&mut self) -> &mut Extensions {
        self.extensions_mut()
    }
}

impl<'a> From<&'a Parts> for View<'a> {
    fn from(parts: &'a Parts) -> Self {
        Self {
            method: &parts.method,
            uri: &parts.uri,
            headers: &parts.headers,
            extensions: &parts.extensions,
            parts: Some(parts),
        }
    }
}

impl Head for Parts {
    fn view(&self) -> View<'_> {
        self.into()
    }

    fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.extensions
    }
}

/// The client's address, and whether whoever comes next has yet to be told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub(super) address: Option<IpAddr>,
    pub(super) is_new: bool,
}

impl Client {
    /// The address that is in the extensions already.
    pub(super) fn known(extensions: &Extensions) -> Self {
        Self {
            address: extensions.get().map(|ClientIp(client)| *client),
            is_new: false,
        }
    }

    /// Tells the inner service; a request that is refused goes nowhere and needs no telling.
    pub(super) fn hand_on(&mut self, head: &mut impl Head) {
        if std::mem::take(&mut self.is_new)
            && let Some(client) = self.address
        {
            head.extensions_mut().insert(ClientIp(client));
        }
    }
}
