//! What can be answered at once: from the memory store, or from a local copy that is still believed.

use std::sync::Arc;

use http::HeaderMap;

use super::ask::Ask;
use super::cache::Cache;
use super::entry::Entry;
use super::policy::{self, Use};
use super::stamps::Stamp;
use super::store::{Found, FoundEntry, Place, Want};

/// A local copy answers only if the stamps were confirmed this lately, in real microseconds.
pub(super) const BELIEVED: u64 = 1_000_000;
/// While there are local hits the stamps are asked for this often.
const ASK_EVERY: u64 = 250_000;

/// An answer that is there without waiting, or the knowledge that there is none.
pub(super) enum Tried {
    /// Use it now.
    Hit(Arc<Entry>, u64),
    /// The key is known as uncacheable.
    Marked,
    /// The store has to be asked, or the inner service; with the store's time, if it was asked already.
    Unknown(Option<u64>),
}

impl Cache {
    /// Looks for a fresh answer that needs nobody.
    pub(super) fn try_now(self: &Arc<Self>, ask: &mut Ask, request: &HeaderMap) -> Tried {
        match self.place {
            Place::Process => self.try_store(ask, request),
            Place::Shared => self.try_copy(ask, request),
        }
    }

    fn try_store(&self, ask: &mut Ask, request: &HeaderMap) -> Tried {
        loop {
            let lookup = self.question(ask, Want::Entry, Stamp::default(), None);
            let Ok(Ok(found)) = self.store.lookup(lookup).try_now() else {
                return Tried::Unknown(None);
            };
            if found.names != ask.names {
                ask.select(&found.names, request);
                continue;
            }
            if found.mark.is_some() {
                return Tried::Marked;
            }
            if found.highest > self.stamps.highest() {
                self.sync_now();
            }
            return match found.entry {
                FoundEntry::Entry(entry) => self.if_fresh(ask, entry, found.now),
                _ => self.try_language(ask, found.now),
            };
        }
    }

    /// No variant matches: one in the language that the request likes best will do.
    fn try_language(&self, ask: &Ask, now: u64) -> Tried {
        let Some((_, key)) = ask.in_language(self.place) else {
            return Tried::Unknown(Some(now));
        };
        let mut lookup = self.question(ask, Want::Entry, Stamp::default(), None);
        lookup.key = key;
        match self.store.lookup(lookup).try_now() {
            Ok(Ok(Found {
                entry: FoundEntry::Entry(entry),
                now,
                ..
            })) => self.if_fresh(ask, entry, now),
            _ => Tried::Unknown(Some(now)),
        }
    }

    fn try_copy(self: &Arc<Self>, ask: &mut Ask, request: &HeaderMap) -> Tried {
        let (now, real) = (self.now(), self.real.now_micros());
        let found = self.local.find(ask.key.local, now, |names| {
            ask.select(names, request);
            ask.local().1
        });
        if found.mark_until > real {
            return Tried::Marked;
        }
        let found = found.entry.or_else(|| {
            let (local, _) = ask.in_language(self.place)?;
            self.local.find(ask.key.local, now, |_| local).entry
        });
        let Some(entry) = found.filter(|_| self.keeps_copies) else {
            return Tried::Unknown(None);
        };
        // A copy is believed for one second after the stamps were last known to be complete.
        let since = real.saturating_sub(self.stamps.confirmed());
        if since >= BELIEVED {
            return Tried::Unknown(None);
        }
        if since >= ASK_EVERY {
            self.ask_behind();
        }
        self.if_fresh(ask, entry, now)
    }

    fn if_fresh(&self, ask: &Ask, entry: Arc<Entry>, now: u64) -> Tried {
        if !ask.matches(entry.head()) {
            return Tried::Unknown(Some(now));
        }
        let verdict = self.stamps.judge(&entry);
        match policy::use_of(entry.head(), now, verdict, &ask.demands) {
            Use::Fresh => Tried::Hit(entry, now),
            _ => Tried::Unknown(Some(now)),
        }
    }
}
