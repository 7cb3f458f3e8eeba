//! Answers from the store, with a refresh behind them where that is due.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use tower_service::Service;

use crate::core::Body;

use super::body::{BoxError, ResponseBody};
use super::entry::Entry;
use super::fetch::Fetch;
use super::flight::{Leader, LeadingMark, Outcome};
use super::look::Looked;
use super::policy::Use;
use super::run::Run;
use super::stamps::Verdict;
use super::status::Forward;
use super::store::{Lease, Want};

impl<S> Run<S> {
    /// Answers all who wait from the store; what is due is refreshed behind them.
    pub(super) fn share<B, R>(
        self: Box<Self>,
        leader: Leader,
        mark: LeadingMark,
        looked: &Looked,
        entry: Arc<Entry>,
        usable: Use,
    ) -> Response<ResponseBody<R>>
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        drop(mark);
        leader.land(Outcome::Found(Arc::clone(&entry)));
        let response = self.exchange.stored(&entry, looked.now);
        if matches!(usable, Use::Due | Use::StaleWhileRevalidate) {
            self.refresh(looked, entry);
        } else {
            self.exchange.give_back(looked);
        }
        response
    }

    /// Fetches behind an answer to a request that shares no fetch: the lease is asked for behind it, too.
    pub(super) fn refresh_alone<B, R>(mut self: Box<Self>)
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let ask = &self.exchange.ask;
        // What is not to be stored refreshes nothing, and the same cache outside refreshes by itself.
        if ask.demands.no_store || ask.nested {
            return;
        }
        // As many may ask at one time as may refresh.
        let Some(place) = self.exchange.cache().begin_refresh() else {
            return;
        };
        super::cache::spawn(async move {
            let lease = self.exchange.setup.config.lease;
            let mut looked = self.look(Want::EntryOrLease(lease)).await;
            if looked.as_ref().is_ok_and(Looked::is_stale_before_its_time) {
                looked = self.look(Want::Lease(lease)).await;
            }
            drop(place);
            let Ok(looked) = looked else {
                return;
            };
            match &looked.entry {
                Some((entry, Use::Due | Use::StaleWhileRevalidate, _)) => {
                    let entry = Arc::clone(entry);
                    self.refresh(&looked, entry);
                }
                _ => self.exchange.give_back(&looked),
            }
        });
    }

    /// Fetches behind an answer, if this process got the lease and has room.
    fn refresh<B, R>(mut self: Box<Self>, looked: &Looked, entry: Arc<Entry>)
    where
        S: Service<Request<Body<B>>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        B: Send + 'static,
        R: http_body::Body<Data = Bytes> + Send + 'static,
        R::Error: Into<BoxError>,
    {
        let Some(Lease::Granted(ticket)) = looked.lease else {
            return;
        };
        let exchange = &mut self.exchange;
        let Some(place) = exchange.cache().begin_refresh() else {
            return exchange.give_back(looked);
        };
        // The refresh is for everybody: nothing of this client's conditions goes along.
        exchange.ask.forget_conditions();
        let (cache, lease) = (Arc::clone(exchange.cache()), exchange.setup.config.lease);
        let key = exchange.ask.entry_key(cache.place);
        let ran = super::cache::spawn(async move {
            let fetch =
                Fetch::refresh(ticket, Forward::Stale).validating(Some((entry, Verdict::Live)));
            // Its body, if it is not stored, is dropped unread; an error leaves the stale entry in place.
            let _ = tokio::time::timeout(
                lease.max(Duration::from_secs(60)),
                self.fetch::<B, R>(fetch),
            )
            .await;
            drop(place);
        });
        if !ran {
            cache.finish("release", cache.store.release(key, ticket, None));
        }
    }
}
