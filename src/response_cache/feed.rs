//! Frames on their way from the task that pulls them to everybody who reads along.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;

use super::body::BoxError;
use super::draft::TrailerRules;
use super::entry::Head;

/// What a body gives when it is read.
type Read = Option<Result<Frame<Bytes>, BoxError>>;

/// The place of the request that the answer was fetched for.
const LEADER: usize = 0;

/// An answer whose body is still on its way: others may read along from its first byte.
pub(super) struct Stream {
    pub(super) head: Head,
    feed: Arc<Feed>,
}

impl Stream {
    pub(super) const fn new(head: Head, feed: Arc<Feed>) -> Self {
        Self { head, feed }
    }

    /// Begins to read along; `None` once the first byte is no longer there for everybody.
    pub(super) fn join<R>(&self) -> Option<Reader<R>> {
        let mut state = self.feed.state.lock();
        if state.closed {
            return None;
        }
        state.readers.push(Some(Place::default()));
        let me = state.readers.len() - 1;
        drop(state);
        Some(Reader {
            feed: Arc::clone(&self.feed),
            me,
            rest: Rest::None,
            left: None,
            over: false,
        })
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("head", &self.head)
            .finish_non_exhaustive()
    }
}

/// How a body ended.
pub(super) enum End {
    Done(Option<Box<HeaderMap>>),
    Failed(Option<BoxError>),
    /// The leader's reader goes on with the body itself.
    Rest,
}

/// Frames that have come, and who has read how far.
pub(super) struct Feed {
    state: Mutex<State>,
    /// What of the trailers is for those who read along; the leader gets all, as they came for it.
    trailers: TrailerRules,
}

#[derive(Default)]
struct State {
    /// Frames from number `first` on.
    chunks: VecDeque<Bytes>,
    first: usize,
    /// The bytes in `chunks`, and of all frames that ever were in it.
    kept: usize,
    total: u64,
    held: Option<Bytes>,
    end: Option<End>,
    /// The leader's place comes first.
    readers: Vec<Option<Place>>,
    puller: Option<Waker>,
    /// Nobody may begin to read along.
    closed: bool,
    /// Only the leader gets its end.
    joiners_cut: bool,
    /// As many bytes are kept at most; who falls behind is cut.
    window: Option<usize>,
    /// The leader took too long: it moves the window no more.
    is_overtaken: bool,
}

#[derive(Default)]
struct Place {
    next: usize,
    bytes: u64,
    waker: Option<Waker>,
}

impl State {
    fn put(&mut self, data: Bytes) {
        self.kept += data.len();
        self.total += data.len() as u64;
        self.chunks.push_back(data);
    }

    fn wakers(&mut self) -> Vec<Waker> {
        let places = self.readers.iter_mut().flatten();
        places.filter_map(|place| place.waker.take()).collect()
    }

    /// Whose reading moves the window: the leader's, else the fastest.
    fn driver(&self) -> Option<&Place> {
        let leader = self.readers.first().and_then(Option::as_ref);
        let leader = leader.filter(|_| !self.is_overtaken);
        leader.or_else(|| self.readers.iter().flatten().max_by_key(|place| place.next))
    }

    fn trim(&mut self, keep: usize) {
        let read = self.driver().map_or(0, |driver| driver.next);
        while self.kept > keep && self.first < read {
            let Some(data) = self.chunks.pop_front() else {
                break;
            };
            self.kept -= data.len();
            self.first += 1;
        }
    }
}

/// Whether a window lets the body be pulled on.
pub(super) enum Room {
    Yes,
    /// Whose reading moves it has read this many bytes.
    NotYet(u64),
    /// Nobody reads any more.
    Nobody,
}

impl Feed {
    /// Opens a feed of what came so far, and the leader's reader of it.
    pub(super) fn open<R>(
        chunks: &[Bytes],
        left: Option<u64>,
        trailers: TrailerRules,
    ) -> (Arc<Self>, Reader<R>) {
        let mut state = State {
            readers: vec![Some(Place::default())],
            ..State::default()
        };
        chunks.iter().for_each(|data| state.put(data.clone()));
        let feed = Arc::new(Self {
            state: Mutex::new(state),
            trailers,
        });
        let reader = Reader {
            feed: Arc::clone(&feed),
            me: LEADER,
            rest: Rest::Shared(Arc::default()),
            left,
            over: false,
        };
        (feed, reader)
    }

    /// Gives everybody a frame; held back it waits for the next one, or for the end.
    pub(super) fn push(&self, data: Bytes, hold: bool) {
        let mut state = self.state.lock();
        // Bytes beyond the announced length: what was held back was not the end.
        if let Some(held) = state.held.take() {
            state.put(held);
        }
        if hold {
            state.held = Some(data);
        } else {
            state.put(data);
        }
        if let Some(window) = state.window {
            state.trim(window);
        }
        let wakers = state.wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Lets nobody but the leader have what comes from now on.
    pub(super) fn cut_joiners(&self) {
        self.state.lock().joiners_cut = true;
    }

    /// Ends it for all; with `cut_joiners` only the leader gets this end.
    pub(super) fn end(&self, end: End, cut_joiners: bool) {
        let mut state = self.state.lock();
        if let Some(held) = state.held.take() {
            state.put(held);
        }
        state.closed = true;
        state.joiners_cut |= cut_joiners;
        if state.end.is_none() {
            state.end = Some(end);
        }
        let wakers = state.wakers();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Lets nobody join any more. Says whether somebody has: then only a window of `bytes` is kept from now on.
    pub(super) fn close(&self, bytes: usize) -> bool {
        let mut state = self.state.lock();
        state.closed = true;
        let joined = state.readers.iter().skip(1).any(Option::is_some);
        if joined {
            state.window = Some(bytes);
            state.trim(bytes);
        }
        joined
    }

    /// Remembers whom to wake when a reader leaves; says whether all have.
    pub(super) fn watch(&self, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        state.puller = Some(waker.clone());
        state.readers.iter().all(Option::is_none)
    }

    /// Says whether the window has room for a frame; if not, remembers whom to wake.
    pub(super) fn room(&self, waker: &Waker) -> Room {
        let mut state = self.state.lock();
        let (window, total) = (state.window.unwrap_or(usize::MAX) as u64, state.total);
        match state.driver().map(|driver| driver.bytes) {
            None => Room::Nobody,
            Some(read) if total - read < window => {
                state.puller = Some(waker.clone());
                Room::Yes
            }
            Some(read) => {
                state.puller = Some(waker.clone());
                Room::NotYet(read)
            }
        }
    }

    /// Lets whoever reads fastest move the window from now on, where somebody has read as far as the leader.
    pub(super) fn overtake_leader(&self) {
        let mut state = self.state.lock();
        let (leader, others) = state.readers.split_at(1);
        let read = leader.iter().flatten().map(|place| place.next).max();
        let mut others = others.iter().flatten();
        if others.any(|other| read.is_none_or(|read| other.next >= read)) {
            state.is_overtaken = true;
        }
    }
}

/// The puller's hold on a feed: dropped before the end, by a panic or with its runtime, it cuts all who read.
pub(super) struct Source(pub(super) Arc<Feed>);

impl Drop for Source {
    fn drop(&mut self) {
        let ended = self.0.state.lock().end.is_some();
        if !ended {
            let cut = "the task that pulled this body has ended";
            self.0.end(End::Failed(Some(cut.into())), false);
        }
    }
}

/// Where the leader's reader finds the body itself, once it shall read on alone.
pub(super) type RestOf<R> = Arc<Mutex<Option<Pin<Box<R>>>>>;

enum Rest<R> {
    None,
    Shared(RestOf<R>),
    Own(Pin<Box<R>>),
}

/// One who reads, at its own pace.
pub(super) struct Reader<R> {
    feed: Arc<Feed>,
    me: usize,
    rest: Rest<R>,
    left: Option<u64>,
    over: bool,
}

impl<R> Reader<R> {
    pub(super) const fn is_over(&self) -> bool {
        self.over
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }

    /// Announces a length.
    pub(super) const fn of_length(mut self, length: Option<u64>) -> Self {
        self.left = length;
        self
    }

    /// Where to put the body for the leader to read on alone.
    pub(super) fn rest(&self) -> RestOf<R> {
        match &self.rest {
            Rest::Shared(shared) => Arc::clone(shared),
            Rest::None | Rest::Own(_) => Arc::default(),
        }
    }

    /// The next frame of the feed; `None` once the body itself has to be asked.
    fn poll_feed(&mut self, cx: &Context<'_>) -> Poll<Option<Read>> {
        let mut state = self.feed.state.lock();
        let (first, me) = (state.first, self.me);
        let joiner_cut = me != LEADER && state.joiners_cut;
        let next = match state.readers.get(me) {
            Some(Some(place)) if place.next >= first && !joiner_cut => place.next - first,
            _ => {
                self.over = true;
                return Poll::Ready(Some(Some(Err(cut()))));
            }
        };
        if let Some(data) = state.chunks.get(next).cloned() {
            let alone = state.closed && state.readers.iter().flatten().count() == 1;
            if let Some(Some(place)) = state.readers.get_mut(me) {
                place.next += 1;
                place.bytes += data.len() as u64;
            }
            let mut puller = None;
            if let Some(window) = state.window {
                state.trim(window);
                puller = state.puller.take();
            } else if alone {
                state.trim(0);
            }
            drop(state);
            puller.into_iter().for_each(Waker::wake);
            self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
            return Poll::Ready(Some(Some(Ok(Frame::data(data)))));
        }
        match &mut state.end {
            None => {
                if let Some(Some(place)) = state.readers.get_mut(me) {
                    place.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
            Some(End::Rest) if me == LEADER => Poll::Ready(None),
            Some(End::Done(trailers)) => {
                self.over = true;
                let trailers = if me == LEADER {
                    trailers.as_deref().cloned()
                } else {
                    let kept = self.feed.trailers.kept(trailers.as_deref());
                    kept.map(|kept| *kept)
                };
                Poll::Ready(Some(trailers.map(|fields| Ok(Frame::trailers(fields)))))
            }
            Some(End::Failed(error)) => {
                self.over = true;
                let own = if me == LEADER { error.take() } else { None };
                Poll::Ready(Some(Some(Err(own.unwrap_or_else(cut)))))
            }
            Some(End::Rest) => {
                self.over = true;
                Poll::Ready(Some(Some(Err(cut()))))
            }
        }
    }
}

fn cut() -> BoxError {
    "the answer that this request read along was cut".into()
}

impl<R> Reader<R>
where
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Rest::Shared(_) | Rest::None = &self.rest {
            if let Some(frame) = ready!(self.poll_feed(cx)) {
                return Poll::Ready(frame);
            }
            let body = match &self.rest {
                Rest::Shared(shared) => shared.lock().take(),
                _ => None,
            };
            self.rest = body.map_or(Rest::None, Rest::Own);
        }
        let Rest::Own(body) = &mut self.rest else {
            self.over = true;
            return Poll::Ready(Some(Err(cut())));
        };
        let frame = ready!(body.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.left = self.left.map(|left| left.saturating_sub(length));
            }
            _ => self.over = true,
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }
}

impl<R> Drop for Reader<R> {
    fn drop(&mut self) {
        let mut state = self.feed.state.lock();
        if let Some(place) = state.readers.get_mut(self.me) {
            *place = None;
        }
        let puller = state.puller.take();
        drop(state);
        puller.into_iter().for_each(Waker::wake);
    }
}
