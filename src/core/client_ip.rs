//! Whose address a request comes from, seen through proxies that are trusted.

mod layer;
mod proxies;

use std::net::{IpAddr, SocketAddr};

use http::Extensions;

pub use layer::{ClientIpLayer, ClientIpService};
pub use proxies::TrustedProxies;

/// The address of the client, in the request extensions: found once, used by limits and sessions alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientIp(pub IpAddr);

/// The address of the peer of the connection, for servers without axum's `ConnectInfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddr(pub SocketAddr);

/// Returns the peer of the connection: [`PeerAddr`], with feature `axum` also `ConnectInfo<SocketAddr>`.
pub(crate) fn peer_of(extensions: &Extensions) -> Option<IpAddr> {
    if let Some(PeerAddr(peer)) = extensions.get() {
        return Some(peer.ip().to_canonical());
    }
    #[cfg(feature = "axum")]
    if let Some(axum::extract::ConnectInfo(peer)) =
        extensions.get::<axum::extract::ConnectInfo<SocketAddr>>()
    {
        return Some(peer.ip().to_canonical());
    }
    None
}

#[cfg(test)]
mod tests;
