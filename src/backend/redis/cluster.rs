//! The nodes of a cluster: who has which slot, learned from the nodes themselves and from their redirections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redis::aio::PubSub;
use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::sync::watch;

use super::address::Endpoint;
use super::asking::first_answer;
use super::command::Command;
use super::error::{self, away};
use super::gate::{Failure, Gate};
use super::meter::Meter;
use super::node::{Node, Refusal, Request, Words};
use super::reply::Reply;
use super::server::{CONNECT_TIMEOUT, Origin};
use super::slots::{Range, SLOTS, Slot, parse_slots};
use crate::core::telemetry::{count, debug};
use crate::core::{StoreError, StoreErrorKind};

/// The map is asked for at most this often, however many calls find it wrong.
const REFRESH_EVERY: Duration = Duration::from_millis(200);
const MOST_REDIRECTIONS: usize = 8;
/// While a slot is on its way, keys of one step may lie on both nodes: asked again after this time.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

pub(super) struct Cluster {
    /// The nodes of the URL.
    seeds: Vec<Arc<Node>>,
    /// How to pass a node's door: all have the same.
    door: Endpoint,
    map: RwLock<Map>,
    /// Who may wait for a map that is not known yet.
    gate: Gate,
    refresh: Mutex<Refresh>,
    /// Told at the end of each refresh.
    refreshed: watch::Sender<()>,
    meter: Arc<Meter>,
}

/// The question for the map: asked by a task of its own, so that an impatient caller does not end it.
#[derive(Default)]
struct Refresh {
    is_running: bool,
    ended: Option<Instant>,
    /// Why the last one failed.
    why: Option<String>,
}

/// A refresh under way. It ends with its task, also where that is dropped with its runtime.
struct Refreshing {
    cluster: Arc<Cluster>,
    /// Who is asked last.
    suspect: Option<Arc<Node>>,
    failed: Option<String>,
}

impl Refreshing {
    async fn run(&mut self) {
        self.failed = match self.cluster.ask_for_map(self.suspect.as_ref()).await {
            Ok(()) => None,
            Err(error) => {
                debug!(error = %error, "no node tells who has which slot");
                Some(error.to_string())
            }
        };
    }
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        let cluster = &self.cluster;
        match self.failed {
            None => cluster.gate.settle_answered(),
            Some(_) => drop(cluster.gate.settle_failed()),
        }
        *cluster.refresh.lock() = Refresh {
            is_running: false,
            ended: Some(Instant::now()),
            why: self.failed.take(),
        };
        cluster.refreshed.send_replace(());
    }
}

struct Map {
    nodes: Vec<Arc<Node>>,
    /// Indices into `nodes`; `NOBODY` where no node is known.
    slots: Box<[u16]>,
}

const NOBODY: u16 = u16::MAX;

impl Cluster {
    /// `patience` is the handle's timeout.
    pub(super) fn new(
        door: Endpoint,
        seeds: Vec<Endpoint>,
        patience: Duration,
        meter: Arc<Meter>,
    ) -> Self {
        let node = |seed| Arc::new(Node::new(Origin::Fixed(seed), patience, Arc::clone(&meter)));
        let map = Map {
            nodes: Vec::new(),
            slots: vec![NOBODY; SLOTS].into(),
        };
        Self {
            seeds: seeds.into_iter().map(node).collect(),
            door,
            map: RwLock::new(map),
            gate: Gate::new(patience),
            refresh: Mutex::default(),
            refreshed: watch::Sender::default(),
            meter,
        }
    }

    /// Sends a command within `time` to the node that has the slot, and follows redirections: they say that nothing was
    /// done.
    pub(super) async fn call(
        self: Arc<Self>,
        mut request: Request<'_>,
        slot: Option<Slot>,
        time: Duration,
    ) -> Result<Reply, StoreError> {
        let began = Instant::now();
        let mut node = self.node_of(slot, request.timeout, time).await?;
        let mut redirections = 0;
        let mut nothing_done = None;
        loop {
            let rest = time.saturating_sub(began.elapsed());
            if redirections > MOST_REDIRECTIONS || rest.is_zero() {
                // Not sent once more just to run out: that nothing was done is known so far.
                let why = nothing_done.unwrap_or_else(|| away("the map came too late"));
                return Err(error::with_source(StoreErrorKind::Unavailable, why));
            }
            let error = match node.call(&request, rest).await {
                Ok(answer) => return Ok(answer),
                Err(Refusal::Elsewhere(error)) => error,
                Err(Refusal::Failed(error)) => {
                    if error.is_unknown() {
                        // The node may be gone for good, and another have its slots.
                        self.refresh_soon(Some(&node));
                    }
                    return Err(error);
                }
            };
            match self.redirected(&node, &error) {
                // A key that has not arrived yet would look as if there were none. A script is told to try again.
                Some((_, true)) if matches!(request.words, Words::Look(..)) => {
                    return Ok(Reply::Nil);
                }
                Some((other, asking)) => {
                    (node, request.asking) = (other, asking);
                    redirections += 1;
                }
                None => tokio::time::sleep(TRY_AGAIN_AFTER.min(rest)).await,
            }
            nothing_done = Some(error);
        }
    }

    /// Says whether some calls are refused, to one of the nodes or to all.
    pub(super) fn refuses_some(&self) -> bool {
        let map = self.map.read();
        self.gate.is_shut() || map.nodes.iter().any(|node| node.refuses_some())
    }

    /// Says whether every call is refused.
    pub(super) fn is_shut(&self) -> bool {
        let map = self.map.read();
        if map.nodes.is_empty() {
            return self.gate.is_shut();
        }
        map.nodes.iter().all(|node| node.is_shut())
    }

    /// Opens a connection that only listens, to any node of the cluster.
    pub(super) async fn listen(self: &Arc<Self>) -> Result<(PubSub, Place), RedisError> {
        let mut refreshed = self.refreshed.subscribe();
        // A node of the URL may have left the cluster.
        if !self.is_mapped() && self.refresh_soon(None) {
            let _held_here = refreshed.changed().await;
        }
        let nodes = self.to_ask(None).into_iter();
        let (connection, node) = first_answer(nodes.map(|node| async move {
            let connection = node.listen().await?;
            Ok((connection, node))
        }))
        .await?;
        let cluster = Arc::clone(self);
        let place = Place {
            cluster,
            node,
            refreshed,
        };
        Ok((connection, place))
    }

    /// Follows MOVED (remembered, and a sign that more has moved) and ASK (for this one call). `None`: try again.
    fn redirected(
        self: &Arc<Self>,
        told_by: &Node,
        error: &RedisError,
    ) -> Option<(Arc<Node>, bool)> {
        let (place, slot) = error.redirect_node()?;
        let (host, port) = place.rsplit_once(':')?;
        let host = or_own(host, told_by);
        let port = port.parse().ok()?;
        let asking = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
        let mut map = self.map.write();
        let index = self.place(&mut map.nodes, host, port);
        if !asking && usize::from(slot) < SLOTS {
            map.slots[usize::from(slot)] = index as u16;
        }
        let node = Arc::clone(&map.nodes[index]);
        drop(map);
        if !asking {
            count!("keep_redis_moved_total", 1);
            self.refresh_soon(None);
        }
        Some((node, asking))
    }

    /// Returns the node that has the slot. Where no map is known, it is waited for within `rest`, what is left of the
    /// caller's `timeout`, behind a gate of its own.
    async fn node_of(
        self: &Arc<Self>,
        slot: Option<Slot>,
        timeout: Duration,
        rest: Duration,
    ) -> Result<Arc<Node>, StoreError> {
        if let Some(node) = self.known(slot) {
            return Ok(node);
        }
        if slot.is_some_and(|slot| usize::from(slot) >= SLOTS) {
            let why = "a cluster has no such slot";
            return Err(StoreError::with_source(StoreErrorKind::Failed, why));
        }
        let refused = |until_probe| {
            let refused = StoreError::new(StoreErrorKind::Unavailable);
            refused.retry_after(until_probe)
        };
        let ticket = self.gate.admit(timeout).map_err(|until_probe| {
            self.meter.refused();
            refused(until_probe)
        })?;
        let began = Instant::now();
        let mut until_probe = Duration::ZERO;
        // Whoever reports for this call, there is somebody: a refresh does so at its end.
        let mut refreshed = self.refreshed.subscribe();
        self.gate.owe(ticket);
        if self.refresh_soon(None) {
            let ended = tokio::time::timeout(rest, refreshed.changed()).await;
            if ended.is_err() {
                until_probe = self.gate.was_hasty(ticket, timeout, Failure::OfServer);
            }
        } else if !self.is_mapped() {
            until_probe = self.gate.settle_failed().until_probe;
        }
        if let Some(node) = self.known(slot) {
            return Ok(node);
        }
        let kind = StoreErrorKind::Unavailable;
        self.meter.ended(began.elapsed(), Some(kind));
        let why = self.refresh.lock().why.clone();
        let why = why.unwrap_or_else(|| "no node is known that has the slot".to_owned());
        Err(StoreError::with_source(kind, why).retry_after(until_probe))
    }

    /// Returns the first slot behind `slot` that is the lowest of its node.
    pub(super) fn next_node(&self, slot: Slot) -> Option<Slot> {
        let map = self.map.read();
        let mut met = vec![false; map.nodes.len()];
        let lowest = map.slots.iter().enumerate().filter_map(|(slot, node)| {
            let met = met.get_mut(usize::from(*node))?;
            (!std::mem::replace(met, true)).then_some(slot)
        });
        let behind = lowest
            .into_iter()
            .find(|lowest| *lowest > usize::from(slot));
        behind.and_then(|slot| Slot::try_from(slot).ok())
    }

    fn is_mapped(&self) -> bool {
        !self.map.read().nodes.is_empty()
    }

    fn known(&self, slot: Option<Slot>) -> Option<Arc<Node>> {
        let map = self.map.read();
        let Some(slot) = slot else {
            // Any node will do, one that answers rather than one that does not.
            let answering = map.nodes.iter().find(|node| !node.is_shut());
            return answering.or(map.nodes.first()).cloned();
        };
        let index = *map.slots.get(usize::from(slot))?;
        map.nodes.get(usize::from(index)).cloned()
    }

    /// Asks for the map on a task of its own, unless that was done just now. Says whether such a task is under way. A
    /// `suspect` is asked last: it may be cut off from the others, and tell the map that was.
    fn refresh_soon(self: &Arc<Self>, suspect: Option<&Arc<Node>>) -> bool {
        let mut refresh = self.refresh.lock();
        if refresh.is_running {
            return true;
        }
        if refresh.ended.is_some_and(|at| at.elapsed() < REFRESH_EVERY) {
            return false;
        }
        refresh.is_running = true;
        drop(refresh);
        let mut refreshing = Refreshing {
            cluster: Arc::clone(self),
            suspect: suspect.cloned(),
            failed: Some("the question for the map was dropped".to_owned()),
        };
        tokio::spawn(async move { refreshing.run().await });
        true
    }

    async fn ask_for_map(&self, suspect: Option<&Arc<Node>>) -> Result<(), RedisError> {
        let nodes = self.to_ask(suspect).into_iter();
        let (node, ranges) = first_answer(nodes.map(|node| async move {
            let question = Command::new("CLUSTER").arg("SLOTS");
            let answer = tokio::time::timeout(CONNECT_TIMEOUT, node.ask(&question)).await;
            let late = |_elapsed| away("a node did not tell the map in time");
            let ranges = parse_slots(answer.map_err(late)??)?;
            if ranges.is_empty() {
                return Err(away("a node knows of no slots"));
            }
            Ok((node, ranges))
        }))
        .await?;
        self.learn(&node, &ranges);
        Ok(())
    }

    /// Replaces the map. Nodes that stay keep their connections and breakers.
    fn learn(&self, told_by: &Node, ranges: &[Range]) {
        let mut map = self.map.write();
        let mut nodes = Vec::new();
        let mut slots = vec![NOBODY; SLOTS];
        for range in ranges {
            let host = or_own(&range.host, told_by);
            let known = map.nodes.iter().find(|node| node.is_at(host, range.port));
            if let Some(known) = known
                && !nodes
                    .iter()
                    .any(|node: &Arc<Node>| Arc::ptr_eq(node, known))
            {
                nodes.push(Arc::clone(known));
            }
            let index = self.place(&mut nodes, host, range.port) as u16;
            slots[usize::from(range.first)..=usize::from(range.last)].fill(index);
        }
        *map = Map {
            nodes,
            slots: slots.into(),
        };
    }

    /// Returns the index of the node at that place, made where it is not known.
    fn place(&self, nodes: &mut Vec<Arc<Node>>, host: &str, port: u16) -> usize {
        let mut known = nodes.iter();
        if let Some(index) = known.position(|node| node.is_at(host, port)) {
            return index;
        }
        let seed = self.seeds.iter().find(|node| node.is_at(host, port));
        nodes.push(seed.cloned().unwrap_or_else(|| {
            let origin = Origin::Fixed(self.door.at(host.to_owned(), port));
            let meter = Arc::clone(&self.meter);
            Arc::new(Node::new(origin, self.gate.patience(), meter))
        }));
        nodes.len() - 1
    }

    /// The nodes of the map, then those of the URL; behind them those that do not answer, and the suspect.
    fn to_ask(&self, suspect: Option<&Arc<Node>>) -> Vec<Arc<Node>> {
        let mut nodes = self.map.read().nodes.clone();
        for seed in &self.seeds {
            if !nodes.iter().any(|node| Arc::ptr_eq(node, seed)) {
                nodes.push(Arc::clone(seed));
            }
        }
        let is_suspect =
            |node: &Arc<Node>| suspect.is_some_and(|suspect| Arc::ptr_eq(node, suspect));
        nodes.sort_by_cached_key(|node| (is_suspect(node), node.is_shut()));
        nodes
    }
}

/// Where somebody listens.
pub(super) struct Place {
    cluster: Arc<Cluster>,
    node: Arc<Node>,
    /// Told at the end of each refresh.
    refreshed: watch::Receiver<()>,
}

impl Place {
    /// Waits until the node serves no slots of the cluster any more. A node that has left it goes on answering, and hears
    /// nothing of what is published.
    pub(super) async fn left(&mut self) {
        loop {
            let _held_here = self.refreshed.changed().await;
            let map = self.cluster.map.read();
            let is_here = |node: &Arc<Node>| Arc::ptr_eq(node, &self.node);
            if !map.nodes.is_empty() && !map.nodes.iter().any(is_here) {
                return;
            }
        }
    }

    /// Asks the other nodes whether this one is still among them.
    pub(super) fn ask(&self) {
        self.cluster.refresh_soon(Some(&self.node));
    }
}

/// A node whose host the teller does not know, or does not tell, is on the teller's own.
fn or_own<'a>(host: &'a str, told_by: &'a Node) -> &'a str {
    match host {
        "" | "?" => told_by.host(),
        host => host,
    }
}
