//! Where the handle's URL leads: one server, a set of sentinels that know it, or the nodes of a cluster.

use std::borrow::Cow;

use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError};

const SENTINEL_PORT: u16 = 26379;
const SERVER_PORT: u16 = 6379;

/// An understood URL.
#[derive(Debug)]
pub(super) enum Address {
    Server(ConnectionInfo),
    Sentinels(SentinelsAddress),
    /// Nodes to ask for the others, and how to pass the door of each.
    Cluster {
        door: ConnectionInfo,
        nodes: Vec<ConnectionInfo>,
    },
}

/// Sentinels, the name of the primary they watch over, and how to pass that one's door.
#[derive(Debug)]
pub(super) struct SentinelsAddress {
    pub(super) sentinels: Vec<ConnectionInfo>,
    pub(super) name: String,
    /// Its address is a placeholder until a sentinel is asked.
    pub(super) server: ConnectionInfo,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Self, RedisError> {
        let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
        match scheme {
            "redis+cluster" => parse_cluster(rest),
            "redis+sentinel" => parse_sentinels(rest),
            _ => one_server(url).map(Self::Server),
        }
    }
}

/// `[user:password@]host:port,host:port…[/]`; a cluster has one database.
fn parse_cluster(rest: &str) -> Result<Address, RedisError> {
    let (door, hosts, path) = split(rest);
    if !matches!(path, "" | "/" | "/0") {
        return Err(unusable("a cluster has no databases"));
    }
    let nodes = hosts
        .split(',')
        .map(|host| one_server(&format!("redis://{door}{}/", with_port(host, SERVER_PORT))))
        .collect::<Result<Vec<_>, _>>()?;
    let door = nodes.first().cloned();
    let door = door.ok_or_else(|| unusable("a cluster URL names a node"))?;
    Ok(Address::Cluster { door, nodes })
}

/// `[user:password@]host:port,host:port…/name[/db][?sentinel_username=…&sentinel_password=…]`.
fn parse_sentinels(rest: &str) -> Result<Address, RedisError> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (door, hosts, path) = split(rest);
    let mut path = path.trim_start_matches('/').splitn(2, '/');
    let (name, database) = (
        path.next().unwrap_or_default(),
        path.next().unwrap_or_default(),
    );
    if name.is_empty() {
        return Err(unusable(
            "a sentinel URL ends in /NAME, the primary's name there",
        ));
    }
    let (mut username, mut password) = (None, None);
    for (option, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*option {
            "sentinel_username" => username = Some(value),
            "sentinel_password" => password = Some(value),
            _ => return Err(unusable("the sentinel URL has an unknown option")),
        }
    }
    let sentinels = hosts
        .split(',')
        .map(|host| {
            let found = one_server(&format!("redis://{}/", with_port(host, SENTINEL_PORT)))?;
            let mut settings = found.redis_settings().clone();
            if let Some(username) = &username {
                settings = settings.set_username(username);
            }
            if let Some(password) = &password {
                settings = settings.set_password(password);
            }
            Ok(found.set_redis_settings(settings))
        })
        .collect::<Result<Vec<_>, RedisError>>()?;
    let server = one_server(&format!("redis://{door}unknown/{database}"))?;
    let name = name.to_owned();
    Ok(Address::Sentinels(SentinelsAddress {
        sentinels,
        name,
        server,
    }))
}

/// The door (with its `@`), the hosts, the path.
fn split(rest: &str) -> (&str, &str, &str) {
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (door, hosts) = authority.split_at(authority.rfind('@').map_or(0, |at| at + 1));
    (door, hosts, path)
}

fn with_port(host: &str, port: u16) -> Cow<'_, str> {
    let after_brackets = host.rsplit(']').next().unwrap_or(host);
    if after_brackets.contains(':') {
        Cow::Borrowed(host)
    } else {
        Cow::Owned(format!("{host}:{port}"))
    }
}

fn one_server(url: &str) -> Result<ConnectionInfo, RedisError> {
    let address = url.into_connection_info()?;
    match address.addr() {
        ConnectionAddr::Tcp(..) => Ok(address),
        #[cfg(unix)]
        ConnectionAddr::Unix(_) => Ok(address),
        _ => Err(unusable("the address is no redis:// of a known kind")),
    }
}

pub(super) fn unusable(why: &'static str) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: &ConnectionInfo) -> String {
        address.addr().to_string()
    }

    #[test]
    fn a_cluster_url_names_nodes_behind_one_door() {
        let url = "redis+cluster://me:p%40ss@a,b:7001,[::1]:7002";
        let Ok(Address::Cluster { nodes, .. }) = Address::parse(url) else {
            panic!("a cluster");
        };
        let places: Vec<String> = nodes.iter().map(place).collect();
        assert_eq!(places, ["a:6379", "b:7001", "::1:7002"]);
        for node in &nodes {
            assert_eq!(node.redis_settings().username(), Some("me"));
            assert_eq!(node.redis_settings().password(), Some("p@ss"));
        }
        for wrong in [
            "redis+cluster://",
            "redis+cluster://a,,b",
            "redis+cluster://a/3",
        ] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sentinel_url_names_the_primary_and_keeps_the_two_doors_apart() {
        let url = "redis+sentinel://:server@a,b:7001/main/4?sentinel_password=watch";
        let Ok(Address::Sentinels(found)) = Address::parse(url) else {
            panic!("sentinels");
        };
        assert_eq!(found.name, "main");
        assert_eq!(found.server.redis_settings().password(), Some("server"));
        assert_eq!(found.server.redis_settings().db(), 4);
        let places: Vec<String> = found.sentinels.iter().map(place).collect();
        assert_eq!(places, ["a:26379", "b:7001"]);
        for sentinel in &found.sentinels {
            assert_eq!(sentinel.redis_settings().password(), Some("watch"));
            assert_eq!(sentinel.redis_settings().db(), 0);
        }
        for wrong in [
            "redis+sentinel://a,b",
            "redis+sentinel://a/",
            "redis+sentinel://a/main/x",
            "redis+sentinel://a/main?password=x",
        ] {
            assert!(Address::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for wrong in ["", "hunter2", "rediss://u:hunter2@h/", "http://hunter2/"] {
            let error = Address::parse(wrong).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
