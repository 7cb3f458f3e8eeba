//! A request's fields while its answer is fetched: as text, which most answers never make anybody read.

use std::fmt;
use std::ops::Deref;
use std::sync::OnceLock;

use http::header::HeaderMap;

use super::fields::Gathered;

/// The fields as the client sent them. Whoever reads them makes the map: a `Vary`, a condition, a second call.
#[derive(Default)]
pub(super) struct Sent {
    map: OnceLock<HeaderMap>,
    text: Gathered,
}

impl Sent {
    /// Keeps a copy: one allocation, whatever there is.
    pub(super) fn of(fields: &HeaderMap) -> Self {
        Self {
            map: OnceLock::new(),
            text: Gathered::of(fields),
        }
    }
}

impl From<HeaderMap> for Sent {
    fn from(fields: HeaderMap) -> Self {
        Self {
            map: OnceLock::from(fields),
            ..Self::default()
        }
    }
}

impl Deref for Sent {
    type Target = HeaderMap;

    fn deref(&self) -> &HeaderMap {
        self.map.get_or_init(|| self.text.to_map())
    }
}

impl fmt::Debug for Sent {
    /// Values are left out: they may be personal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sent").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http::header::{COOKIE, ETAG, VIA};
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn what_is_read_is_what_was_sent() {
        let mut fields = HeaderMap::new();
        let mut secret = HeaderValue::from_static("s=1");
        secret.set_sensitive(true);
        fields.append(COOKIE, secret);
        fields.append(VIA, HeaderValue::from_static("1.1 a"));
        fields.append(ETAG, HeaderValue::from_static(""));
        fields.append(VIA, HeaderValue::from_bytes(b"1.1 \xff").unwrap());
        let long = HeaderName::from_bytes(&[b'n'; 300]).unwrap();
        fields.append(long, HeaderValue::from_bytes(&[b'v'; 20_000]).unwrap());
        let sent = Sent::of(&fields);
        assert_eq!(*sent, fields);
        assert!(sent[COOKIE].is_sensitive() && !sent[VIA].is_sensitive());
        assert_eq!(*Sent::of(&HeaderMap::new()), HeaderMap::new());
        assert_eq!(*Sent::from(fields.clone()), fields);
    }
}
