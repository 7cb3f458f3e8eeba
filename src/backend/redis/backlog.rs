//! Notices that have arrived and that nobody has taken yet: bounded, since one slow listener holds up all.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_core::Stream;
use redis::aio::PubSubStream;
use redis::{Msg, RedisError};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinSet, unconstrained};

use super::error::away;

/// Where so much waits already, the next one ends the link: who listens is told that notices were lost.
const MOST: usize = 16 << 20;
/// What a notice takes beside its channel's name and its payload.
const EACH: usize = 256;

/// What the driver has read, in order. Its own queue knows no bounds: a task empties it into this one, which does.
pub(super) struct Backlog {
    arrived: UnboundedReceiver<Msg>,
    room: Arc<Room>,
    /// Ends with this, and the connection with it.
    _filling: JoinSet<()>,
}

#[derive(Default)]
struct Room {
    taken: AtomicUsize,
    is_overrun: AtomicBool,
}

impl Backlog {
    pub(super) fn of(arriving: PubSubStream) -> Self {
        let (room, (sender, arrived)) = (Arc::<Room>::default(), unbounded_channel());
        let mut filling = JoinSet::new();
        // It goes on while there is something: it must not be slower than the driver, which takes much in one turn.
        filling.spawn(unconstrained(fill(arriving, sender, Arc::clone(&room))));
        Self {
            arrived,
            room,
            _filling: filling,
        }
    }

    /// Waits for the next one. May be dropped and asked again.
    pub(super) async fn next(&mut self) -> Result<Msg, RedisError> {
        let next = self.arrived.recv().await;
        // What waits still is not told any more: the sooner they know that they miss something, the better.
        if self.room.is_overrun.load(Ordering::Acquire) {
            return Err(away("notices came faster than they were taken"));
        }
        let next = next.ok_or_else(|| away("the server hung up"))?;
        self.room.taken.fetch_sub(size(&next), Ordering::Relaxed);
        Ok(next)
    }
}

async fn fill(mut arriving: PubSubStream, sender: UnboundedSender<Msg>, room: Arc<Room>) {
    while let Some(message) = poll_fn(|cx| Pin::new(&mut arriving).poll_next(cx)).await {
        if room.taken.fetch_add(size(&message), Ordering::Relaxed) >= MOST {
            room.is_overrun.store(true, Ordering::Release);
            return;
        }
        if sender.send(message).is_err() {
            return;
        }
    }
}

fn size(message: &Msg) -> usize {
    EACH + message.get_channel_name().len() + message.get_payload_bytes().len()
}
