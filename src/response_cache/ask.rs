//! What one considered request asks for.

use http::header::HeaderMap;
use http::{Method, Request};

use crate::core::Visitor;

use super::answer::Asked;
use super::config::Config;
use super::consider::{Demands, Signals};
use super::entry::{Flags, Head};
use super::flight::FlightKey;
use super::key::{self, Key, seeded, sha128};
use super::range;
use super::store::{EntryKey, Hash128, Place};
use super::target::{self, Target};
use super::vary::{self, Names};

/// A considered request: its key, its variant, and what it demands.
pub(super) struct Ask {
    pub(super) key: Key,
    pub(super) names: Names,
    pub(super) selection: Vec<u8>,
    selector: Hash128,
    pub(super) demands: Demands,
    pub(super) signals: Signals,
    pub(super) head: bool,
    pub(super) private: bool,
    /// The same is being fetched by the same cache outside of here.
    pub(super) nested: bool,
    pub(super) visitor: Option<Visitor>,
    /// The one that a session layer inside left in the answer.
    pub(super) inner_visitor: Option<Visitor>,
}

impl Ask {
    /// Reads `request`, and rewrites its URI by the key rules. Its body has ended. `None` if its key is too long.
    #[inline]
    pub(super) fn of<B>(
        config: &Config,
        request: &mut Request<B>,
        signals: Signals,
        principal: Option<[u8; 16]>,
    ) -> Option<Self> {
        if let Some(rewritten) = key::rewritten(&config.key, request.uri()) {
            *request.uri_mut() = rewritten;
        }
        let own = config.key.own_parts(request);
        let uri = request.uri();
        let key = Key::of(&config.key, request, uri, &own, signals.poison, principal)?;
        let mut ask = Self::under(key, config, request.headers(), signals);
        ask.head = *request.method() == Method::HEAD;
        Some(ask)
    }

    /// A GET under this key.
    #[inline]
    pub(super) fn under(key: Key, config: &Config, request: &HeaderMap, signals: Signals) -> Self {
        let demands = if signals.directives {
            Demands::of(request, config.allow_reload)
        } else {
            Demands::default()
        };
        Self {
            key,
            names: Names::default(),
            selection: Vec::new(),
            selector: Hash128::default(),
            demands,
            signals,
            head: false,
            private: config.private(),
            nested: false,
            visitor: None,
            inner_visitor: None,
        }
    }

    /// Selects the variant by `names`.
    pub(super) fn select(&mut self, names: &Names, request: &HeaderMap) {
        if self.names == *names {
            return;
        }
        self.selection = vary::selection(names, request);
        self.selector = self.local_selector_of(&self.selection);
        self.names = names.clone();
    }

    fn local_selector_of(&self, selection: &[u8]) -> Hash128 {
        if selection.is_empty() {
            Hash128::default()
        } else {
            seeded(selection)
        }
    }

    /// The names of this request's entry in tables of this process.
    pub(super) const fn local(&self) -> (Hash128, Hash128) {
        (self.key.local, self.selector)
    }

    /// The name of this request's entry in the store.
    pub(super) fn entry_key(&self, place: Place) -> EntryKey {
        match place {
            Place::Process => EntryKey {
                primary: self.key.local,
                selector: self.selector,
            },
            Place::Shared => EntryKey {
                primary: sha128(&[self.key.text()]),
                selector: if self.names.is_empty() {
                    Hash128::default()
                } else {
                    sha128(&[&self.selection])
                },
            },
        }
    }

    /// The names, here and in the store, of an answer in the language that this request likes best.
    pub(super) fn in_language(&self, place: Place) -> Option<(Hash128, EntryKey)> {
        let language = vary::liked_language(&self.names, &self.selection)?;
        let selection = vary::in_language(&self.names, &self.selection, language)?;
        Some(self.named(&selection, place))
    }

    /// The same of an answer to this request, by the language that it is in.
    pub(super) fn in_language_of(&self, head: &Head, place: Place) -> Option<(Hash128, EntryKey)> {
        Some(self.named(&self.selection_in_language_of(head)?, place))
    }

    fn named(&self, selection: &[u8], place: Place) -> (Hash128, EntryKey) {
        let local = seeded(selection);
        let mut key = self.entry_key(place);
        key.selector = match place {
            Place::Process => local,
            Place::Shared => sha128(&[selection]),
        };
        (local, key)
    }

    fn selection_in_language_of(&self, head: &Head) -> Option<Vec<u8>> {
        if self.names.is_empty() || !self.names.iter().any(|name| name == "accept-language") {
            return None;
        }
        let language = vary::language_of(&head.fields)?;
        vary::in_language(&head.names, &head.selection, &language)
    }

    /// Says whether a stored answer is in the language that this request likes strictly best, and all else that selects
    /// it is the same (RFC 9111 §4.1).
    fn likes_language_of(&self, head: &Head) -> bool {
        let Some(liked) = vary::liked_language(&self.names, &self.selection) else {
            return false;
        };
        let own = vary::in_language(&self.names, &self.selection, liked);
        own.is_some() && own == self.selection_in_language_of(head)
    }

    pub(super) const fn flight_key(&self) -> FlightKey {
        FlightKey {
            primary: self.key.local,
            selector: self.selector,
            reload: self.demands.reload(),
        }
    }

    /// What shapes the form of its answer, lent from the request.
    pub(super) fn asked<'a>(&self, request: &'a HeaderMap) -> Asked<'a> {
        Asked {
            head: self.head,
            conditions: self.has_conditions().then_some(request),
        }
    }

    pub(super) const fn has_conditions(&self) -> bool {
        self.signals.conditional || self.signals.range
    }

    /// Asks for the whole from now on, whoever it is for.
    pub(super) const fn forget_conditions(&mut self) {
        self.head = false;
        self.signals.conditional = false;
        self.signals.range = false;
    }

    /// The targets that are known before there is an answer.
    pub(super) fn targets(&self) -> Vec<Target> {
        target::known_from_request(
            self.key.host(),
            self.key.target(),
            self.key.principal.as_ref(),
        )
    }

    /// Says whether a stored answer is one to this very request: key and selection in full, not by their hashes. One
    /// in the language that it likes best will do.
    pub(super) fn matches(&self, head: &Head) -> bool {
        *head.key == *self.key.text()
            && head.names == self.names
            && (*head.selection == *self.selection || self.likes_language_of(head))
            && (!self.signals.authorization || head.flags.has(Flags::FOR_AUTHORIZED))
    }

    /// Says whether this request shares no fetch with others: it may neither lead nor join.
    pub(super) fn is_alone(&self, request: &HeaderMap) -> bool {
        self.head
            || self.nested
            || self.demands.no_store
            || (self.signals.authorization && !self.private)
            || self.is_partial(request)
    }

    /// Says whether it asks for a part that only a stored answer can give.
    pub(super) fn is_partial(&self, request: &HeaderMap) -> bool {
        self.signals.range && !range::is_from_start(request)
    }

    /// A private answer belongs to one visitor: the session layer outside must know.
    pub(super) fn mark_personal(&self) {
        if let (true, Some(visitor)) = (self.private, &self.visitor) {
            visitor.mark_personal();
        }
    }

    pub(super) fn is_personal(&self) -> bool {
        let visitors = self.visitor.iter().chain(&self.inner_visitor);
        visitors.into_iter().any(Visitor::is_personal)
    }
}
