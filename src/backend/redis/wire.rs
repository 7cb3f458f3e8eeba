//! A connection that many callers share: commands go out in the order in which they came, answers come back in it.
//!
//! Callers write into one buffer, and a task of its own, the [`driver`](Wire::over), moves what lies there: so the commands of
//! many go out in one write, and their answers come in with one read.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use parking_lot::Mutex;
use redis::RedisError;
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::sync::{Notify, oneshot};

use super::command::Command;
use super::reply::Reply;
use super::resp::{self, Answer, Measure, Unread};
use super::server::Stream;

/// Callers wait where so many bytes have not gone out yet: the server, or the link, takes no more.
const MOST_UNSENT: usize = 1 << 20;
/// Room for what comes in.
const READ_ROOM: usize = 16 << 10;
/// So many callers are answered before the task gives way to them; more where many wait, so that each whose answer is here
/// has it after so many turns.
const ANSWERS_OF_A_TURN: usize = 16;
pub(super) const TURNS_FOR_ALL: usize = 4;
const MOST_READ_ROOM: usize = 1 << 20;
/// A buffer that a large message has made larger than this is not kept.
const MOST_KEPT: usize = 64 << 10;

/// One caller's hold on a connection. The driver ends with the last one.
#[derive(Clone)]
pub(super) struct Wire {
    hold: Arc<Hold>,
}

struct Hold {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is room again for commands.
    room: Notify,
    /// How often something was read; only the driver counts.
    reads: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Commands that have not gone out.
    unsent: Vec<u8>,
    /// Those who wait, in the order of their commands.
    waiting: VecDeque<Waiting>,
    driver: Option<Waker>,
    /// Why nothing more goes out or comes in.
    end: Option<Arc<io::Error>>,
}

struct Waiting {
    /// How many answers are still to come.
    open: usize,
    /// Those that have come, of several.
    came: Vec<Reply>,
    /// The first of them that is an error.
    error: Option<RedisError>,
    caller: oneshot::Sender<Answer>,
}

impl Waiting {
    fn add(&mut self, answer: Answer) {
        match answer {
            Ok(reply) => self.came.push(reply),
            Err(error) => {
                self.came.push(Reply::Nil);
                self.error.get_or_insert(error);
            }
        }
    }

    fn whole(&mut self) -> Answer {
        let all = Reply::Array(std::mem::take(&mut self.came));
        self.error.take().map_or(Ok(all), Err)
    }
}

impl Wire {
    /// Shares `stream`. Nothing moves unless the driver is polled; dropped, it ends the connection for everybody.
    pub(super) fn over(stream: Box<dyn Stream + '_>) -> (Self, impl Future<Output = ()> + Send) {
        let shared = Arc::<Shared>::default();
        let hold = Arc::new(Hold {
            shared: Arc::clone(&shared),
        });
        let mut driver = Driver {
            shared,
            stream,
            going: Vec::new(),
            gone: 0,
            coming: BytesMut::new(),
            measure: None,
            needs: 1,
            turn: 0,
            is_large: false,
        };
        let driven = async move {
            let ended = poll_fn(|cx| driver.poll(cx)).await;
            let Err(why) = ended;
            driver.shared.end(why);
        };
        (Self { hold }, driven)
    }

    /// Sends a command and waits for its answer.
    ///
    /// # Errors
    /// The server's, or the connection has ended: whether the command was done is not known.
    pub(super) async fn send(&self, command: &Command) -> Answer {
        self.ask(1, |out| command.write_to(out)).await
    }

    /// Sends commands together and waits for all answers, in one array.
    ///
    /// # Errors
    /// As [`Wire::send`]; of several the first.
    pub(super) async fn send_all(&self, commands: &[Command]) -> Answer {
        let write = |out: &mut Vec<u8>| commands.iter().for_each(|command| command.write_to(out));
        match commands {
            [] => Ok(Reply::Array(Vec::new())),
            [one] => Ok(Reply::Array(vec![self.send(one).await?])),
            several => self.ask(several.len(), write).await,
        }
    }

    /// Returns how often something was read so far.
    pub(super) fn reads(&self) -> u64 {
        self.hold.shared.reads.load(Ordering::Relaxed)
    }

    /// Returns why the connection has ended.
    pub(super) fn why(&self) -> RedisError {
        self.hold.shared.why()
    }

    async fn ask(&self, answers: usize, write: impl Fn(&mut Vec<u8>)) -> Answer {
        let shared = &self.hold.shared;
        let answer = match shared.enter(answers, &write)? {
            Some(answer) => answer,
            None => shared.enter_later(answers, &write).await?,
        };
        // Without an answer the driver has ended, and has said why.
        answer.await.unwrap_or_else(|_gone| Err(shared.why()))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let nobody = io::Error::new(io::ErrorKind::NotConnected, "nobody holds the connection");
        self.shared.end(nobody);
    }
}

impl Shared {
    /// Adds a command behind the others; `None` where there is no room for it.
    fn enter(
        &self,
        answers: usize,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<Option<oneshot::Receiver<Answer>>, RedisError> {
        let mut state = self.state.lock();
        if let Some(why) = &state.end {
            return Err(again(why));
        }
        if state.unsent.len() >= MOST_UNSENT {
            return Ok(None);
        }
        write(&mut state.unsent);
        let (caller, answer) = oneshot::channel();
        state.waiting.push_back(Waiting {
            open: answers,
            came: Vec::new(),
            error: None,
            caller,
        });
        let driver = state.driver.take();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        Ok(Some(answer))
    }

    /// Hands an answer to whoever has waited longest. Says whether that caller has all it asked for.
    fn answer(&self, answer: Answer) -> Result<bool, &'static str> {
        let mut state = self.state.lock();
        let Some(first) = state.waiting.front_mut() else {
            return Err("an answer that nobody waits for");
        };
        first.open -= 1;
        let is_alone = first.open == 0 && first.came.is_empty();
        let answer = if is_alone {
            answer
        } else {
            first.add(answer);
            if first.open > 0 {
                return Ok(false);
            }
            first.whole()
        };
        let first = state.waiting.pop_front();
        drop(state);
        // Who has left meanwhile wants no answer.
        let _left = first.map(|first| first.caller.send(answer));
        Ok(true)
    }

    async fn enter_later(
        &self,
        answers: usize,
        write: impl Fn(&mut Vec<u8>),
    ) -> Result<oneshot::Receiver<Answer>, RedisError> {
        loop {
            let mut room = pin!(self.room.notified());
            // Before the look: room that is made after it is heard of.
            room.as_mut().enable();
            if let Some(answer) = self.enter(answers, &write)? {
                return Ok(answer);
            }
            room.await;
        }
    }

    /// Ends the connection for all who wait, and for all who come.
    fn end(&self, why: io::Error) {
        let mut state = self.state.lock();
        state.end.get_or_insert_with(|| Arc::new(why));
        let (waiting, driver) = (std::mem::take(&mut state.waiting), state.driver.take());
        state.unsent = Vec::new();
        drop(state);
        // They wake, and so does the driver, to end.
        drop(waiting);
        if let Some(driver) = driver {
            driver.wake();
        }
        self.room.notify_waiters();
    }

    /// The driver is woken by the next command, and by the end. Returns how many callers wait.
    fn begin_turn(&self, cx: &Context<'_>) -> Result<usize, io::Error> {
        let mut state = self.state.lock();
        if let Some(why) = &state.end {
            return Err(io::Error::new(why.kind(), Arc::clone(why)));
        }
        match &mut state.driver {
            Some(driver) => driver.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        Ok(state.waiting.len())
    }

    fn why(&self) -> RedisError {
        let state = self.state.lock();
        let why = state.end.as_ref().map(again);
        why.unwrap_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe).into())
    }
}

/// The same error for each who meets it.
fn again(why: &Arc<io::Error>) -> RedisError {
    io::Error::new(why.kind(), Arc::clone(why)).into()
}

/// Moves the bytes. It ends with an error only: the server's, the link's, or that nobody holds the connection.
struct Driver<'s> {
    shared: Arc<Shared>,
    stream: Box<dyn Stream + 's>,
    /// Commands that are being written, and how much of them has been.
    going: Vec<u8>,
    gone: usize,
    coming: BytesMut,
    /// Of an answer that comes in pieces.
    measure: Option<Measure>,
    /// An answer is not there before so many bytes are.
    needs: usize,
    /// How many callers each turn answers, until all are whose answers came.
    turn: usize,
    /// A large answer has made the room larger than it need be.
    is_large: bool,
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        // With its runtime, or by an end that was told before.
        let gone = io::Error::new(io::ErrorKind::BrokenPipe, "the connection's task is gone");
        self.shared.end(gone);
    }
}

impl Driver<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Infallible, io::Error>> {
        let share = self.shared.begin_turn(cx)?.div_ceil(TURNS_FOR_ALL);
        self.turn = self.turn.max(share).max(ANSWERS_OF_A_TURN);
        // Both directions: one that waits does not hold up the other, and what has been answered is handed out also where
        // nothing more can be written.
        let wrote = self.write(cx);
        let mut turn = self.turn;
        loop {
            self.hand_out(&mut turn).map_err(broken)?;
            if turn == 0 {
                // Those who were answered go first: what they ask next is on its way while the others are answered.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.read(cx)?.is_pending() {
                self.turn = 0;
                wrote?;
                return Poll::Pending;
            }
        }
    }

    /// Writes until there is nothing left, or the link takes no more.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), io::Error> {
        loop {
            while self.gone < self.going.len() {
                let rest = &self.going[self.gone..];
                match Pin::new(&mut self.stream).poll_write(cx, rest)? {
                    Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(written) => self.gone += written,
                    Poll::Pending => return Ok(()),
                }
            }
            if !self.take_commands() {
                // What a wrapper round the socket still holds goes out before anybody waits.
                let _flushed = Pin::new(&mut self.stream).poll_flush(cx)?;
                return Ok(());
            }
        }
    }

    /// Takes what callers have written meanwhile.
    fn take_commands(&mut self) -> bool {
        self.going.clear();
        self.gone = 0;
        if self.going.capacity() > MOST_KEPT {
            self.going = Vec::new();
        }
        std::mem::swap(&mut self.shared.state.lock().unsent, &mut self.going);
        if self.going.len() >= MOST_UNSENT {
            self.shared.room.notify_waiters();
        }
        !self.going.is_empty()
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, io::Error> {
        if self.coming.is_empty() && self.is_large {
            (self.coming, self.is_large) = (BytesMut::new(), false);
        }
        // A length is only a claim: room for it is made as it comes.
        let more = self.needs.saturating_sub(self.coming.len());
        let more = more.clamp(READ_ROOM, MOST_READ_ROOM);
        self.coming.reserve(more);
        self.is_large |= self.coming.capacity() > MOST_KEPT;
        match pin!(self.stream.read_buf(&mut self.coming)).poll(cx)? {
            Poll::Ready(0) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server hung up",
            )),
            Poll::Ready(_) => {
                self.shared.reads.fetch_add(1, Ordering::Relaxed);
                Ok(Poll::Ready(()))
            }
            Poll::Pending => Ok(Poll::Pending),
        }
    }

    /// Hands the answers that have come to their callers, the first to the first, as many callers as are left of its turn.
    fn hand_out(&mut self, turn: &mut usize) -> Result<(), &'static str> {
        while *turn > 0 && self.coming.len() >= self.needs {
            match self.next() {
                Ok(answer) => *turn -= usize::from(self.shared.answer(answer)?),
                Err(Unread::Broken(why)) => return Err(why),
                Err(Unread::Needs(needs)) => self.needs = needs,
            }
        }
        Ok(())
    }

    fn next(&mut self) -> Result<Answer, Unread> {
        if let Some(measure) = &mut self.measure {
            measure.go_on(&self.coming)?;
        }
        let read = resp::read(&self.coming);
        self.measure = None;
        if let Err(Unread::Needs(_)) = read {
            // From here on each piece is looked at once.
            let mut measure = Measure::default();
            let needs = measure.go_on(&self.coming);
            self.measure = Some(measure);
            needs?;
        }
        let (answer, length) = read?;
        self.coming.advance(length);
        self.needs = 1;
        Ok(answer)
    }
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests;
