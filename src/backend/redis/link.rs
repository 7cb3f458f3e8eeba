//! Where commands go: to one server, to the primary that sentinels name, or to the node that has the slot.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisError;
use redis::aio::PubSub;

use super::address::Address;
use super::cluster::{Cluster, Place};
use super::error;
use super::meter::Meter;
use super::node::{Node, Refusal, Request, Words};
use super::reply::Reply;
use super::sentinel::Sentinels;
use super::server::Origin;
use super::slots::{Slot, slot_of};
use super::tls::Tls;
use crate::core::{StoreError, StoreErrorKind};

pub(super) struct Link {
    topology: Topology,
    meter: Arc<Meter>,
}

enum Topology {
    One(Arc<Node>),
    Many(Arc<Cluster>),
}

impl Link {
    /// Understands the address; nothing is sent. `tls` is how a URL that asks for it wants servers to be greeted,
    /// `patience` is the handle's timeout.
    pub(super) fn new(
        url: &str,
        tls: Option<&Tls>,
        patience: Duration,
    ) -> Result<Self, RedisError> {
        let meter = Arc::<Meter>::default();
        let one = |origin| Topology::One(Arc::new(Node::new(origin, patience, Arc::clone(&meter))));
        let topology = match Address::parse(url, tls)? {
            Address::Server(address) => one(Origin::Fixed(address)),
            Address::Sentinels(address) => one(Origin::Sentinels(Sentinels::new(address))),
            Address::Cluster { door, nodes } => {
                let cluster = Cluster::new(door, nodes, patience, Arc::clone(&meter));
                Topology::Many(Arc::new(cluster))
            }
        };
        Ok(Self { topology, meter })
    }

    /// Sends `words` within `rest`, what is left of the caller's `timeout`, to the node that has `slot` (any, without one).
    pub(super) async fn call(
        &self,
        words: Words<'_>,
        slot: Option<Slot>,
        timeout: Duration,
        rest: Duration,
    ) -> Result<Reply, StoreError> {
        let request = Request {
            words,
            timeout,
            asking: false,
        };
        match &self.topology {
            Topology::One(node) => {
                node.call(&request, rest)
                    .await
                    .map_err(|refusal| match refusal {
                        // The URL says one server, but it is a node of a cluster.
                        Refusal::Elsewhere(error) => {
                            error::with_source(StoreErrorKind::Failed, error)
                        }
                        Refusal::Failed(error) => error,
                    })
            }
            Topology::Many(cluster) => Arc::clone(cluster).call(request, slot, rest).await,
        }
    }

    /// Returns the slot of a key where that decides who gets the command.
    pub(super) fn slot_of(&self, key: &[u8]) -> Option<Slot> {
        self.is_cluster().then(|| slot_of(key))
    }

    /// Returns the lowest slot of the next node of a cluster.
    pub(super) fn next_node(&self, slot: Slot) -> Option<Slot> {
        match &self.topology {
            Topology::One(_) => None,
            Topology::Many(cluster) => cluster.next_node(slot),
        }
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

    /// Says whether some calls are being refused; on a cluster: of one of its nodes.
    pub(super) fn refuses_some(&self) -> bool {
        match &self.topology {
            Topology::One(node) => node.refuses_some(),
            Topology::Many(cluster) => cluster.refuses_some(),
        }
    }

    /// Says whether every call is being refused; on a cluster: of all its nodes.
    pub(super) fn is_shut(&self) -> bool {
        match &self.topology {
            Topology::One(node) => node.is_shut(),
            Topology::Many(cluster) => cluster.is_shut(),
        }
    }

    /// Opens a connection that only listens; any node of a cluster hears what is published on another, as long as it is
    /// one.
    pub(super) async fn listen(&self) -> Result<(PubSub, Option<Place>), RedisError> {
        Ok(match &self.topology {
            Topology::One(node) => (node.listen().await?, None),
            Topology::Many(cluster) => {
                let (connection, place) = cluster.listen().await?;
                (connection, Some(place))
            }
        })
    }

    /// Returns the number of the database, which a channel's name has to carry: publishing knows none.
    pub(super) fn database(&self) -> i64 {
        match &self.topology {
            Topology::One(node) => node.database(),
            Topology::Many(_) => 0,
        }
    }
}
