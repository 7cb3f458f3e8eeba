//! Asking the store about one request, and judging what it says by stamps that are up to date.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::HeaderMap;

use crate::core::{StoreError, StoreFuture};

use super::ask::Ask;
use super::cache::{Cache, spawn};
use super::entry::Entry;
use super::policy::{self, Use};
use super::stamps::{Stamp, Verdict};
use super::store::{EntryKey, Found, FoundEntry, Lease, Lookup, Place, Ticket, Want};

/// What the store says of a request, judged by stamps that are up to date.
pub(super) struct Looked {
    pub(super) now: u64,
    pub(super) highest: Stamp,
    pub(super) marked: bool,
    pub(super) entry: Option<(Arc<Entry>, Use, Verdict)>,
    pub(super) lease: Option<Lease>,
}

impl Looked {
    /// Says whether it is stale by an invalidation that only its head names: the store takes it for fresh, and gave
    /// no lease.
    pub(super) const fn is_stale_before_its_time(&self) -> bool {
        let stale = matches!(self.entry, Some((_, Use::StaleWhileRevalidate, _)));
        stale && self.lease.is_none()
    }

    /// The lease, if it came along.
    pub(super) fn granted(&self) -> Option<Ticket> {
        match self.lease {
            Some(Lease::Granted(ticket)) => Some(ticket),
            _ => None,
        }
    }
}

impl Cache {
    /// What a store of this process says, at once; `None` if that is not to be had without waiting.
    pub(super) fn look_now(
        &self,
        ask: &mut Ask,
        request: &HeaderMap,
        want: Want,
    ) -> Option<Looked> {
        if self.stamps.has_queued() {
            return None;
        }
        loop {
            let not_before = self.stamps.not_before(|| ask.targets());
            let question = self.question(ask, want, not_before, None);
            let found = self.store.lookup(question).try_now().ok()?.ok()?;
            if found.names != ask.names {
                ask.select(&found.names, request);
                continue;
            }
            if found.highest > self.stamps.highest() {
                self.sync_now();
            }
            return Some(self.judged(ask, found, None));
        }
    }

    pub(super) fn question(
        &self,
        ask: &Ask,
        want: Want,
        not_before: Stamp,
        have: Option<&Arc<Entry>>,
    ) -> Lookup {
        Lookup {
            key: ask.entry_key(self.place),
            names: ask.names.clone(),
            not_before,
            have: have.map(|entry| entry.id()),
            want,
        }
    }

    /// Asks the store, and judges what it has by stamps that are up to date.
    pub(super) async fn look(
        self: &Arc<Self>,
        ask: &mut Ask,
        request: &HeaderMap,
        want: Want,
    ) -> Result<Looked, StoreError> {
        self.listen();
        self.tell_queued().await?;
        let not_before = self.stamps.not_before(|| ask.targets());
        loop {
            let copy = self.copy_of(ask, request);
            let before = self.real.now_micros();
            let question = self.question(ask, want, not_before, copy.as_ref());
            let asked = Asking {
                cache: Arc::clone(self),
                key: question.key,
                answer: Some(self.store.lookup(question)),
                leased: want != Want::Entry,
            };
            let found = match asked.await {
                Ok(found) => found,
                Err(error) => {
                    self.stamps.doubt();
                    return Err(error);
                }
            };
            self.follow_clock(found.now);
            if found.names != ask.names {
                ask.select(&found.names, request);
                if self.place == Place::Shared {
                    self.local.learn(ask.key.local, &found.names, found.now);
                }
                continue;
            }
            if found.highest > self.stamps.highest() {
                self.sync().await?;
            } else {
                self.stamps.confirm(before);
            }
            return Ok(self.judged(ask, found, copy));
        }
    }

    /// Asks a shared store for an answer in the language that the request likes best, where no variant matches. It has
    /// to be fresh.
    pub(super) async fn look_in_language(&self, ask: &Ask) -> Option<(Arc<Entry>, u64)> {
        // A store of this process was asked already, before anybody led.
        let (local, key) = ask
            .in_language(self.place)
            .filter(|_| self.place == Place::Shared)?;
        let not_before = self.stamps.not_before(|| ask.targets());
        let mut lookup = self.question(ask, Want::Entry, not_before, None);
        lookup.key = key;
        let found = self.store.lookup(lookup).await.ok()?;
        if found.highest > self.stamps.highest() {
            self.sync().await.ok()?;
        }
        let FoundEntry::Entry(entry) = found.entry else {
            return None;
        };
        let verdict = self.stamps.judge(&entry);
        let usable = policy::use_of(entry.head(), found.now, verdict, &ask.demands);
        let answers = ask.matches(entry.head()) && usable == Use::Fresh;
        if answers && self.keeps_copies {
            let primary = ask.key.local;
            self.local
                .put(primary, local, Arc::clone(&entry), found.now);
        }
        answers.then_some((entry, found.now))
    }

    fn judged(&self, ask: &Ask, found: Found, copy: Option<Arc<Entry>>) -> Looked {
        let entry = match found.entry {
            FoundEntry::None => None,
            FoundEntry::Same => copy,
            FoundEntry::Entry(entry) => {
                self.keep_copy(ask, &entry);
                Some(entry)
            }
        };
        let judged = entry
            .filter(|entry| ask.matches(entry.head()))
            .and_then(|entry| {
                let verdict = self.stamps.judge(&entry);
                match policy::use_of(entry.head(), found.now, verdict, &ask.demands) {
                    Use::Gone => None,
                    usable => Some((entry, usable, verdict)),
                }
            });
        Looked {
            now: found.now,
            highest: found.highest,
            marked: found.mark.is_some(),
            entry: judged,
            lease: found.lease,
        }
    }

    fn copy_of(&self, ask: &mut Ask, request: &HeaderMap) -> Option<Arc<Entry>> {
        if !self.keeps_copies {
            return None;
        }
        let found = self.local.find(ask.key.local, self.now(), |names| {
            ask.select(names, request);
            ask.local().1
        });
        found.entry.filter(|entry| ask.matches(entry.head()))
    }
}

/// A look-up under way. Dropped before its answer, a lease that it is granted is given back behind it.
struct Asking {
    cache: Arc<Cache>,
    key: EntryKey,
    answer: Option<StoreFuture<Found>>,
    /// It may bring a lease.
    leased: bool,
}

impl Future for Asking {
    type Output = Result<Found, StoreError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(answer) = &mut self.answer else {
            return Poll::Pending;
        };
        let answer = ready!(Pin::new(answer).poll(cx));
        self.answer = None;
        Poll::Ready(answer)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take().filter(|_| self.leased) else {
            return;
        };
        let (cache, key) = (Arc::clone(&self.cache), self.key);
        spawn(async move {
            if let Ok(Found {
                lease: Some(Lease::Granted(ticket)),
                ..
            }) = answer.await
            {
                cache.finish("release", cache.store.release(key, ticket, None));
            }
        });
    }
}
