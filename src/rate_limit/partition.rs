//! What is counted apart: the parts of a request that make a key, and the keys themselves.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderName};
use http::request::Parts;
use sha2::{Digest, Sha256};
use smallvec::SmallVec;

use super::head::View;
use crate::core::{Principal, base64url, original_uri};

/// Says by what a policy counts: each key has a state of its own.
///
/// Clients can invent headers: pair [`Partition::header`] and [`Partition::api_key`] with a policy by
/// [`Partition::client_ip`]. A user's id is never taken from a body or a claim, only from an authenticating layer.
#[derive(Clone)]
#[must_use]
pub struct Partition {
    name: Cow<'static, str>,
    sources: SmallVec<[Source; 1]>,
}

#[derive(Clone)]
enum Source {
    ClientIp {
        ipv6_prefix: u8,
    },
    Principal,
    ApiKey(HeaderName),
    Header(HeaderName),
    Path,
    #[cfg(feature = "axum")]
    MatchedPath,
    Global,
    Custom(Cow<'static, str>, CustomKey),
}

type CustomKey = Arc<dyn Fn(&Parts) -> Option<PartitionKey> + Send + Sync>;

const IPV6_PREFIX: u8 = 64;

impl Partition {
    /// Counts by the client's address: IPv4 whole, IPv6 by its /64 ([`Partition::ipv6_prefix`]).
    pub fn client_ip() -> Self {
        Self::of(
            "client-ip",
            Source::ClientIp {
                ipv6_prefix: IPV6_PREFIX,
            },
        )
    }

    /// Counts by the authenticated principal; anonymous requests by their address, in a key space of their own.
    pub fn principal() -> Self {
        Self::of("principal", Source::Principal)
    }

    /// Counts by an API key in the header `name`; of `authorization` the `Bearer` token. Without one, by the address.
    ///
    /// # Panics
    /// If `name` is not a header name in lower case.
    pub fn api_key(name: &'static str) -> Self {
        Self::of("api-key", Source::ApiKey(HeaderName::from_static(name)))
    }

    /// Counts by the value of the header `name`; requests without it, or with an empty one, by their address.
    ///
    /// # Panics
    /// If `name` is not a header name in lower case.
    pub fn header(name: &'static str) -> Self {
        Self::of(name, Source::Header(HeaderName::from_static(name)))
    }

    /// Counts by the raw path of the request, whole also where a router has cut its prefix away. With axum prefer `Partition::matched_path`: a client can invent paths.
    pub fn path() -> Self {
        Self::of("path", Source::Path)
    }

    /// Counts by the route that axum matched (`/users/{id}`), by the raw path where none was.
    #[cfg(feature = "axum")]
    pub fn matched_path() -> Self {
        Self::of("matched-path", Source::MatchedPath)
    }

    /// Counts all requests together.
    pub fn global() -> Self {
        Self::of("global", Source::Global)
    }

    /// Counts by what `key` finds in the head of a request; where it finds `None` the policy does not apply.
    pub fn custom(
        name: impl Into<Cow<'static, str>>,
        key: impl Fn(&Parts) -> Option<PartitionKey> + Send + Sync + 'static,
    ) -> Self {
        let name = name.into();
        Self::of(name.clone(), Source::Custom(name, Arc::new(key)))
    }

    /// Counts by both: a state for each pair of keys.
    pub fn and(mut self, other: Self) -> Self {
        self.name = Cow::Owned(format!("{}-{}", self.name, other.name));
        self.sources.extend(other.sources);
        self
    }

    /// Sets how many leading bits of an IPv6 address make one client, 64 unless set.
    ///
    /// # Panics
    /// If `bits` is not within 32 and 128.
    #[allow(clippy::panic)]
    pub fn ipv6_prefix(mut self, bits: u8) -> Self {
        if !(32..=128).contains(&bits) {
            panic!("an IPv6 prefix must have 32 to 128 bits");
        }
        for source in &mut self.sources {
            if let Source::ClientIp { ipv6_prefix } = source {
                *ipv6_prefix = bits;
            }
        }
        self
    }

    /// Returns the partition's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn asks_principal(&self) -> bool {
        self.sources
            .iter()
            .any(|source| matches!(source, Source::Principal))
    }

    /// Says whether a closure wants the `Parts` of the request.
    pub(super) fn reads_parts(&self) -> bool {
        self.sources
            .iter()
            .any(|source| matches!(source, Source::Custom(..)))
    }

    pub(super) fn is_global(&self) -> bool {
        self.sources
            .iter()
            .all(|source| matches!(source, Source::Global))
    }

    /// Says whether a request has the same key in both.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.sources == other.sources
    }

    /// Cuts the addresses in a key that a caller made as [`Partition::find`] cuts them, each by the prefix of its own part.
    ///
    /// A closure may make any number of segments: what stands before it is counted from the front, what stands behind it
    /// from the back.
    pub(super) fn normalize(&self, mut key: PartitionKey) -> PartitionKey {
        let is_one = |source: &&Source| !matches!(source, Source::Custom(..));
        let before = self.sources.iter().take_while(is_one).count();
        let behind = self.sources.iter().rev().take_while(is_one).count();
        let many = key.segments.len();
        for (index, segment) in key.segments.iter_mut().enumerate() {
            let from_back = many - index;
            let source = match (index < before, from_back <= behind) {
                (true, _) => self.sources.get(index),
                (false, true) => self.sources.get(self.sources.len() - from_back),
                (false, false) => None,
            };
            segment.cut(match source {
                Some(Source::ClientIp { ipv6_prefix }) => *ipv6_prefix,
                _ => IPV6_PREFIX,
            });
        }
        key
    }

    /// Finds the key of a request, and writes it where it stays.
    pub(super) fn find(&self, request: &Found<'_>, key: &mut PartitionKey) -> Keyed {
        for source in &self.sources {
            match source.find(request, key) {
                Keyed::Key => {}
                other => return other,
            }
        }
        Keyed::Key
    }

    fn of(name: impl Into<Cow<'static, str>>, source: Source) -> Self {
        Self {
            name: name.into(),
            sources: SmallVec::from_iter([source]),
        }
    }
}

impl fmt::Debug for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Partition({})", self.name)
    }
}

/// What is known of a request when its keys are made.
pub(super) struct Found<'a> {
    pub(super) head: View<'a>,
    pub(super) client: Option<IpAddr>,
    pub(super) principal: Option<&'a Principal>,
}

/// What a partition makes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keyed {
    Key,
    /// The policy does not apply.
    NotApplicable,
    /// An address is needed, and there is none.
    NoAddress,
}

/// The path that the client asked for.
fn whole_path<'a>(head: &View<'a>) -> &'a str {
    original_uri(head.extensions).unwrap_or(head.uri).path()
}

impl Source {
    fn find(&self, request: &Found<'_>, key: &mut PartitionKey) -> Keyed {
        let segment = match self {
            Self::ClientIp { ipv6_prefix } => {
                return request.client.map_or(Keyed::NoAddress, |client| {
                    key.segments.push(Segment::address(client, *ipv6_prefix));
                    Keyed::Key
                });
            }
            Self::Principal => request
                .principal
                .map(|principal| Segment::text(principal.id().as_bytes())),
            Self::ApiKey(name) => request
                .head
                .headers
                .get(name)
                .and_then(|value| credential(name, value.as_bytes()))
                .map(Segment::text),
            Self::Header(name) => request
                .head
                .headers
                .get(name)
                .map(|value| value.as_bytes())
                .filter(|value| !value.trim_ascii().is_empty())
                .map(Segment::text),
            Self::Path => Some(Segment::text(whole_path(&request.head).as_bytes())),
            #[cfg(feature = "axum")]
            Self::MatchedPath => {
                let matched = super::extract::matched_path(request.head.extensions);
                let path = matched.unwrap_or_else(|| whole_path(&request.head));
                Some(Segment::text(path.as_bytes()))
            }
            Self::Global => Some(Segment::Global),
            Self::Custom(_, find) => {
                return request.head.parts.and_then(|parts| find(parts)).map_or(
                    Keyed::NotApplicable,
                    |found| {
                        key.segments.extend(found.masked(IPV6_PREFIX).segments);
                        Keyed::Key
                    },
                );
            }
        };
        // Whoever names nobody is counted by the address: limited, and not lumped together.
        match segment.or_else(|| Some(Segment::address(request.client?, IPV6_PREFIX))) {
            Some(segment) => {
                key.segments.push(segment);
                Keyed::Key
            }
            None => Keyed::NoAddress,
        }
    }
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::ClientIp { ipv6_prefix: a }, Self::ClientIp { ipv6_prefix: b }) => a == b,
            (Self::ApiKey(a), Self::ApiKey(b)) | (Self::Header(a), Self::Header(b)) => a == b,
            // Two closures of one name may find different keys.
            (Self::Custom(a, key), Self::Custom(b, other)) => a == b && Arc::ptr_eq(key, other),
            (Self::Principal, Self::Principal)
            | (Self::Path, Self::Path)
            | (Self::Global, Self::Global) => true,
            #[cfg(feature = "axum")]
            (Self::MatchedPath, Self::MatchedPath) => true,
            _ => false,
        }
    }
}

fn credential<'a>(name: &HeaderName, value: &'a [u8]) -> Option<&'a [u8]> {
    if name != AUTHORIZATION {
        return Some(value).filter(|value| !value.trim_ascii().is_empty());
    }
    let (scheme, token) = value.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// The key of one state within a policy: addresses in clear, everything else only as a digest.
///
/// ```
/// use std::net::IpAddr;
/// use tower_keep::rate_limit::PartitionKey;
///
/// let address: IpAddr = "192.0.2.7".parse().unwrap();
/// assert_ne!(PartitionKey::from(address), PartitionKey::from("192.0.2.7"));
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PartitionKey {
    segments: SmallVec<[Segment; 2]>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Segment {
    Global,
    V4([u8; 4]),
    V6([u8; 16], u8),
    Text([u8; 16]),
}

impl PartitionKey {
    /// A key that has yet to be found.
    pub(super) const fn empty() -> Self {
        Self {
            segments: SmallVec::new_const(),
        }
    }

    /// Makes the key of a compound partition (`a.and(b)`), in its order.
    #[must_use]
    pub fn all(keys: impl IntoIterator<Item = Self>) -> Self {
        Self {
            segments: keys.into_iter().flat_map(|key| key.segments).collect(),
        }
    }

    /// Feeds the key to a hasher of a store, each segment with its kind.
    pub(crate) fn feed(&self, hasher: &mut crate::backend::memory::KeyHasher) {
        for segment in &self.segments {
            match segment {
                Segment::Global => hasher.num(0),
                Segment::V4(bits) => hasher.num(1 << 32 | u64::from(u32::from_be_bytes(*bits))),
                Segment::V6(bits, prefix) => {
                    hasher.num(2 << 32 | u64::from(*prefix));
                    feed_128(hasher, *bits);
                }
                Segment::Text(digest) => {
                    hasher.num(3 << 32);
                    feed_128(hasher, *digest);
                }
            }
        }
    }

    /// Writes the key as bytes that name it in a message to another process.
    #[cfg(feature = "redis")]
    pub(crate) fn write_bytes<const N: usize>(&self, out: &mut SmallVec<[u8; N]>) {
        for segment in &self.segments {
            match segment {
                Segment::Global => out.push(0),
                Segment::V4(bits) => {
                    out.push(1);
                    out.extend_from_slice(bits);
                }
                Segment::V6(bits, prefix) => {
                    out.extend_from_slice(&[2, *prefix]);
                    out.extend_from_slice(bits);
                }
                Segment::Text(digest) => {
                    out.push(3);
                    out.extend_from_slice(digest);
                }
            }
        }
    }

    /// Returns the neighbourhood that shares an entry where there is no room for each: addresses by their /24 or /48.
    pub(crate) fn neighbourhood(&self) -> Self {
        let mut whole = self.clone();
        for segment in &mut whole.segments {
            match segment {
                Segment::V4(bits) => bits[3] = 0,
                Segment::V6(bits, _) => bits[6..].fill(0),
                Segment::Global | Segment::Text(_) => {}
            }
        }
        whole
    }

    /// Writes the key as text that names it in a shared store. It holds no identity but addresses.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::with_capacity(24);
        for (index, segment) in self.segments.iter().enumerate() {
            if index > 0 {
                out.push('+');
            }
            match segment {
                Segment::Global => out.push('-'),
                Segment::V4(bits) => out.push_str(&IpAddr::from(*bits).to_string()),
                Segment::V6(bits, prefix) => {
                    out.push_str(&format!("{}/{prefix}", Ipv6Addr::from(*bits)));
                }
                Segment::Text(digest) => out.push_str(&base64url(digest)),
            }
        }
        out
    }

    /// Counts mapped IPv4 as IPv4 and cuts IPv6 addresses that came whole.
    fn masked(mut self, prefix: u8) -> Self {
        for segment in &mut self.segments {
            segment.cut(prefix);
        }
        self
    }
}

fn feed_128(hasher: &mut crate::backend::memory::KeyHasher, bytes: [u8; 16]) {
    let whole = u128::from_be_bytes(bytes);
    hasher.num((whole >> 64) as u64);
    hasher.num(whole as u64);
}

impl Segment {
    fn address(address: IpAddr, prefix: u8) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => {
                let mask = u128::MAX << (128 - u32::from(prefix.clamp(1, 128)));
                Self::V6((u128::from(address) & mask).to_be_bytes(), prefix)
            }
        }
    }

    /// Cuts an IPv6 address that came whole.
    fn cut(&mut self, prefix: u8) {
        if let Self::V6(bits, 128) = self {
            *self = Self::address(IpAddr::from(*bits), prefix);
        }
    }

    fn text(bytes: &[u8]) -> Self {
        let digest = Sha256::digest(bytes);
        let mut cut = [0; 16];
        cut.copy_from_slice(&digest[..16]);
        Self::Text(cut)
    }
}

impl From<Segment> for PartitionKey {
    fn from(segment: Segment) -> Self {
        Self {
            segments: SmallVec::from_iter([segment]),
        }
    }
}

impl From<&str> for PartitionKey {
    fn from(text: &str) -> Self {
        Segment::text(text.as_bytes()).into()
    }
}

impl From<String> for PartitionKey {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<IpAddr> for PartitionKey {
    fn from(address: IpAddr) -> Self {
        Segment::address(address, 128).into()
    }
}

impl From<()> for PartitionKey {
    /// The key of [`Partition::global`].
    fn from((): ()) -> Self {
        Segment::Global.into()
    }
}

impl fmt::Debug for PartitionKey {
    /// Addresses too are personal: what is printed is a digest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PartitionKey({})", self.digest())
    }
}

impl PartitionKey {
    /// Returns the 22 characters by which logs name this key.
    #[must_use]
    pub fn digest(&self) -> String {
        crate::core::digest22(self.text().as_bytes())
    }
}

#[cfg(test)]
mod tests;
