//! The nodes of a cluster: who has which slot, learned from the nodes themselves and from their redirections.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use redis::aio::PubSub;
use redis::{Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, ServerErrorKind, Value};

use super::address::unusable;
use super::error;
use super::meter::Meter;
use super::node::{Node, Origin, Refusal, Request};
use super::slots::{Range, SLOTS, Slot, parse_slots};
use crate::core::telemetry::{count, debug};
use crate::core::{StoreError, StoreErrorKind};

/// The map is asked for at most this often, however many calls find it wrong.
const REFRESH_EVERY: Duration = Duration::from_millis(200);
/// The longest that one node is waited for when it is asked for the map.
const MAP_WITHIN: Duration = Duration::from_millis(500);
const MOST_REDIRECTIONS: usize = 8;
/// While a slot is on its way, keys of one step may lie on both nodes: asked again after this time.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

pub(super) struct Cluster {
    /// The nodes of the URL.
    seeds: Vec<ConnectionInfo>,
    map: RwLock<Map>,
    refreshing: tokio::sync::Mutex<()>,
    /// A refresh is under way or was, at this moment.
    refreshed: Mutex<Option<Instant>>,
    is_refreshing: AtomicBool,
    meter: Arc<Meter>,
}

struct Map {
    nodes: Vec<Arc<Node>>,
    /// Indices into `nodes`; `NOBODY` where no node is known.
    slots: Box<[u16]>,
}

const NOBODY: u16 = u16::MAX;

impl Cluster {
    pub(super) fn new(seeds: Vec<ConnectionInfo>, meter: Arc<Meter>) -> Self {
        let map = Map {
            nodes: Vec::new(),
            slots: vec![NOBODY; SLOTS].into(),
        };
        Self {
            seeds,
            map: RwLock::new(map),
            refreshing: tokio::sync::Mutex::default(),
            refreshed: Mutex::default(),
            is_refreshing: AtomicBool::new(false),
            meter,
        }
    }

    /// Sends a command to the node that has the slot, and follows redirections: they say that nothing was done.
    pub(super) async fn call(
        self: Arc<Self>,
        mut request: Request<'_>,
        slot: Option<Slot>,
        timeout: Duration,
    ) -> Result<Value, StoreError> {
        let began = Instant::now();
        let mut node = self.node_of(slot, timeout).await?;
        let mut redirections = 0;
        loop {
            let rest = timeout.saturating_sub(began.elapsed());
            let error = match node.call(&request, rest).await {
                Ok(answer) => return Ok(answer),
                Err(Refusal::Elsewhere(error)) => error,
                Err(Refusal::Failed(error)) => {
                    if error.is_unknown() {
                        // The node may be gone for good, and another have its slots.
                        self.refresh_soon();
                    }
                    return Err(error);
                }
            };
            if redirections == MOST_REDIRECTIONS || rest.is_zero() {
                return Err(error::with_source(StoreErrorKind::Unavailable, error));
            }
            match self.redirected(&error) {
                Some((other, asking)) => {
                    (node, request.asking) = (other, asking);
                    redirections += 1;
                }
                None => tokio::time::sleep(TRY_AGAIN_AFTER.min(rest)).await,
            }
        }
    }

    /// Says whether calls to one of the nodes are being refused.
    pub(super) fn is_open_circuit(&self) -> bool {
        let map = self.map.read();
        map.nodes.iter().any(|node| node.is_open_circuit())
    }

    pub(super) async fn listen(&self) -> Result<PubSub, RedisError> {
        let mut last = unusable("no node is known");
        for node in self.to_ask() {
            match node.listen().await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// Follows MOVED (remembered, and a sign that more has moved) and ASK (for this one call). `None`: try again.
    fn redirected(self: &Arc<Self>, error: &RedisError) -> Option<(Arc<Node>, bool)> {
        let (place, slot) = error.redirect_node()?;
        let (host, port) = place.rsplit_once(':')?;
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
            self.refresh_soon();
        }
        Some((node, asking))
    }

    async fn node_of(
        &self,
        slot: Option<Slot>,
        timeout: Duration,
    ) -> Result<Arc<Node>, StoreError> {
        if let Some(node) = self.known(slot) {
            return Ok(node);
        }
        let refreshed = tokio::time::timeout(timeout, self.refresh()).await;
        let away = || StoreError::new(StoreErrorKind::Unavailable);
        match refreshed {
            Ok(Ok(())) => self.known(slot).ok_or_else(away),
            Ok(Err(error)) => Err(error::with_source(StoreErrorKind::Unavailable, error)),
            Err(_elapsed) => Err(away()),
        }
    }

    fn known(&self, slot: Option<Slot>) -> Option<Arc<Node>> {
        let map = self.map.read();
        let index = match slot {
            Some(slot) => map.slots[usize::from(slot)],
            // Any node that has slots will do.
            None => *map.slots.iter().find(|index| **index != NOBODY)?,
        };
        map.nodes.get(usize::from(index)).cloned()
    }

    /// Asks for the map in the background, unless that was done just now.
    fn refresh_soon(self: &Arc<Self>) {
        if self.asked_just_now() || self.is_refreshing.swap(true, Ordering::AcqRel) {
            return;
        }
        let cluster = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(_error) = cluster.refresh().await {
                debug!(error = %_error, "no node tells who has which slot");
            }
            cluster.is_refreshing.store(false, Ordering::Release);
        });
    }

    fn asked_just_now(&self) -> bool {
        let refreshed = *self.refreshed.lock();
        refreshed.is_some_and(|at| at.elapsed() < REFRESH_EVERY)
    }

    /// Asks one node after the other for the map; callers who come meanwhile share the answer.
    async fn refresh(&self) -> Result<(), RedisError> {
        let _turn = self.refreshing.lock().await;
        if self.asked_just_now() {
            return Ok(());
        }
        let mut question = Cmd::new();
        question.arg(b"CLUSTER").arg(b"SLOTS");
        let mut last = unusable("no node is known");
        for node in self.to_ask() {
            let answer = tokio::time::timeout(MAP_WITHIN, node.ask(&question)).await;
            match answer.map(|answer| answer.and_then(parse_slots)) {
                Ok(Ok(ranges)) if !ranges.is_empty() => {
                    self.learn(&node, &ranges);
                    *self.refreshed.lock() = Some(Instant::now());
                    return Ok(());
                }
                Ok(Ok(_)) => last = unusable("a node knows of no slots"),
                Ok(Err(error)) => last = error,
                Err(_elapsed) => last = unusable("a node did not tell the map in time"),
            }
        }
        *self.refreshed.lock() = Some(Instant::now());
        Err(last)
    }

    /// Replaces the map. Nodes that stay keep their connections and breakers.
    fn learn(&self, told_by: &Node, ranges: &[Range]) {
        let mut map = self.map.write();
        let mut nodes = Vec::new();
        let mut slots = vec![NOBODY; SLOTS];
        for range in ranges {
            let own;
            let host = if range.host.is_empty() {
                own = told_by.host();
                own.as_str()
            } else {
                &range.host
            };
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
        if let Some(index) = nodes.iter().position(|node| node.is_at(host, port)) {
            return index;
        }
        nodes.push(self.node(ConnectionAddr::Tcp(host.to_owned(), port)));
        nodes.len() - 1
    }

    fn node(&self, address: ConnectionAddr) -> Arc<Node> {
        // All nodes have the same door.
        let address = self.seeds[0].clone().set_addr(address);
        Arc::new(Node::new(Origin::Fixed(address), Arc::clone(&self.meter)))
    }

    /// The nodes of the map, those that answer first, then those of the URL.
    fn to_ask(&self) -> VecDeque<Arc<Node>> {
        let mut nodes = VecDeque::new();
        for node in &self.map.read().nodes {
            if node.is_open_circuit() {
                nodes.push_back(Arc::clone(node));
            } else {
                nodes.push_front(Arc::clone(node));
            }
        }
        for seed in &self.seeds {
            if let ConnectionAddr::Tcp(host, port) = seed.addr()
                && !nodes.iter().any(|node| node.is_at(host, *port))
            {
                nodes.push_back(self.node(seed.addr().clone()));
            }
        }
        nodes
    }
}
