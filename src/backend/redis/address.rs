//! Where the handle's URL leads: one server, a set of sentinels that know it, or the nodes of a cluster.

use std::borrow::Cow;

use redis::{
    ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisConnectionInfo, RedisError,
};

use super::tls::Tls;

const SENTINEL_PORT: u16 = 26379;
const SERVER_PORT: u16 = 6379;

/// An understood URL.
#[derive(Debug)]
pub(super) enum Address {
    Server(Endpoint),
    Sentinels(SentinelsAddress),
    /// Nodes to ask for the others, and how to pass the door of each.
    Cluster {
        door: Endpoint,
        nodes: Vec<Endpoint>,
    },
}

/// Sentinels, the name of the primary they watch over, and how to pass that one's door.
#[derive(Debug)]
pub(super) struct SentinelsAddress {
    pub(super) sentinels: Vec<Endpoint>,
    pub(super) name: String,
    /// Its address is a placeholder until a sentinel is asked.
    pub(super) server: Endpoint,
}

/// Where a server is, how to pass its door, and how to greet it, where not in the clear.
#[derive(Clone, Debug)]
pub(super) struct Endpoint {
    info: ConnectionInfo,
    pub(super) tls: Option<Tls>,
}

impl Endpoint {
    pub(super) fn addr(&self) -> &ConnectionAddr {
        self.info.addr()
    }

    pub(super) fn redis_settings(&self) -> &RedisConnectionInfo {
        self.info.redis_settings()
    }

    /// Says what is known besides of a connection that ended with its first words.
    pub(super) fn explained(&self, error: RedisError) -> RedisError {
        match &self.tls {
            Some(tls) => tls.explained(error),
            None => error,
        }
    }

    /// Returns another server behind the same door.
    pub(super) fn at(&self, host: String, port: u16) -> Self {
        let address = ConnectionAddr::Tcp(host, port);
        Self {
            info: self.info.clone().set_addr(address),
            tls: self.tls.clone(),
        }
    }
}

/// The schemes that ask for TLS, and what they are without.
const TLS_SCHEMES: [(&str, &str); 4] = [
    ("rediss", "redis"),
    ("rediss+sentinel", "redis+sentinel"),
    ("rediss+cluster", "redis+cluster"),
    ("valkeys", "valkey"),
];

/// Says whether all that this URL leads to is to be greeted by TLS.
pub(super) fn is_tls(url: &str) -> bool {
    in_the_clear(url).is_some()
}

/// Returns the same URL without the mark of TLS, where it has one.
fn in_the_clear(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let (_, plain) = TLS_SCHEMES.iter().find(|(marked, _)| *marked == scheme)?;
    Some(format!("{plain}://{rest}"))
}

impl Address {
    /// `tls` is how to greet the servers of a URL that [asks for it](is_tls).
    pub(super) fn parse(url: &str, tls: Option<&Tls>) -> Result<Self, RedisError> {
        let plain = in_the_clear(url);
        if plain.is_some() && url.contains('#') {
            return Err(unusable(
                "a TLS URL has no #fragment: no certificate is left unchecked, but you may give your own roots",
            ));
        }
        if plain.is_some() != tls.is_some() {
            return Err(unusable("TLS is there for TLS URLs, and for no others"));
        }
        let url = plain.as_deref().unwrap_or(url);
        let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
        match scheme {
            "redis+cluster" => parse_cluster(rest, tls),
            "redis+sentinel" => parse_sentinels(rest, tls),
            _ => one_server(url, tls).map(Self::Server),
        }
    }
}

/// `[user:password@]host:port,host:port…[/]`; a cluster has one database.
fn parse_cluster(rest: &str, tls: Option<&Tls>) -> Result<Address, RedisError> {
    let (door, hosts, path) = split(rest);
    if !matches!(path, "" | "/" | "/0") {
        return Err(unusable("a cluster has no databases"));
    }
    let nodes = hosts
        .split(',')
        .map(|host| {
            let place = with_port(host, SERVER_PORT);
            one_server(&format!("redis://{door}{place}/"), tls)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let door = nodes.first().cloned();
    let door = door.ok_or_else(|| unusable("a cluster URL names a node"))?;
    Ok(Address::Cluster { door, nodes })
}

/// `[user:password@]host:port,host:port…/name[/db][?sentinel_username=…&sentinel_password=…]`.
fn parse_sentinels(rest: &str, tls: Option<&Tls>) -> Result<Address, RedisError> {
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
            let place = with_port(host, SENTINEL_PORT);
            let found = one_server(&format!("redis://{place}/"), tls)?;
            let mut settings = found.redis_settings().clone();
            if let Some(username) = &username {
                settings = settings.set_username(username);
            }
            if let Some(password) = &password {
                settings = settings.set_password(password);
            }
            let info = found.info.set_redis_settings(settings);
            Ok(Endpoint { info, ..found })
        })
        .collect::<Result<Vec<_>, RedisError>>()?;
    let server = one_server(&format!("redis://{door}unknown/{database}"), tls)?;
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

fn one_server(url: &str, tls: Option<&Tls>) -> Result<Endpoint, RedisError> {
    let info = url.into_connection_info()?;
    let tls = tls.cloned();
    match info.addr() {
        ConnectionAddr::Tcp(..) => Ok(Endpoint { info, tls }),
        #[cfg(unix)]
        ConnectionAddr::Unix(_) => Ok(Endpoint { info, tls }),
        _ => Err(unusable("the address is no redis:// of a known kind")),
    }
}

pub(super) fn unusable(why: &'static str) -> RedisError {
    RedisError::from((ErrorKind::InvalidClientConfig, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(address: &Endpoint) -> String {
        address.addr().to_string()
    }

    #[test]
    fn a_cluster_url_names_nodes_behind_one_door() {
        let url = "redis+cluster://me:p%40ss@a,b:7001,[::1]:7002";
        let Ok(Address::Cluster { nodes, .. }) = Address::parse(url, None) else {
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
            assert!(Address::parse(wrong, None).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_sentinel_url_names_the_primary_and_keeps_the_two_doors_apart() {
        let url = "redis+sentinel://:server@a,b:7001/main/4?sentinel_password=watch";
        let Ok(Address::Sentinels(found)) = Address::parse(url, None) else {
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
            assert!(Address::parse(wrong, None).is_err(), "{wrong}");
        }
    }

    #[cfg(feature = "redis-tls")]
    #[tokio::test]
    async fn a_tls_url_differs_in_nothing_else_and_leads_nowhere_in_the_clear() {
        use super::super::tls::Trust;

        let mut trust = Trust::default();
        let root = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        trust.root_certificates(root.cert.pem().as_bytes());
        for (url, expected) in [
            ("rediss://me:p%40ss@a:1/", ["a:1"].as_slice()),
            ("valkeys://me:p%40ss@[::1]", &["::1:6379"]),
            ("rediss+cluster://me:p%40ss@a,b:7", &["a:6379", "b:7"]),
            ("rediss+sentinel://me:p%40ss@a,b:7/x", &["a:26379", "b:7"]),
        ] {
            let tls = Tls::of(url, trust.clone()).await.unwrap();
            let (door, nodes) = match Address::parse(url, tls.as_ref()).unwrap() {
                Address::Server(server) => (server.clone(), vec![server]),
                Address::Cluster { door, nodes } => (door, nodes),
                Address::Sentinels(found) => (found.server, found.sentinels),
            };
            assert_eq!(nodes.iter().map(place).collect::<Vec<_>>(), expected);
            assert_eq!(door.redis_settings().username(), Some("me"));
            assert_eq!(door.redis_settings().password(), Some("p@ss"));
            assert!(nodes.iter().chain([&door]).all(|place| place.tls.is_some()));
            assert!(door.at("c".to_owned(), 1).tls.is_some());
            assert!(Address::parse(url, None).is_err());
        }
        for plain in ["redis://a", "redis+unix:///rediss://a"] {
            assert!(Tls::of(plain, Trust::default()).await.unwrap().is_none());
            assert!(Tls::of(plain, trust.clone()).await.is_err());
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for wrong in [
            "",
            "hunter2",
            "rediss://u:hunter2@h/#insecure",
            "http://hunter2/",
        ] {
            let error = Address::parse(wrong, None).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
