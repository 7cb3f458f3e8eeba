//! Topics as server-sent events: whoever looks at a page sees what others do, and a reconnect misses nothing.
//!
//! Try it: `curl -N 'localhost:8080/api/events?topic=slots:e1'`, and book a slot beside it.
//!
//! Proof: `live_and_notices`

use axum::extract::{Extension, Query, State as Extract};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tower_keep::core::Timestamp;
use tower_keep::data::topic::{LastEventId, Topic, TopicSse};

use crate::fault::Fault;
use crate::fixtures;
use crate::guests::Owner;
use crate::records::PaymentRecord;
use crate::state::App;

/// One topic service per kind of event; none of them names a person.
#[derive(Clone, Debug)]
pub struct Live {
    slots: Topic<SlotChange>,
    status: Topic<StatusChange>,
    appointments: Topic<AppointmentChange>,
    stopping: watch::Sender<bool>,
}

/// A range of an expert's time has another state.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SlotChange {
    expert_id: String,
    start: Timestamp,
    end: Timestamp,
    state: String,
}

/// An expert comes or goes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct StatusChange {
    expert_id: String,
    status: String,
    at: Timestamp,
}

/// A reservation has another state.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct AppointmentChange {
    reservation_id: String,
    state: String,
}

impl Live {
    pub fn new(store: &std::sync::Arc<dyn tower_keep::store::Store>) -> Self {
        Self {
            slots: Topic::new(store.clone(), "slots").event("slot"),
            status: Topic::new(store.clone(), "status").event("status"),
            appointments: Topic::new(store.clone(), "appointments").event("appointment"),
            stopping: watch::Sender::new(false),
        }
    }

    /// Tells of a reservation; `slot` is how its time reads now.
    pub async fn reservation(&self, record: &PaymentRecord, slot: &str, state: &str) {
        let change = SlotChange {
            expert_id: record.expert_id.clone(),
            start: record.start,
            end: record.end,
            state: slot.to_owned(),
        };
        publish(&self.slots, &record.expert_id, &change).await;
        self.appointment(record, state).await;
    }

    /// Tells of a reservation whose time is no matter any more.
    pub async fn appointment(&self, record: &PaymentRecord, state: &str) {
        let own = AppointmentChange {
            reservation_id: record.reservation_id.clone(),
            state: state.to_owned(),
        };
        publish(&self.appointments, &record.reservation_id, &own).await;
    }

    /// Tells that an expert comes or goes.
    pub async fn status(&self, expert: &str, status: &str, at: Timestamp) {
        let change = StatusChange {
            expert_id: expert.to_owned(),
            status: status.to_owned(),
            at,
        };
        publish(&self.status, expert, &change).await;
    }

    /// The newest event of a topic, for the page that is made now; empty where there is none, or nobody knows.
    pub async fn newest(&self, topic: &str) -> String {
        let (kind, key) = topic.split_once(':').unwrap_or((topic, ""));
        match kind {
            "slots" => newest(&self.slots, key).await,
            "expert" => newest(&self.status, key.trim_end_matches(":status")).await,
            _ => newest(&self.appointments, key).await,
        }
    }

    /// Resolves once the process is told to stop.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopping = self.stopping.subscribe();
        async move { drop(stopping.wait_for(|stop| *stop).await) }
    }

    /// Ends all streams: browsers come back to another process, with the id of their last event.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }
}

/// What nobody hears is no fault: pages ask again.
async fn publish<T: Serialize + Sync>(topic: &Topic<T>, key: &str, change: &T) {
    if let Err(error) = topic.publish(key, change).await {
        tracing::warn!(%error, "a change was not told");
    }
}

/// Events are kept for minutes, the place where they ended for a day: a feed knows it.
async fn newest<T: DeserializeOwned>(topic: &Topic<T>, key: &str) -> String {
    let feed = topic.subscribe(key).await.ok();
    let place = feed.and_then(|feed| feed.position());
    place.map_or_else(String::new, |id| id.to_string())
}

#[derive(Deserialize)]
pub struct Wanted {
    topic: Option<String>,
}

/// `GET /api/events?topic=…`
pub async fn events(
    Extract(app): Extract<App>,
    Extension(owner): Extension<Owner>,
    Query(wanted): Query<Wanted>,
    last: LastEventId,
) -> Result<TopicSse, Fault> {
    let unknown = || Fault::invalid("topic", "is none that this practice has");
    let topic = wanted.topic.ok_or_else(unknown)?;
    let (kind, key) = topic.split_once(':').ok_or_else(unknown)?;
    let live = &app.live;
    let stream = match kind {
        "slots" if fixtures::expert(key).is_some() => live.slots.sse(key, last).await?,
        "expert" => {
            let known = key
                .strip_suffix(":status")
                .filter(|id| fixtures::expert(id).is_some());
            live.status.sse(known.ok_or_else(unknown)?, last).await?
        }
        "appointment" => {
            let record = app.db.reservation(key).await?;
            let is_own = record.is_some_and(|record| owner.may_see(&record));
            is_own.then_some(()).ok_or(Fault::FORBIDDEN)?;
            live.appointments.sse(key, last).await?
        }
        _ => return Err(unknown()),
    };
    Ok(stream.until(live.stopped()))
}
