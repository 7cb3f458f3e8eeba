//! Where commands go: to one server, to the primary that sentinels name, or to the node that has the slot.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::PubSub;
use redis::{Cmd, RedisError, Value};

use super::address::Address;
use super::cluster::Cluster;
use super::error;
use super::meter::Meter;
use super::node::{Node, Origin, Refusal, Request};
use super::sentinel::Sentinels;
use super::slots::{Slot, slot_of};
use crate::core::{StoreError, StoreErrorKind};

pub(super) struct Link {
    topology: Topology,
    meter: Arc<Meter>,
}

enum Topology {
    One(Node),
    Many(Arc<Cluster>),
}

impl Link {
    /// Understands the address; nothing is sent.
    pub(super) fn new(url: &str) -> Result<Self, RedisError> {
        let meter = Arc::<Meter>::default();
        let one = |origin| Topology::One(Node::new(origin, Arc::clone(&meter)));
        let topology = match Address::parse(url)? {
            Address::Server(address) => one(Origin::Fixed(address)),
            Address::Sentinels(address) => one(Origin::Sentinels(Sentinels::new(address))),
            Address::Cluster(nodes) => {
                Topology::Many(Arc::new(Cluster::new(nodes, Arc::clone(&meter))))
            }
        };
        Ok(Self { topology, meter })
    }

    /// Sends one command within `timeout` to the node that has `slot` (any, without one).
    pub(super) async fn call(
        &self,
        command: &Cmd,
        slot: Option<Slot>,
        timeout: Duration,
        with_source: &(dyn Fn() -> Cmd + Send + Sync),
    ) -> Result<Value, StoreError> {
        let request = Request {
            command,
            with_source,
            asking: false,
        };
        match &self.topology {
            Topology::One(node) => {
                node.call(&request, timeout)
                    .await
                    .map_err(|refusal| match refusal {
                        // The URL says one server, but it is a node of a cluster.
                        Refusal::Elsewhere(error) => {
                            error::with_source(StoreErrorKind::Failed, error)
                        }
                        Refusal::Failed(error) => error,
                    })
            }
            Topology::Many(cluster) => Arc::clone(cluster).call(request, slot, timeout).await,
        }
    }

    /// Returns the slot of a key where that decides who gets the command.
    pub(super) fn slot_of(&self, key: &[u8]) -> Option<Slot> {
        self.is_cluster().then(|| slot_of(key))
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.topology, Topology::Many(_))
    }

    /// Returns the number of commands sent so far; those of the driver's greeting are not counted.
    pub(super) fn sent(&self) -> u64 {
        self.meter.commands()
    }

    /// Returns what was counted by all nodes of the handle.
    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Says whether calls are being refused, on a cluster: calls to one of its nodes.
    pub(super) fn is_open_circuit(&self) -> bool {
        match &self.topology {
            Topology::One(node) => node.is_open_circuit(),
            Topology::Many(cluster) => cluster.is_open_circuit(),
        }
    }

    /// Opens a connection that only listens; any node of a cluster hears what is published on another.
    pub(super) async fn listen(&self) -> Result<PubSub, RedisError> {
        match &self.topology {
            Topology::One(node) => node.listen().await,
            Topology::Many(cluster) => cluster.listen().await,
        }
    }

    /// Returns the number of the database, which a channel's name has to carry: publishing knows none.
    pub(super) fn database(&self) -> i64 {
        match &self.topology {
            Topology::One(node) => node.database(),
            Topology::Many(_) => 0,
        }
    }
}
