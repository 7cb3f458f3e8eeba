//! Gathers a body for the store while its reader gets every frame at once.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use smallvec::SmallVec;
use tokio::time::{Sleep, sleep};

use super::body::{BoxError, ResponseBody};
use super::draft::TrailerRules;
use super::entry::Head;
use super::feed::{End, Feed, RestOf, Room, Source, Stream};
use crate::core::{FRAMES_AT_ONCE, monotonic};

/// Larger trailers are not kept.
const LARGEST_TRAILERS: usize = 4 * 1_024;
/// How long a body is pulled on after its reader has left.
const WITHOUT_READER: Duration = Duration::from_secs(60);

/// How long others wait for a leader that has yet to read a window's bytes.
const FOR_LEADER: Duration = Duration::from_secs(30);

/// The bytes of all bodies that are being gathered, bounded.
#[derive(Debug)]
pub(super) struct Unfinished {
    bytes: AtomicUsize,
    most: usize,
}

impl Unfinished {
    pub(super) const fn new(most: usize) -> Self {
        Self {
            bytes: AtomicUsize::new(0),
            most,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// One body's part of the bound; given back when it is dropped.
struct Share {
    of: Arc<Unfinished>,
    bytes: usize,
}

impl Share {
    /// Takes more; says whether that was still within the bound.
    fn take(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        self.of.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.of.most
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Gathers a body up to a limit.
pub(super) struct Collector<R> {
    body: Pin<Box<R>>,
    chunks: SmallVec<[Bytes; 1]>,
    total: usize,
    most: usize,
    expected: Option<u64>,
}

/// What became of a body.
#[derive(Debug)]
pub(super) enum Collected {
    /// All of it; `false` where it may not be stored: a wrong length, or large trailers.
    Whole(Option<Box<HeaderMap>>, bool),
    /// More than may be kept.
    Over,
    /// No room among all that is being gathered.
    NoRoom,
    /// Cut.
    Failed(BoxError),
}

impl<R> Collector<R>
where
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    /// Gathers at most `most` bytes of `body`, and `expected` exactly where its head said a length.
    pub(super) fn new(body: R, most: usize, expected: Option<u64>) -> Self {
        Self {
            body: Box::pin(body),
            chunks: SmallVec::new(),
            total: 0,
            most,
            expected,
        }
    }

    /// Pulls what is there; `None` if the body is not complete at its first poll.
    pub(super) fn poll_first(&mut self, cx: &mut Context<'_>) -> Option<Collected> {
        match self.poll_all(cx, None) {
            Poll::Ready(collected) => Some(collected),
            Poll::Pending => None,
        }
    }

    fn poll_all(
        &mut self,
        cx: &mut Context<'_>,
        mut feeding: Option<(&Feed, &mut Share)>,
    ) -> Poll<Collected> {
        for _ in 0..FRAMES_AT_ONCE {
            if self.body.is_end_stream() {
                return Poll::Ready(self.whole(None));
            }
            let frame = match ready!(self.body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(self.whole(None)),
                Some(Err(error)) => return Poll::Ready(Collected::Failed(error.into())),
                Some(Ok(frame)) => frame,
            };
            let data = match frame.into_data() {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => data,
                Err(frame) => return Poll::Ready(self.whole(frame.into_trailers().ok())),
            };
            self.total += data.len();
            let (within, mut room) = (self.total <= self.most, true);
            if let Some((feed, share)) = &mut feeding {
                room = share.take(data.len());
                // The last bytes that were announced wait for the end: the entry is in place before they leave.
                let last = within && room && self.expected == Some(self.total as u64);
                feed.push(data.clone(), last);
            }
            self.chunks.push(data);
            if !within {
                return Poll::Ready(Collected::Over);
            }
            if !room {
                return Poll::Ready(Collected::NoRoom);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn whole(&self, trailers: Option<HeaderMap>) -> Collected {
        let trailers = trailers.filter(|fields| !fields.is_empty()).map(Box::new);
        let lines = trailers.iter().flat_map(|fields| fields.iter());
        let size: usize = lines
            .map(|(name, value)| name.as_str().len() + value.len())
            .sum();
        let right = self
            .expected
            .is_none_or(|expected| expected == self.total as u64);
        Collected::Whole(trailers, right && size <= LARGEST_TRAILERS)
    }

    /// Returns the bytes as they came.
    pub(super) fn chunks(&self) -> &[Bytes] {
        &self.chunks
    }

    /// Makes the body of an answer that is not stored after all: what came so far, then the rest.
    pub(super) fn give_up(self, ended: Collected) -> ResponseBody<R> {
        // Nobody reads along.
        let (feed, reader) = Feed::open(&self.chunks, self.left(), TrailerRules::default());
        if matches!(ended, Collected::Over | Collected::NoRoom) {
            *reader.rest().lock() = Some(self.body);
        }
        feed.end(end_of(ended), false);
        ResponseBody::fed(reader)
    }

    fn left(&self) -> Option<u64> {
        self.expected.or_else(|| {
            let rest = self.body.size_hint().exact();
            rest.map(|rest| rest.saturating_add(self.total as u64))
        })
    }

    /// Splits into the body that the client reads, what others may read along, and the task's side that pulls.
    pub(super) fn split(
        self,
        head: Head,
        trailers: TrailerRules,
        unfinished: &Arc<Unfinished>,
    ) -> (ResponseBody<R>, Arc<Stream>, Pull<R>) {
        let (feed, reader) = Feed::open(&self.chunks, self.left(), trailers);
        let stream = Stream::new(head, Arc::clone(&feed));
        let mut share = Share {
            of: Arc::clone(unfinished),
            bytes: 0,
        };
        // Over the bound already: the next frame finds that out.
        let _ = share.take(self.total);
        let pull = Pull {
            collector: self,
            share,
            feed: Source(feed),
            rest: reader.rest(),
            alone: None,
        };
        (ResponseBody::fed(reader), Arc::new(stream), pull)
    }
}

fn end_of(ended: Collected) -> End {
    match ended {
        Collected::Whole(trailers, _) => End::Done(trailers),
        Collected::Over | Collected::NoRoom => End::Rest,
        Collected::Failed(error) => End::Failed(Some(error)),
    }
}

/// The time that the leader has to read a window's bytes, once others wait for it.
struct Turn {
    until: u64,
    ends: Pin<Box<Sleep>>,
}

impl Turn {
    fn new(read: u64, window: usize) -> Self {
        Self {
            until: read.saturating_add(window as u64),
            ends: Box::pin(sleep(FOR_LEADER)),
        }
    }
}

/// The side that pulls frames as fast as they come.
pub(super) struct Pull<R> {
    collector: Collector<R>,
    share: Share,
    feed: Source,
    rest: RestOf<R>,
    /// How long the body is still pulled once all readers have left.
    alone: Option<Pin<Box<Sleep>>>,
}

impl<R> Pull<R>
where
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    /// Pulls to the end; `None` if nobody reads and the body takes too long.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Collected>> {
        let nobody = self.feed.0.watch(cx.waker());
        let feeding = Some((&*self.feed.0, &mut self.share));
        if let Poll::Ready(collected) = self.collector.poll_all(cx, feeding) {
            return Poll::Ready(Some(collected));
        }
        if nobody {
            let alone = self
                .alone
                .get_or_insert_with(|| Box::pin(sleep(WITHOUT_READER)));
            // A body may have used up the task's turn, so that no timer would say that it is over.
            if alone.deadline() > monotonic() {
                ready!(alone.as_mut().poll(cx));
            }
            return Poll::Ready(None);
        }
        // Somebody has joined meanwhile.
        self.alone = None;
        Poll::Pending
    }

    pub(super) fn chunks(&self) -> &[Bytes] {
        self.collector.chunks()
    }

    /// Tells who reads how it ended; only now they get the last bytes. Cut joiners get an error instead.
    pub(super) fn finish(self, ended: Collected, cut_joiners: bool) {
        self.feed.0.end(end_of(ended), cut_joiners);
    }

    /// Lets those who read have the rest of a body that is not kept: the leader alone takes it over; with others it
    /// is pulled on through a window, and who falls out of that is cut. So are all others once it is one visitor's.
    pub(super) async fn pass_on(mut self, is_personal: impl Fn() -> bool) {
        let feed = Arc::clone(&self.feed.0);
        let cut = is_personal();
        if cut || !feed.close(self.collector.most) {
            *self.rest.lock() = Some(self.collector.body);
            return feed.end(End::Rest, cut);
        }
        self.collector.chunks.clear();
        let mut waiting = None;
        poll_fn(|cx| self.poll_window(cx, &mut waiting, &is_personal)).await;
    }

    fn poll_window(
        &mut self,
        cx: &mut Context<'_>,
        waiting: &mut Option<Turn>,
        is_personal: &impl Fn() -> bool,
    ) -> Poll<()> {
        let feed = &self.feed.0;
        for _ in 0..FRAMES_AT_ONCE {
            match feed.room(cx.waker()) {
                Room::Yes => {}
                Room::NotYet(read) => {
                    let turn = waiting
                        .take_if(|turn| turn.until > read)
                        .unwrap_or_else(|| Turn::new(read, self.collector.most));
                    let turn = waiting.insert(turn);
                    ready!(turn.ends.as_mut().poll(cx));
                    *waiting = None;
                    feed.overtake_leader();
                    continue;
                }
                Room::Nobody => return Poll::Ready(()),
            }
            let end = match ready!(self.collector.body.as_mut().poll_frame(cx)) {
                None => End::Done(None),
                Some(Err(error)) => End::Failed(Some(error.into())),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if is_personal() {
                            feed.cut_joiners();
                        }
                        if !data.is_empty() {
                            feed.push(data, false);
                        }
                        continue;
                    }
                    Err(frame) => End::Done(frame.into_trailers().ok().map(Box::new)),
                },
            };
            feed.end(end, is_personal());
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
