//! What the handlers share: handles only. Whatever is *kept* is kept by the stores behind them.
//!
//! Try it: `cargo run --example clinic -- --store redis://127.0.0.1:6379`, and everything is kept there
//!
//! Proof: `store_outage`

mod counters;
mod under_way;

use std::ops::Deref;
use std::sync::Arc;

use tower_keep::backend::sql::SqlStore;
use tower_keep::core::{Clock, ManualClock, SystemClock, Timestamp};
use tower_keep::data::health::Health;
use tower_keep::data::lock::Lock;
use tower_keep::data::queue::Queue;
use tower_keep::idempotency::IdempotencyLayer;
use tower_keep::reservation::{EventKind, EventSet, ReservationLayer, Reservations};
use tower_keep::response_cache::{ResponseCacheHandle, ResponseCacheLayer};
use tower_keep::store::Store;
use tower_keep::{DAY, MINUTE};

pub use self::counters::{Count, Counters};
pub use self::under_way::UnderWay;
use crate::admin::transfers;
use crate::customers::{self, Customers};
use crate::db::Db;
use crate::deliveries;
use crate::health;
use crate::hooks::Faults;
use crate::identity::{self, Verifications};
use crate::live::Live;
use crate::notifications::{self, Notice};
use crate::options::Options;
use crate::payments;
use crate::progress::HalfDone;
use crate::provider::{Event, Provider};
use crate::tokens::Tokens;
use crate::webhooks;

/// A handle on everything; cheap to clone.
#[derive(Clone)]
pub struct App(Arc<State>);

/// What is behind the handle.
pub struct State {
    pub options: Options,
    pub store: Arc<dyn Store>,
    pub bookings: ReservationLayer,
    pub reservations: Reservations,
    pub catalogue: ResponseCacheLayer,
    pub cache: ResponseCacheHandle,
    pub sql: SqlStore,
    pub db: Db,
    pub live: Live,
    pub notices: Queue<Notice>,
    pub health: Health,
    pub events: Queue<Event>,
    pub events_once: IdempotencyLayer,
    pub once: IdempotencyLayer,
    pub once_per_form: IdempotencyLayer,
    pub once_if_asked: IdempotencyLayer,
    pub payments: Lock,
    pub customers: Customers,
    pub verifications: Verifications,
    pub half_done: HalfDone,
    pub tokens: Tokens,
    pub provider: Arc<Provider>,
    pub counters: Counters,
    pub under_way: UnderWay,
    pub faults: Arc<Faults>,
    pub time: Time,
}

/// The clock of what is not in a store: the system's, or with test hooks one that is moved by hand.
#[derive(Clone, Debug)]
pub enum Time {
    System(SystemClock),
    Manual(ManualClock),
}

impl Clock for Time {
    fn now_micros(&self) -> u64 {
        match self {
            Self::System(clock) => clock.now_micros(),
            Self::Manual(clock) => clock.now_micros(),
        }
    }
}

impl App {
    /// Puts the handles together.
    pub fn new(
        options: Options,
        (store, sql, db): (Arc<dyn Store>, SqlStore, Db),
        time: Time,
        faults: Arc<Faults>,
    ) -> Self {
        let notices = notifications::queue(&store);
        let provider = Arc::new(Provider::new(
            db.clone(),
            faults.clone(),
            options.provider_patience,
        ));
        let health = health::of(
            sql.clone(),
            &store,
            &notices,
            &provider,
            options.health_window,
        );
        let bookings = ReservationLayer::new(sql.clone())
            .hold_for(10 * MINUTE)
            .processing_for(11 * DAY)
            .record(EventSet::DUE.with(EventKind::Confirmed));
        let catalogue = ResponseCacheLayer::new(store.clone()).name("clinic");
        Self(Arc::new(State {
            reservations: bookings.reservations(),
            cache: catalogue.handle(),
            live: Live::new(&store),
            notices,
            health,
            events: deliveries::queue(&store),
            events_once: webhooks::once(sql.clone(), &options),
            once: payments::once(&store, &options),
            once_per_form: payments::once_per_form(&store, &options),
            once_if_asked: transfers::once_if_asked(&store, &options),
            payments: webhooks::lock(&store),
            customers: customers::customers(&store),
            verifications: identity::verifications(&store),
            half_done: HalfDone::new(&store),
            tokens: Tokens::new(&store),
            provider,
            faults,
            counters: Counters::default(),
            under_way: UnderWay::default(),
            options,
            store,
            sql,
            db,
            bookings,
            catalogue,
            time,
        }))
    }
}

impl Deref for App {
    type Target = State;

    fn deref(&self) -> &State {
        &self.0
    }
}

impl State {
    pub fn now(&self) -> Timestamp {
        Timestamp::of(&self.time)
    }
}
