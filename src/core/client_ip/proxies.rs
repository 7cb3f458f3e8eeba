//! Which forwarding headers are believed, and how far.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::Extensions;
use http::header::{FORWARDED, HeaderMap, HeaderName};
use ipnet::IpNet;
use smallvec::SmallVec;

use super::{ClientIp, peer_of};

/// The most items of forwarding headers that are looked at, from the right.
const MOST_ITEMS: usize = 32;

/// Says which proxies in front of the server are believed about the client's address.
///
/// Nobody is by default: a forwarding header changes nothing. Use [`TrustedProxies::hops`] only behind proxies
/// that cannot be bypassed; [`TrustedProxies::cidrs`] checks each of them. A request that sends a forwarding
/// header of its own is never refused for it.
///
/// ```
/// use tower_keep::core::TrustedProxies;
///
/// let behind_nginx = TrustedProxies::cidrs(["10.0.0.0/8".parse().unwrap()]);
/// let behind_one_proxy = TrustedProxies::hops(1).forwarded();
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct TrustedProxies {
    trust: Trust,
    header: HeaderName,
}

#[derive(Clone, Debug)]
enum Trust {
    Nobody,
    Hops(usize),
    Networks(Vec<IpNet>),
}

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

impl TrustedProxies {
    /// Trusts nobody: the client is the peer.
    pub const fn none() -> Self {
        Self::of(Trust::Nobody)
    }

    /// Trusts `hops` proxies, whoever they are: the client is that many places left of the peer.
    ///
    /// The leftmost item counts where there are fewer, and the peer where the item cannot be read.
    pub const fn hops(hops: u8) -> Self {
        Self::of(Trust::Hops(hops as usize))
    }

    /// Trusts proxies with addresses in these networks: the client is the first address from the right that is in none.
    pub fn cidrs(networks: impl IntoIterator<Item = IpNet>) -> Self {
        Self::of(Trust::Networks(networks.into_iter().collect()))
    }

    /// Reads `Forwarded` (RFC 7239) instead of `X-Forwarded-For`.
    pub fn forwarded(self) -> Self {
        Self {
            header: FORWARDED,
            ..self
        }
    }

    /// Reads another header of the same form as `X-Forwarded-For`, such as `cf-connecting-ip`.
    ///
    /// # Panics
    /// If `name` is not a header name in lower case.
    pub fn header(self, name: &'static str) -> Self {
        Self {
            header: HeaderName::from_static(name),
            ..self
        }
    }

    const fn of(trust: Trust) -> Self {
        Self {
            trust,
            header: X_FORWARDED_FOR,
        }
    }

    /// Finds the client's address: a [`ClientIp`] that is already there, else by the peer and what is trusted.
    #[must_use]
    pub fn resolve(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
        match extensions.get() {
            Some(ClientIp(known)) => Some(*known),
            None => self.find(headers, extensions),
        }
    }

    /// Finds it where no [`ClientIp`] is known.
    pub(crate) fn find(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<IpAddr> {
        let peer = peer_of(extensions)?;
        Some(match &self.trust {
            Trust::Nobody | Trust::Hops(0) => peer,
            Trust::Hops(hops) => self.behind_hops(*hops, headers, peer),
            Trust::Networks(networks) => self.behind_networks(networks, headers, peer),
        })
    }

    fn behind_hops(&self, hops: usize, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        let items = self.items(headers);
        match items.get(hops - 1).or(items.last()) {
            Some(item) => item.unwrap_or(peer),
            None => peer,
        }
    }

    fn behind_networks(&self, networks: &[IpNet], headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        let is_trusted = |address: &IpAddr| networks.iter().any(|net| net.contains(address));
        if !is_trusted(&peer) {
            return peer;
        }
        let mut nearest = peer;
        for item in self.items(headers) {
            match item {
                Some(address) if is_trusted(&address) => nearest = address,
                Some(address) => return address,
                None => return nearest,
            }
        }
        nearest
    }

    /// The items of all header lines, the last one first; `None` cannot be read.
    fn items(&self, headers: &HeaderMap) -> SmallVec<[Option<IpAddr>; 4]> {
        let mut items = SmallVec::new();
        for line in headers.get_all(&self.header).iter().rev() {
            let line = line.as_bytes();
            let texts: SmallVec<[&[u8]; 4]> = if self.header == FORWARDED {
                rsplit_unquoted(line, b',').take(MOST_ITEMS).collect()
            } else {
                line.rsplit(|byte| *byte == b',').take(MOST_ITEMS).collect()
            };
            for text in texts {
                if items.len() == MOST_ITEMS {
                    return items;
                }
                let text = text.trim_ascii();
                if text.is_empty() {
                    continue;
                }
                let node = if self.header == FORWARDED {
                    forwarded_for(text)
                } else {
                    Some(text)
                };
                items.push(node.and_then(address));
            }
        }
        items
    }
}

impl Default for TrustedProxies {
    fn default() -> Self {
        Self::none()
    }
}

/// Splits at separators outside of quotes, the last part first.
///
/// Read from the right: what a proxy has appended is well formed, whatever a client left open before it.
fn rsplit_unquoted(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest.take()?;
        let mut quoted = false;
        for (at, byte) in text.iter().enumerate().rev() {
            match *byte {
                b'"' if quoted && is_escaped(&text[..at]) => {}
                b'"' => quoted = !quoted,
                byte if byte == separator && !quoted => {
                    rest = Some(&text[..at]);
                    return Some(&text[at + 1..]);
                }
                _ => {}
            }
        }
        Some(text)
    })
}

/// Says whether what follows `before` in a quoted string is escaped.
fn is_escaped(before: &[u8]) -> bool {
    let backslashes = before.iter().rev().take_while(|byte| **byte == b'\\');
    backslashes.count() % 2 == 1
}

/// Finds the `for` parameter of one item of a `Forwarded` field.
fn forwarded_for(item: &[u8]) -> Option<&[u8]> {
    rsplit_unquoted(item, b';').find_map(|pair| {
        let (name, value) = pair.trim_ascii().split_at_checked(4)?;
        let value = name
            .eq_ignore_ascii_case(b"for=")
            .then(|| value.trim_ascii())?;
        Some(
            value
                .strip_prefix(b"\"")
                .and_then(|value| value.strip_suffix(b"\""))
                .unwrap_or(value),
        )
    })
}

/// Reads `a.b.c.d`, `a.b.c.d:port`, a bare IPv6 address, `[v6]` and `[v6]:port`; zone ids are dropped.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let found = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, port) = rest.split_once(']')?;
            if !port.strip_prefix(':').map_or(port.is_empty(), is_port) {
                return None;
            }
            IpAddr::V6(without_zone(inside).parse::<Ipv6Addr>().ok()?)
        }
        None => match without_zone(text).parse::<IpAddr>() {
            Ok(bare) => bare,
            Err(_) => match text.parse::<SocketAddr>().ok()? {
                SocketAddr::V4(address) => IpAddr::V4(*address.ip()),
                SocketAddr::V6(_) => return None,
            },
        },
    };
    Some(found.to_canonical())
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

fn without_zone(text: &str) -> &str {
    text.split_once('%').map_or(text, |(address, _)| address)
}
