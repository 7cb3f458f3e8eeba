//! A Redis Cluster of one's own: nodes on free ports, slots dealt out evenly, replicas on demand.

use std::process::Command;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use tower_keep::backend::redis::RedisStore;
use tower_keep::core::ManualClock;

use super::authority::Authority;
use super::launch::{Port, find};
use super::redis::{RedisServer, fresh_prefix};

const SLOTS: u16 = 16_384;

/// Some primaries, then their replicas in the same order; all are killed on drop.
#[derive(Debug)]
pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
    primaries: usize,
    scheme: &'static str,
    _bus_ports: Vec<Port>,
}

impl RedisCluster {
    /// Starts a cluster, with one replica for each primary if so wanted, and waits until all nodes serve.
    pub async fn start(primaries: usize, with_replicas: bool) -> Self {
        let options = ["--save", ""].map(str::to_owned);
        Self::start_with(primaries, with_replicas, &options, "redis+cluster").await
    }

    /// Starts a cluster whose nodes speak TLS only, with clients and with each other.
    pub async fn start_tls(primaries: usize, authority: &Authority) -> Self {
        let options = authority.options(&["127.0.0.1"], &["--tls-cluster", "yes"]);
        Self::start_with(primaries, false, &options, "rediss+cluster").await
    }

    async fn start_with(
        primaries: usize,
        with_replicas: bool,
        common: &[String],
        scheme: &'static str,
    ) -> Self {
        let count = if with_replicas {
            2 * primaries
        } else {
            primaries
        };
        let bus_ports: Vec<Port> = (0..count).map(|_| Port::claim()).collect();
        let mut nodes = Vec::new();
        for bus_port in &bus_ports {
            let number = bus_port.number.to_string();
            let options = [
                ["--cluster-enabled", "yes"],
                ["--cluster-config-file", "nodes.conf"],
                ["--cluster-node-timeout", "600"],
                ["--cluster-replica-validity-factor", "0"],
                ["--repl-diskless-sync-delay", "0"],
                ["--cluster-port", &number],
            ];
            let known = options.len() - usize::from(is_redis_6());
            let options = options[..known].iter().flatten().copied();
            let common = common.iter().map(String::as_str);
            let options: Vec<&str> = common.chain(options).collect();
            nodes.push(RedisServer::start_with(&options).await);
        }
        let cluster = Self {
            nodes,
            primaries,
            scheme,
            _bus_ports: bus_ports,
        };
        cluster.join().await;
        cluster
    }

    async fn join(&self) {
        let per_node = SLOTS / self.primaries as u16;
        let first = &self.nodes[0];
        for (index, node) in self.nodes.iter().enumerate() {
            let mut raw = node.raw().await;
            cluster(&mut raw, &["SET-CONFIG-EPOCH", &(index + 1).to_string()]).await;
            if index < self.primaries {
                let from = index as u16 * per_node;
                let to = if index + 1 == self.primaries {
                    SLOTS - 1
                } else {
                    from + per_node - 1
                };
                // Redis 6.2 does not know ranges.
                let slots: Vec<String> = (from..=to).map(|slot| slot.to_string()).collect();
                let slots = slots.iter().map(String::as_str);
                let words: Vec<&str> = ["ADDSLOTS"].into_iter().chain(slots).collect();
                cluster(&mut raw, &words).await;
            }
            let bus = self._bus_ports[0].number.to_string();
            let port = first.address().port().to_string();
            let words = ["MEET", "127.0.0.1", &port, &bus];
            let known = words.len() - usize::from(is_redis_6());
            cluster(&mut raw, &words[..known]).await;
        }
        self.until("every node serves", "cluster_state:ok").await;
        let all = format!("cluster_known_nodes:{}\r", self.nodes.len());
        self.until("every node knows the others", &all).await;
        for (index, node) in self.nodes.iter().enumerate().skip(self.primaries) {
            let primary = self.id(index - self.primaries).await;
            cluster(&mut node.raw().await, &["REPLICATE", &primary]).await;
            let started = Instant::now();
            while !info(&mut node.raw().await, "replication")
                .await
                .contains("master_link_status:up")
            {
                assert!(started.elapsed() < Duration::from_secs(30), "a replica");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    /// The URL that names all nodes.
    pub fn url(&self) -> String {
        let places: Vec<String> = self
            .nodes
            .iter()
            .map(|node| node.address().to_string())
            .collect();
        format!("{}://{}", self.scheme, places.join(","))
    }

    /// Opens a handle with a fresh prefix and this clock.
    pub async fn store(&self, clock: &ManualClock) -> RedisStore {
        let builder = RedisStore::builder(&self.url()).prefix(&fresh_prefix());
        // A node that comes into view has to be greeted first, on a machine that may be busy.
        let builder = builder.timeout(Duration::from_secs(2));
        builder.clock(clock.clone()).open().await.unwrap()
    }

    /// Changes a setting of every node.
    pub async fn set(&self, setting: &str, value: &str) {
        for node in &self.nodes {
            let command = redis::cmd("CONFIG")
                .arg(&["SET", setting, value])
                .to_owned();
            let _: () = command.query_async(&mut node.raw().await).await.unwrap();
        }
    }

    /// The slot of a key, and the primary that has it as the slots were dealt out.
    pub async fn home(&self, key: &str) -> (u16, usize) {
        let command = redis::cmd("CLUSTER").arg(&["KEYSLOT", key]).to_owned();
        let slot: u16 = command
            .query_async(&mut self.nodes[0].raw().await)
            .await
            .unwrap();
        let per_node = SLOTS / self.primaries as u16;
        (slot, usize::from(slot / per_node).min(self.primaries - 1))
    }

    /// Begins to move a slot: of its keys, only this one has arrived.
    pub async fn half_move_slot(&self, slot: u16, from: usize, to: usize, key: &str) {
        let (source, target) = (self.id(from).await, self.id(to).await);
        let slot = slot.to_string();
        let (mut raw, mut other) = (self.nodes[from].raw().await, self.nodes[to].raw().await);
        cluster(&mut other, &["SETSLOT", &slot, "IMPORTING", &source]).await;
        cluster(&mut raw, &["SETSLOT", &slot, "MIGRATING", &target]).await;
        let port = self.nodes[to].address().port().to_string();
        let moving = redis::cmd("MIGRATE")
            .arg(&["127.0.0.1", &port, key, "0", "5000"])
            .to_owned();
        let _: String = moving.query_async(&mut raw).await.unwrap();
    }

    /// The one key of the whole cluster that is like this.
    pub async fn key_like(&self, pattern: &str) -> String {
        let mut found = Vec::new();
        for node in &self.nodes[..self.primaries] {
            let ask = redis::cmd("KEYS").arg(pattern).to_owned();
            let keys: Vec<String> = ask.query_async(&mut node.raw().await).await.unwrap();
            found.extend(keys);
        }
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    /// The number of keys on each primary.
    pub async fn sizes(&self) -> Vec<u64> {
        let mut sizes = Vec::new();
        for node in &self.nodes[..self.primaries] {
            let mut raw = node.raw().await;
            sizes.push(
                redis::cmd("DBSIZE")
                    .query_async::<u64>(&mut raw)
                    .await
                    .unwrap(),
            );
        }
        sizes
    }

    /// Moves a slot with all its keys, some keys at a time, while clients go on.
    pub async fn move_slot(&self, slot: u16, from: usize, to: usize) {
        let (source, target) = (self.id(from).await, self.id(to).await);
        let slot = slot.to_string();
        let (mut raw, mut other) = (self.nodes[from].raw().await, self.nodes[to].raw().await);
        cluster(&mut other, &["SETSLOT", &slot, "IMPORTING", &source]).await;
        cluster(&mut raw, &["SETSLOT", &slot, "MIGRATING", &target]).await;
        let port = self.nodes[to].address().port().to_string();
        loop {
            let keys: Vec<Vec<u8>> = redis::cmd("CLUSTER")
                .arg(&["GETKEYSINSLOT", &slot, "3"])
                .query_async(&mut raw)
                .await
                .unwrap();
            if keys.is_empty() {
                break;
            }
            let mut moving = redis::cmd("MIGRATE");
            moving
                .arg(&["127.0.0.1", &port, "", "0", "5000", "KEYS"])
                .arg(keys);
            let _: String = moving.query_async(&mut raw).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for node in [to, from] {
            let mut raw = self.nodes[node].raw().await;
            cluster(&mut raw, &["SETSLOT", &slot, "NODE", &target]).await;
        }
    }

    /// Takes a node out of the cluster, without keys, and deals its slots to `heir`. It goes on running.
    pub async fn remove(&self, index: usize, heir: usize) {
        let gone = self.id(index).await;
        let others = || (0..self.primaries).filter(|other| *other != index);
        for other in others() {
            cluster(&mut self.nodes[other].raw().await, &["FORGET", &gone]).await;
        }
        cluster(&mut self.nodes[index].raw().await, &["RESET", "SOFT"]).await;
        let per_node = usize::from(SLOTS) / self.primaries;
        let from = index * per_node;
        let to = if index + 1 == self.primaries {
            usize::from(SLOTS)
        } else {
            from + per_node
        };
        let slots: Vec<String> = (from..to).map(|slot| slot.to_string()).collect();
        let slots = slots.iter().map(String::as_str);
        let words: Vec<&str> = ["ADDSLOTS"].into_iter().chain(slots).collect();
        cluster(&mut self.nodes[heir].raw().await, &words).await;
        let started = Instant::now();
        for other in others() {
            let mut raw = self.nodes[other].raw().await;
            while !cluster(&mut raw, &["INFO"])
                .await
                .contains("cluster_state:ok")
            {
                assert!(
                    started.elapsed() < Duration::from_secs(30),
                    "the rest serves"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }

    async fn id(&self, index: usize) -> String {
        cluster(&mut self.nodes[index].raw().await, &["MYID"]).await
    }

    async fn until(&self, what: &str, line: &str) {
        let started = Instant::now();
        for node in &self.nodes {
            let mut raw = node.raw().await;
            while !cluster(&mut raw, &["INFO"]).await.contains(line) {
                assert!(started.elapsed() < Duration::from_secs(30), "{what}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

/// Whether the tests run on Redis 6.2, whose nodes talk to each other on their own port and 10 000 more, and nowhere else.
pub fn is_redis_6() -> bool {
    let asked = Command::new(find("redis-server")).arg("--version").output();
    let told = String::from_utf8(asked.unwrap().stdout).unwrap();
    told.contains(" v=6.")
}

async fn cluster(raw: &mut MultiplexedConnection, arguments: &[&str]) -> String {
    let command = redis::cmd("CLUSTER").arg(arguments).to_owned();
    command.query_async(raw).await.unwrap()
}

pub async fn info(raw: &mut MultiplexedConnection, section: &str) -> String {
    let command = redis::cmd("INFO").arg(section).to_owned();
    command.query_async(raw).await.unwrap()
}
