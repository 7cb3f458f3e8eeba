//! Gathers a body for the store while its reader gets every frame at once.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::time::{Sleep, sleep};

use super::body::{BoxError, ResponseBody};

/// Larger trailers are not kept.
const LARGEST_TRAILERS: usize = 4 * 1_024;
/// How long a body is pulled on after its reader has left.
const WITHOUT_READER: Duration = Duration::from_secs(60);

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
    chunks: Vec<Bytes>,
    total: usize,
    most: usize,
    expected: Option<u64>,
    share: Share,
}

/// What became of a body.
#[derive(Debug)]
pub(super) enum Collected {
    /// All of it; `false` where it may not be stored: a wrong length, or large trailers.
    Whole(Option<Box<HeaderMap>>, bool),
    /// More than may be kept.
    Over,
    /// Cut.
    Failed(BoxError),
}

impl<R> Collector<R>
where
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    /// Gathers at most `most` bytes of `body`, and `expected` exactly where its head said a length.
    pub(super) fn new(
        body: R,
        most: usize,
        expected: Option<u64>,
        unfinished: &Arc<Unfinished>,
    ) -> Self {
        Self {
            body: Box::pin(body),
            chunks: Vec::new(),
            total: 0,
            most,
            expected,
            share: Share {
                of: Arc::clone(unfinished),
                bytes: 0,
            },
        }
    }

    /// Pulls once; `None` if the body is not complete at its first poll.
    pub(super) fn poll_first(&mut self, cx: &mut Context<'_>) -> Option<Collected> {
        match self.poll_all(cx, None) {
            Poll::Ready(collected) => Some(collected),
            Poll::Pending => None,
        }
    }

    fn poll_all(&mut self, cx: &mut Context<'_>, feed: Option<&Feed<R>>) -> Poll<Collected> {
        loop {
            let frame = match ready!(self.body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(self.whole(None)),
                Some(Err(error)) => return Poll::Ready(Collected::Failed(error.into())),
                Some(Ok(frame)) => frame,
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(frame) => return Poll::Ready(self.whole(frame.into_trailers().ok())),
            };
            self.total += data.len();
            let within = self.share.take(data.len()) && self.total <= self.most;
            if let Some(feed) = feed {
                // The last bytes that were announced wait for the end: the entry is in place before they leave.
                let last = within && self.expected == Some(self.total as u64);
                feed.push(data.clone(), last);
            }
            self.chunks.push(data);
            if !within {
                return Poll::Ready(Collected::Over);
            }
        }
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

    /// Returns the bytes as one exact allocation, so that no buffer of a connection is kept alive.
    pub(super) fn bytes(&self) -> Bytes {
        match &self.chunks[..] {
            [one] => Bytes::copy_from_slice(one),
            many => Bytes::from(many.concat()),
        }
    }

    /// Makes the body of an answer that is not stored after all: what came so far, then the rest.
    pub(super) fn give_up(self, ended: Collected) -> ResponseBody<R> {
        let (feed, reader) = self.feed();
        feed.end(match ended {
            Collected::Whole(trailers, _) => End::Done(trailers),
            Collected::Over => End::Rest(self.body),
            Collected::Failed(error) => End::Failed(error),
        });
        ResponseBody::fed(reader)
    }

    /// Opens a feed of what came so far.
    fn feed(&self) -> (Arc<Feed<R>>, Reader<R>) {
        let feed = Arc::new(Feed {
            state: Mutex::new(FeedState {
                chunks: self.chunks.iter().cloned().collect(),
                held: None,
                end: None,
                reader: None,
                puller: None,
                reader_left: false,
                ended: false,
            }),
        });
        let left = self.expected.or_else(|| {
            let rest = self.body.size_hint().exact();
            rest.map(|rest| rest + self.total as u64)
        });
        let reader = Reader {
            feed: Arc::clone(&feed),
            rest: None,
            left,
            over: false,
        };
        (feed, reader)
    }

    /// Splits into the body that the client reads, and the task's side that pulls.
    pub(super) fn split(self) -> (ResponseBody<R>, Pull<R>) {
        let (feed, reader) = self.feed();
        (
            ResponseBody::fed(reader),
            Pull {
                collector: self,
                feed: Source(feed),
                alone: None,
            },
        )
    }
}

/// The side that pulls frames as fast as they come.
pub(super) struct Pull<R> {
    collector: Collector<R>,
    feed: Source<R>,
    /// How long the body is still pulled once the reader has left.
    alone: Option<Pin<Box<Sleep>>>,
}

impl<R> Pull<R>
where
    R: http_body::Body<Data = Bytes>,
    R::Error: Into<BoxError>,
{
    /// Pulls to the end; `None` if nobody reads and the body takes too long.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<Collected>> {
        let reader_left = self.feed.0.watch(cx.waker());
        if let Poll::Ready(collected) = self.collector.poll_all(cx, Some(&self.feed.0)) {
            return Poll::Ready(Some(collected));
        }
        if reader_left {
            let alone = self
                .alone
                .get_or_insert_with(|| Box::pin(sleep(WITHOUT_READER)));
            ready!(alone.as_mut().poll(cx));
            return Poll::Ready(None);
        }
        Poll::Pending
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.collector.bytes()
    }

    /// Tells the reader how it ended; only now it gets its last bytes.
    pub(super) fn finish(self, ended: Collected) {
        self.feed.0.end(match ended {
            Collected::Whole(trailers, _) => End::Done(trailers),
            Collected::Over => End::Rest(self.collector.body),
            Collected::Failed(error) => End::Failed(error),
        });
    }
}

enum End<R> {
    Done(Option<Box<HeaderMap>>),
    Failed(BoxError),
    Rest(Pin<Box<R>>),
}

/// The task's hold on a feed: dropped before the end, by a panic or with its runtime, it cuts the reader.
struct Source<R>(Arc<Feed<R>>);

impl<R> Drop for Source<R> {
    fn drop(&mut self) {
        if !self.0.state.lock().ended {
            self.0.end(End::Failed("the body's task has ended".into()));
        }
    }
}

/// Frames on their way from the task to the reader.
struct Feed<R> {
    state: Mutex<FeedState<R>>,
}

struct FeedState<R> {
    chunks: VecDeque<Bytes>,
    held: Option<Bytes>,
    end: Option<End<R>>,
    reader: Option<Waker>,
    puller: Option<Waker>,
    reader_left: bool,
    ended: bool,
}

impl<R> Feed<R> {
    fn push(&self, data: Bytes, hold: bool) {
        let mut state = self.state.lock();
        // Bytes beyond the announced length: what was held back was not the end.
        if let Some(held) = state.held.take() {
            state.chunks.push_back(held);
        }
        if hold {
            state.held = Some(data);
        } else {
            state.chunks.push_back(data);
        }
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }

    fn end(&self, end: End<R>) {
        let mut state = self.state.lock();
        if let Some(held) = state.held.take() {
            state.chunks.push_back(held);
        }
        state.end = Some(end);
        state.ended = true;
        let reader = state.reader.take();
        drop(state);
        reader.into_iter().for_each(Waker::wake);
    }

    /// Remembers whom to wake when the reader leaves; says whether it has.
    fn watch(&self, waker: &Waker) -> bool {
        let mut state = self.state.lock();
        state.puller = Some(waker.clone());
        state.reader_left
    }
}

/// The side that the client reads.
pub(super) struct Reader<R> {
    feed: Arc<Feed<R>>,
    rest: Option<Pin<Box<R>>>,
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
        if self.rest.is_none() {
            let mut state = self.feed.state.lock();
            if let Some(data) = state.chunks.pop_front() {
                drop(state);
                self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            match state.end.take() {
                None => {
                    state.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Some(End::Rest(body)) => {
                    drop(state);
                    self.rest = Some(body);
                }
                Some(End::Done(trailers)) => {
                    self.over = true;
                    return Poll::Ready(trailers.map(|fields| Ok(Frame::trailers(*fields))));
                }
                Some(End::Failed(error)) => {
                    self.over = true;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        let Some(body) = &mut self.rest else {
            return Poll::Ready(None);
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
        state.reader_left = true;
        let puller = state.puller.take();
        drop(state);
        puller.into_iter().for_each(Waker::wake);
    }
}
