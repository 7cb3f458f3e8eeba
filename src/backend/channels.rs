//! Who listens on which channel: the same list for every engine. Nobody is called under its lock.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::core::{Notice, NoticeCallback};

/// The channels of one handle and their listeners.
#[derive(Default)]
pub(super) struct Channels {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u64,
    channels: HashMap<Box<str>, Channel>,
    /// Channels that somebody joined or left since [`Channels::take_changed`].
    changed: HashSet<Box<str>>,
}

#[derive(Default)]
struct Channel {
    /// The engine was told to subscribe since the link was last lost.
    asked: bool,
    /// Payloads arrive.
    live: bool,
    /// Copied only where a listener comes or goes while a payload is being told.
    listeners: Arc<Vec<Listener>>,
    /// Listeners that were not yet told that payloads arrive, and who waits for that.
    waiting: Vec<(u64, oneshot::Sender<()>)>,
}

#[derive(Clone)]
struct Listener {
    id: u64,
    callback: NoticeCallback,
}

/// What the engine has to be told about a channel.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Somebody listens, and payloads do not arrive yet.
    Subscribe(Box<str>),
    /// Nobody listens any more.
    Unsubscribe(Box<str>),
}

impl Channels {
    /// Adds a listener. It is told [`Notice::Restored`] by [`Channels::restored`], and so is the receiver.
    pub(super) fn join(
        &self,
        channel: &str,
        callback: NoticeCallback,
    ) -> (u64, oneshot::Receiver<()>) {
        let (told, confirmed) = oneshot::channel();
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        let entry = state.channels.entry(channel.into()).or_default();
        Arc::make_mut(&mut entry.listeners).push(Listener { id, callback });
        entry.waiting.push((id, told));
        state.changed.insert(channel.into());
        (id, confirmed)
    }

    /// Removes a listener.
    pub(super) fn leave(&self, channel: &str, id: u64) {
        let mut state = self.state.lock();
        let Some(entry) = state.channels.get_mut(channel) else {
            return;
        };
        entry.waiting.retain(|(waiting, _)| *waiting != id);
        let place = entry
            .listeners
            .iter()
            .position(|listener| listener.id == id);
        // Dropped outside the lock: a callback may own anything.
        let removed = place.map(|place| Arc::make_mut(&mut entry.listeners).swap_remove(place));
        if entry.listeners.is_empty() {
            if entry.asked {
                state.changed.insert(channel.into());
            } else {
                // The engine never heard of it: names that clients choose do not gather while it is away.
                state.channels.remove(channel);
                state.changed.remove(channel);
            }
        }
        drop(state);
        drop(removed);
    }

    #[cfg_attr(not(any(test, feature = "redis")), allow(dead_code))]
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state.lock();
        state
            .channels
            .values()
            .all(|channel| channel.listeners.is_empty())
    }

    /// Returns what changed since the last call; channels without listeners are forgotten.
    pub(super) fn take_changed(&self) -> Vec<Change> {
        let mut state = self.state.lock();
        let State {
            channels, changed, ..
        } = &mut *state;
        let mut changes = Vec::with_capacity(changed.len());
        for name in changed.drain() {
            let Some(channel) = channels.get_mut(&name) else {
                continue;
            };
            if !channel.listeners.is_empty() {
                channel.asked = true;
                changes.push(Change::Subscribe(name));
            } else if channels.remove(&name).is_some_and(|channel| channel.asked) {
                changes.push(Change::Unsubscribe(name));
            }
        }
        changes
    }

    /// Says that payloads of `channel` arrive: whoever has not heard it yet is told.
    pub(super) fn restored(&self, channel: &str) {
        let mut state = self.state.lock();
        let Some(entry) = state.channels.get_mut(channel) else {
            return;
        };
        let everybody = !mem::replace(&mut entry.live, true);
        let waiting = mem::take(&mut entry.waiting);
        let listeners = Arc::clone(&entry.listeners);
        drop(state);
        for listener in listeners.iter() {
            if everybody || waiting.iter().any(|(id, _)| *id == listener.id) {
                (listener.callback)(Notice::Restored);
            }
        }
        for (_, told) in waiting {
            // Nobody waits any more: no harm.
            let _ = told.send(());
        }
    }

    /// Says whether payloads of any channel arrive.
    #[cfg_attr(not(any(test, feature = "redis")), allow(dead_code))]
    pub(super) fn is_live(&self) -> bool {
        let state = self.state.lock();
        state.channels.values().any(|channel| channel.live)
    }

    /// Says that the engine has to be told of `channel` once more: it has refused it.
    #[cfg_attr(not(any(test, feature = "redis")), allow(dead_code))]
    pub(super) fn try_again(&self, channel: Box<str>) {
        let mut state = self.state.lock();
        if state.channels.contains_key(&channel) {
            state.changed.insert(channel);
        }
    }

    #[cfg_attr(not(any(test, feature = "redis")), allow(dead_code))]
    /// Says that payloads may be missed on all channels; all have to be subscribed again.
    pub(super) fn lost(&self) {
        let mut state = self.state.lock();
        let State {
            channels, changed, ..
        } = &mut *state;
        let mut told = Vec::new();
        changed.clear();
        channels.retain(|_, channel| !channel.listeners.is_empty());
        for (name, channel) in channels.iter_mut() {
            changed.insert(name.clone());
            channel.asked = false;
            if mem::take(&mut channel.live) {
                told.push(Arc::clone(&channel.listeners));
            }
        }
        drop(state);
        for listener in told.iter().flat_map(|listeners| listeners.iter()) {
            (listener.callback)(Notice::Lost);
        }
    }

    /// Tells the listeners of `channel` what was published.
    pub(super) fn deliver(&self, channel: &str, payload: &Bytes) {
        let listeners = match self.state.lock().channels.get(channel) {
            Some(channel) => Arc::clone(&channel.listeners),
            None => return,
        };
        for listener in listeners.iter() {
            (listener.callback)(Notice::Payload(payload.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Heard = Arc<Mutex<Vec<Notice>>>;

    fn listener() -> (Heard, NoticeCallback) {
        let heard = Heard::default();
        let sink = Arc::clone(&heard);
        (heard, Arc::new(move |notice| sink.lock().push(notice)))
    }

    fn payload(text: &'static str) -> Notice {
        Notice::Payload(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn a_listener_hears_that_payloads_arrive_before_the_first_and_each_loss_once() {
        let channels = Channels::default();
        let (heard, callback) = listener();
        let (_, mut confirmed) = channels.join("a", callback);
        assert!(confirmed.try_recv().is_err());
        assert_eq!(
            channels.take_changed(),
            [Change::Subscribe("a".into())],
            "the engine is told once"
        );
        assert!(channels.take_changed().is_empty());
        channels.restored("a");
        assert!(confirmed.try_recv().is_ok());
        channels.deliver("a", &Bytes::from_static(b"1"));
        channels.deliver("b", &Bytes::from_static(b"2"));
        channels.lost();
        channels.lost();
        assert_eq!(channels.take_changed(), [Change::Subscribe("a".into())]);
        channels.restored("a");
        let expected = [
            Notice::Restored,
            payload("1"),
            Notice::Lost,
            Notice::Restored,
        ];
        assert_eq!(*heard.lock(), expected);
    }

    #[test]
    fn a_second_listener_is_told_alone_and_the_last_to_leave_ends_the_channel() {
        let channels = Channels::default();
        let ((heard, callback), (late, latecomer)) = (listener(), listener());
        let (first, _) = channels.join("a", callback);
        channels.restored("a");
        let (second, _) = channels.join("a", latecomer);
        channels.restored("a");
        assert_eq!((heard.lock().len(), late.lock().len()), (1, 1));
        channels.take_changed();
        channels.leave("a", first);
        channels.deliver("a", &Bytes::from_static(b"1"));
        assert_eq!((heard.lock().len(), late.lock().len()), (1, 2));
        assert!(channels.take_changed().is_empty() && !channels.is_empty());
        channels.leave("a", second);
        assert!(channels.is_empty());
        assert_eq!(channels.take_changed(), [Change::Unsubscribe("a".into())]);
        channels.deliver("a", &Bytes::from_static(b"2"));
        assert_eq!(late.lock().len(), 2);
    }

    #[test]
    fn channels_that_come_and_go_while_the_engine_is_away_leave_nothing() {
        let channels = Channels::default();
        let (stays, callback) = listener();
        channels.join("stays", callback);
        let kept = || {
            let state = channels.state.lock();
            (state.channels.len(), state.changed.len())
        };
        let come_and_go = |name: &str| {
            let (id, _) = channels.join(name, listener().1);
            channels.leave(name, id);
        };
        come_and_go("a");
        assert_eq!(kept(), (1, 1));
        channels.take_changed();
        channels.restored("stays");
        // Gone while the engine is being told: it has to hear of the end, or lose the link.
        let (id, _) = channels.join("b", listener().1);
        channels.take_changed();
        channels.leave("b", id);
        assert_eq!(kept(), (2, 1));
        channels.lost();
        come_and_go("c");
        assert_eq!(kept(), (1, 1));
        assert_eq!(*stays.lock(), [Notice::Restored, Notice::Lost]);
    }

    #[test]
    fn a_listener_that_leaves_before_payloads_arrive_costs_the_engine_nothing() {
        let channels = Channels::default();
        let (id, _) = channels.join("a", listener().1);
        channels.leave("a", id);
        channels.leave("a", id);
        assert!(channels.take_changed().is_empty());
    }
}
