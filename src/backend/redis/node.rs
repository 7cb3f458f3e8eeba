//! One node: its connection, and who may use it.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use redis::aio::PubSub;
use redis::{ConnectionAddr, RedisError};

use super::command::Command;
use super::error::{self, Meaning};
use super::gate::{Failure, Gate, Ticket};
use super::look::Looks;
use super::meter::Meter;
use super::reply::Reply;
use super::resp::Answer;
use super::server::{Generation, Origin, Server};
use super::wire::{TURNS_FOR_ALL, Wire};
use crate::core::telemetry::count;
use crate::core::{StoreError, StoreErrorKind};

/// One server, or the primary of a sentinel set.
pub(super) struct Node {
    server: Arc<Server>,
    gate: Gate,
    /// Somebody asks for a sign of life.
    is_watched: AtomicBool,
    /// Counts for all nodes of the handle.
    meter: Arc<Meter>,
}

/// What is sent, the same to any node.
#[derive(Clone, Copy)]
pub(super) enum Words<'a> {
    Command(&'a Command),
    Script {
        call: &'a Command,
        /// The same with the script's text, for a node that does not know it.
        with_source: &'a (dyn Fn() -> Command + Send + Sync),
    },
    /// Commands that only read, answered together; by `Nil` where a script must be asked instead.
    Look(&'a [Command], &'a Looks),
}

/// A caller's words, ready to be sent to any node.
pub(super) struct Request<'a> {
    pub(super) words: Words<'a>,
    /// How long the caller waits in all.
    pub(super) timeout: Duration,
    /// The node is about to take over the slot: it serves the command only when told so.
    pub(super) asking: bool,
}

/// Why a node did not do it.
pub(super) enum Refusal {
    /// Another node has the slot: nothing was done. Only a node of a cluster says so.
    Elsewhere(RedisError),
    /// Everything else.
    Failed(StoreError),
}

/// What a call went out on: nothing, as long as it has no connection.
#[derive(Default)]
struct Way {
    generation: AtomicU64,
    /// How often something had been read there before.
    reads: AtomicU64,
}

impl Way {
    /// Only the call itself writes and reads it.
    fn took(&self, connection: &Wire, generation: Generation) {
        self.reads.store(connection.reads(), Ordering::Relaxed);
        self.generation.store(generation, Ordering::Relaxed);
    }

    fn generation(&self) -> Generation {
        self.generation.load(Ordering::Relaxed)
    }
}

/// A call that is on its way. Dropped while it is, it has a caller who hung up.
struct Underway<'a> {
    node: &'a Arc<Node>,
    ticket: Ticket,
    began: Instant,
    is_over: bool,
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // Who leaves at once has seen nothing; a probe was everybody's.
        let seen = self.node.gate.patience() / 10;
        if self.ticket.is_probe() || self.began.elapsed() >= seen {
            self.node.watch_for(self.ticket);
        }
    }
}

impl Node {
    /// `patience` is the handle's timeout.
    pub(super) fn new(origin: Origin, patience: Duration, meter: Arc<Meter>) -> Self {
        Self {
            server: Arc::new(Server::new(origin)),
            gate: Gate::new(patience),
            is_watched: AtomicBool::default(),
            meter,
        }
    }

    /// Sends a command and waits for `rest`, what is left of the caller's time. Only NOSCRIPT, a known outcome, is sent
    /// once more.
    ///
    /// Dropping this future drops the waiting, not the command: it may have been sent.
    pub(super) async fn call(
        self: &Arc<Self>,
        request: &Request<'_>,
        rest: Duration,
    ) -> Result<Reply, Refusal> {
        let ticket = self.gate.admit(request.timeout).map_err(|until_probe| {
            self.meter.refused();
            let refused = StoreError::new(StoreErrorKind::Unavailable);
            Refusal::Failed(refused.retry_after(until_probe))
        })?;
        let mut underway = Underway {
            node: self,
            ticket,
            began: Instant::now(),
            is_over: false,
        };
        let way = Way::default();
        let mut sent = pin!(self.send_or_teach(request.words, request.asking, &way));
        let answer = match tokio::time::timeout(rest, sent.as_mut()).await {
            Ok(answer) => Some(answer),
            Err(_elapsed) => last_look(sent).await,
        };
        underway.is_over = true;
        let took = underway.began.elapsed();
        let ended = |kind| self.meter.ended(took, kind);
        let error = match answer {
            Some(Ok(value)) => {
                self.gate.answered(ticket, took);
                ended(None);
                return Ok(value);
            }
            Some(Err(error)) => error,
            None => {
                ended(Some(StoreErrorKind::TimedOut));
                let late = StoreError::new(StoreErrorKind::TimedOut);
                let retry_after = self.late(&underway, request.timeout, rest, &way);
                return Err(Refusal::Failed(late.retry_after(retry_after)));
            }
        };
        Err(match error::meaning(&error) {
            Meaning::Elsewhere => {
                self.gate.answered(ticket, took);
                Refusal::Elsewhere(error)
            }
            Meaning::Refused(kind) => {
                self.gate.answered(ticket, took);
                ended(Some(kind));
                Refusal::Failed(error::with_source(kind, error))
            }
            Meaning::NoScript => {
                self.gate.answered(ticket, took);
                ended(Some(StoreErrorKind::Failed));
                Refusal::Failed(error::with_source(StoreErrorKind::Failed, error))
            }
            Meaning::Away => {
                ended(Some(StoreErrorKind::Unavailable));
                let failure = match way.generation() {
                    0 => Failure::OfServer,
                    own if error::ends_connection(&error) => Failure::OfConnection(own),
                    _ => self.meant(&way),
                };
                let retry_after = self.failed(&underway, failure, &way);
                let away = error::with_source(StoreErrorKind::Unavailable, error);
                Refusal::Failed(away.retry_after(retry_after))
            }
        })
    }

    /// Says whether every call is refused because the server did not answer.
    pub(super) fn is_shut(&self) -> bool {
        self.gate.is_shut()
    }

    /// Says whether some calls are refused because the server did not answer, or not soon enough for them.
    pub(super) fn refuses_some(&self) -> bool {
        self.gate.refuses_some()
    }

    /// Opens a connection that only listens.
    pub(super) async fn listen(&self) -> Result<PubSub, RedisError> {
        self.server.listen().await
    }

    /// Returns the number of the database, which a channel's name has to carry: publishing knows none.
    pub(super) fn database(&self) -> i64 {
        match self.server.origin() {
            Origin::Fixed(address) => address.redis_settings().db(),
            Origin::Sentinels(sentinels) => sentinels.database(),
        }
    }

    /// Returns the host of a node whose address is fixed.
    pub(super) fn host(&self) -> &str {
        match self.server.origin() {
            Origin::Fixed(address) => match address.addr() {
                ConnectionAddr::Tcp(host, _) => host,
                _ => "",
            },
            Origin::Sentinels(_) => "",
        }
    }

    /// Says whether this is the node at that place.
    pub(super) fn is_at(&self, host: &str, port: u16) -> bool {
        matches!(self.server.origin(), Origin::Fixed(address)
            if matches!(address.addr(), ConnectionAddr::Tcp(own, own_port) if own == host && *own_port == port))
    }

    /// Sends one command that is not counted and waits for its answer; the caller bounds the time.
    pub(super) async fn ask(&self, command: &Command) -> Answer {
        self.ask_on(command, &Way::default()).await
    }

    async fn ask_on(&self, command: &Command, way: &Way) -> Answer {
        let (connection, generation) = self.server.connection().await?;
        way.took(&connection, generation);
        let answer = connection.send(command).await;
        self.look(answer, generation)
    }

    /// Sends a script's text after its digest where the node does not know it.
    async fn send_or_teach(&self, words: Words<'_>, asking: bool, way: &Way) -> Answer {
        match (self.send(words, asking, way).await, words) {
            (Err(error), Words::Script { with_source, .. })
                if matches!(error::meaning(&error), Meaning::NoScript) =>
            {
                let whole = with_source();
                self.send(Words::Command(&whole), asking, way).await
            }
            (answer, _) => answer,
        }
    }

    async fn send(&self, words: Words<'_>, asking: bool, way: &Way) -> Answer {
        let (connection, generation) = self.server.connection().await?;
        way.took(&connection, generation);
        self.meter.sent();
        count!("keep_redis_commands_total", 1);
        let answer = match words {
            Words::Command(command) | Words::Script { call: command, .. } if asking => {
                // Both go out together: the permission holds for the very next command only.
                let both = [Command::new("ASKING"), command.clone()];
                let answers = connection.send_all(&both).await;
                answers.map(|answers| match answers {
                    Reply::Array(mut answers) => answers.pop().unwrap_or(Reply::Nil),
                    other => other,
                })
            }
            Words::Command(command) | Words::Script { call: command, .. } => {
                connection.send(command).await
            }
            Words::Look(commands, looks) => {
                let answers = connection.send_all(commands).await;
                match answers {
                    // What refuses GETEX does not refuse a script that reads.
                    Err(error) if error::takes_no_write(&error) => Ok(Reply::Nil),
                    Err(error) if error::is_never_run(&error) => {
                        looks.were_refused();
                        Ok(Reply::Nil)
                    }
                    answers => answers,
                }
            }
        };
        self.look(answer, generation)
    }

    fn look(&self, answer: Answer, generation: Generation) -> Answer {
        if let Err(error) = &answer
            && error::ends_connection(error)
        {
            self.server.forget(generation);
        }
        answer
    }

    /// A call of `timeout` was not answered within `rest`. Returns the time until one like it is let in.
    fn late(
        self: &Arc<Self>,
        underway: &Underway<'_>,
        timeout: Duration,
        rest: Duration,
        way: &Way,
    ) -> Duration {
        let failure = self.meant(way);
        if self.gate.is_patient(rest) {
            self.leave_silent(way, underway.began);
            return self.failed(underway, failure, way);
        }
        let until_probe = self.gate.was_hasty(underway.ticket, timeout, failure);
        self.watch_for(underway.ticket);
        until_probe
    }

    /// What silence says, or a server that will not serve: nothing, where there has been another connection since.
    fn meant(&self, way: &Way) -> Failure {
        match way.generation() {
            0 => Failure::OfServer,
            own if self.server.is_latest(own) => Failure::OfServer,
            _ => Failure::Past,
        }
    }

    /// Returns the time until the server is asked again.
    fn failed(&self, underway: &Underway<'_>, failure: Failure, way: &Way) -> Duration {
        let verdict = self.gate.failed(underway.ticket, failure);
        if verdict.is_cut_off {
            self.give_up(way, underway.began);
        }
        verdict.until_probe
    }

    /// A link that is cut silently never breaks by itself: the next probe gets a new one. One that was made after this
    /// call `began` is kept: where greeting takes long, the next probe finds it ready.
    fn give_up(&self, way: &Way, began: Instant) {
        self.server.give_up(way.generation(), began, None);
    }

    /// Where a call ran out and nothing at all was heard meanwhile, the next one gets another link: calls may be rare, and
    /// each would cost the handle's timeout until the breaker opens. Who waits on this one goes on waiting.
    fn leave_silent(&self, way: &Way, began: Instant) {
        let reads = way.reads.load(Ordering::Relaxed);
        self.server.give_up(way.generation(), began, Some(reads));
    }

    /// Learns, for a caller who did not wait long enough, whether the server answers within the handle's timeout: by one
    /// PING at a time, for all of them.
    fn watch_for(self: &Arc<Self>, ticket: Ticket) {
        self.gate.owe(ticket);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if !self.is_watched.swap(true, Ordering::AcqRel) {
            let watch = Watch(Arc::clone(self));
            runtime.spawn(async move { watch.0.watch().await });
        }
    }

    async fn watch(&self) {
        let (began, way) = (Instant::now(), Way::default());
        let ping = Command::new("PING");
        let mut asked = pin!(async {
            match self.ask_on(&ping, &way).await {
                // The link's end says nothing of the server yet.
                Err(error) if way.generation() > 0 && error::ends_connection(&error) => {
                    self.ask_on(&ping, &way).await
                }
                answer => answer,
            }
        });
        let answer = match tokio::time::timeout(self.gate.patience(), asked.as_mut()).await {
            Ok(answer) => Some(answer),
            Err(_elapsed) => last_look(asked).await,
        };
        let is_away = match &answer {
            Some(Ok(_)) => false,
            Some(Err(error)) => matches!(error::meaning(error), Meaning::Away),
            None => true,
        };
        if answer.is_none() {
            self.leave_silent(&way, began);
        }
        if !is_away {
            self.gate.settle_answered();
        } else if self.gate.settle_failed().is_cut_off {
            self.give_up(&way, began);
        }
    }
}

/// Ends with the question, also where its runtime ends first.
struct Watch(Arc<Node>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.is_watched.store(false, Ordering::Release);
    }
}

/// Asks once more after the time is over: where this process is so busy that it woke late, the answer lies in the
/// socket already, and the server is not to blame. Costs no time where there is none.
async fn last_look<F: Future>(mut sent: Pin<&mut F>) -> Option<F::Output> {
    /// The runtime looks at its sockets, then the connection's task hands out what has come, then the answer is here.
    const TURNS: usize = 2 + TURNS_FOR_ALL;
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
        let polled = poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx))).await;
        if let Poll::Ready(answer) = polled {
            return Some(answer);
        }
    }
    None
}
