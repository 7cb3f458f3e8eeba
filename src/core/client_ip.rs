//! Whose address a request comes from, seen through proxies that are trusted.

use std::net::{IpAddr, SocketAddr};

/// The address of the client, in the request extensions: found once, used by limits and sessions alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientIp(pub IpAddr);

/// The address of the peer of the connection, for servers without axum's `ConnectInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);
