//! The cookie: which one is ours, and how it is set and removed.

use bytes::{BufMut, BytesMut};
use http::HeaderValue;

use super::token::{SessionRef, TOKEN_CHARS, Token};

const LONGEST_NAME: usize = 64;

/// The session cookie: name, reach and attributes. `HttpOnly` and `Path=/` cannot be turned off.
///
/// Changing the domain or `Partitioned` of a deployed cookie takes a new name: browsers keep both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionCookie {
    name: &'static str,
    reach: Reach,
    same_site: SameSite,
    partitioned: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Host,
    Domain(&'static str),
    Insecure,
}

/// When a browser sends the cookie along with requests from other sites.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameSite {
    /// Never.
    Strict,
    /// When the visitor follows a link.
    Lax,
    /// Always.
    None,
}

impl SessionCookie {
    /// Sets `__Host-name`: this host only, HTTPS only (RFC 6265bis).
    ///
    /// # Panics
    /// The name is no token (RFC 9110), has a prefix of its own, or is longer than 64 bytes.
    #[must_use]
    pub const fn host(name: &'static str) -> Self {
        Self::new(name, Reach::Host)
    }

    /// Sets `__Secure-name` for a domain and all its subdomains, HTTPS only.
    ///
    /// # Panics
    /// As [`SessionCookie::host`], and if the domain is empty or an address.
    #[must_use]
    pub const fn domain(name: &'static str, domain: &'static str) -> Self {
        check_domain(domain.as_bytes());
        Self::new(name, Reach::Domain(domain))
    }

    /// Sets `name` without `Secure`, for plain HTTP in development.
    ///
    /// # Panics
    /// As [`SessionCookie::host`].
    #[must_use]
    pub const fn insecure(name: &'static str) -> Self {
        Self::new(name, Reach::Insecure)
    }

    /// Sets `SameSite` (`Lax`).
    ///
    /// # Panics
    /// `None` on an insecure cookie: browsers refuse it.
    #[must_use]
    pub const fn same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self.check();
        self
    }

    /// Keeps a jar per embedding site (CHIPS). A deployed cookie needs a new name then.
    ///
    /// # Panics
    /// On an insecure cookie: browsers refuse it.
    #[must_use]
    pub const fn partitioned(mut self) -> Self {
        self.partitioned = true;
        self.check();
        self
    }

    const fn new(name: &'static str, reach: Reach) -> Self {
        check_name(name.as_bytes());
        Self {
            name,
            reach,
            same_site: SameSite::Lax,
            partitioned: false,
        }
    }

    const fn check(&self) {
        let insecure = matches!(self.reach, Reach::Insecure);
        let none = matches!(self.same_site, SameSite::None);
        assert!(
            !(insecure && (none || self.partitioned)),
            "SameSite=None and Partitioned need a secure cookie"
        );
    }

    fn full_name(&self) -> String {
        let prefix = match self.reach {
            Reach::Host => "__Host-",
            Reach::Domain(_) => "__Secure-",
            Reach::Insecure => "",
        };
        format!("{prefix}{}", self.name)
    }

    fn attributes(&self) -> String {
        let mut text = String::new();
        if let Reach::Domain(domain) = self.reach {
            text.push_str("; Domain=");
            text.push_str(domain);
        }
        text.push_str("; Path=/");
        if self.reach != Reach::Insecure {
            text.push_str("; Secure");
        }
        text.push_str("; HttpOnly; SameSite=");
        text.push_str(match self.same_site {
            SameSite::Strict => "Strict",
            SameSite::Lax => "Lax",
            SameSite::None => "None",
        });
        if self.partitioned {
            text.push_str("; Partitioned");
        }
        text
    }
}

const fn check_name(name: &[u8]) {
    assert!(
        !name.is_empty() && name.len() <= LONGEST_NAME,
        "the name of a cookie has 1 to 64 bytes"
    );
    let mut at = 0;
    while at < name.len() {
        let byte = name[at];
        let is_token = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        assert!(is_token, "the name of a cookie is a token of RFC 9110");
        at += 1;
    }
    let has_prefix = name.len() >= 2 && name[0] == b'_' && name[1] == b'_';
    assert!(
        !has_prefix,
        "the prefix of a cookie name is set by the layer"
    );
}

const fn check_domain(domain: &[u8]) {
    assert!(
        !domain.is_empty() && domain.len() <= 253,
        "a cookie's domain has 1 to 253 bytes"
    );
    let (mut at, mut has_letter) = (0, false);
    while at < domain.len() {
        let byte = domain[at];
        assert!(
            byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.',
            "a cookie's domain is a host name, not an address"
        );
        has_letter = has_letter || byte.is_ascii_alphabetic();
        at += 1;
    }
    assert!(
        has_letter,
        "a cookie's domain is a host name, not an address"
    );
}

/// The cookie's text, put together once.
#[derive(Clone, Debug)]
pub(super) struct CookieText {
    name: String,
    attributes: String,
    removal: HeaderValue,
}

impl CookieText {
    pub(super) fn new(cookie: SessionCookie) -> Self {
        let (name, attributes) = (cookie.full_name(), cookie.attributes());
        let removal =
            format!("{name}=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT{attributes}");
        // Name and domain were checked to be plain ASCII.
        let removal = HeaderValue::try_from(removal).unwrap_or(HeaderValue::from_static(""));
        Self {
            name,
            attributes,
            removal,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Makes the field that sets `token`, for `max_age` seconds or for as long as the browser runs.
    pub(super) fn set(&self, token: &Token, max_age: Option<u64>) -> Option<HeaderValue> {
        let size = self.name.len() + TOKEN_CHARS + self.attributes.len() + 32;
        let mut text = BytesMut::with_capacity(size);
        text.put_slice(self.name.as_bytes());
        text.put_u8(b'=');
        text.put_slice(token.as_bytes());
        text.put_slice(self.attributes.as_bytes());
        if let Some(max_age) = max_age {
            text.put_slice(b"; Max-Age=");
            text.put_slice(max_age.to_string().as_bytes());
        }
        let mut value = HeaderValue::from_maybe_shared(text.freeze()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    pub(super) fn removal(&self) -> HeaderValue {
        self.removal.clone()
    }

    /// Looks through all `Cookie` lines: the first well-formed value of our name counts.
    pub(super) fn find<'a>(&self, lines: impl IntoIterator<Item = &'a HeaderValue>) -> Found<'a> {
        let mut found = Found::default();
        for line in lines {
            let line = line.as_bytes();
            // Ours alone is the commonest, and this question is answered by words, not bytes.
            if !line.contains(&b';') {
                self.value(line)
                    .into_iter()
                    .for_each(|value| found.meet(value));
                continue;
            }
            let pairs = line.split(|byte| *byte == b';');
            let values = pairs.filter_map(|pair| self.value(pair));
            values.for_each(|value| found.meet(value));
        }
        found
    }

    fn value<'a>(&self, pair: &'a [u8]) -> Option<&'a [u8]> {
        let pair = pair.trim_ascii_start();
        let value = pair
            .strip_prefix(self.name.as_bytes())?
            .strip_prefix(b"=")?;
        Some(value.trim_ascii_end())
    }
}

/// What the cookies of a request hold of ours.
#[derive(Debug, Default)]
pub(super) struct Found<'a> {
    pub(super) token: Option<(&'a [u8], SessionRef)>,
    /// Something of our name was there, well-formed or not.
    pub(super) any: bool,
    /// A second, different value was there.
    pub(super) duplicate: bool,
}

impl<'a> Found<'a> {
    fn meet(&mut self, value: &'a [u8]) {
        self.any = true;
        match &self.token {
            Some((token, _)) => self.duplicate |= *token != value,
            None => self.token = SessionRef::of_token(value).map(|at| (value, at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::token::{Secret, SessionId};
    use super::*;

    fn token() -> Token {
        Secret::draw()
            .unwrap()
            .token(SessionId::draw(None).unwrap())
    }

    fn text(token: &Token) -> String {
        String::from_utf8(token.as_bytes().to_vec()).unwrap()
    }

    fn fields(lines: &[String]) -> Vec<HeaderValue> {
        let lines = lines.iter();
        lines
            .map(|line| HeaderValue::try_from(line).unwrap())
            .collect()
    }

    #[test]
    fn the_default_cookie_has_the_attributes_that_keep_it_safe() {
        let (cookie, token) = (CookieText::new(SessionCookie::host("id")), token());
        assert_eq!(
            cookie.set(&token, None).unwrap(),
            format!(
                "__Host-id={}; Path=/; Secure; HttpOnly; SameSite=Lax",
                text(&token)
            )
        );
        assert_eq!(
            cookie.removal(),
            "__Host-id=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; Secure; HttpOnly; SameSite=Lax"
        );
        let wide = SessionCookie::domain("id", "example.org")
            .same_site(SameSite::None)
            .partitioned();
        assert_eq!(
            CookieText::new(wide).set(&token, Some(60)).unwrap(),
            format!(
                "__Secure-id={}; Domain=example.org; Path=/; Secure; HttpOnly; SameSite=None; Partitioned; Max-Age=60",
                text(&token)
            )
        );
    }

    #[test]
    fn the_longest_cookie_stays_below_what_browsers_keep() {
        const NAME: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";
        let domain: &'static str = Box::leak("d".repeat(253).into_boxed_str());
        let longest = SessionCookie::domain(NAME, domain)
            .same_site(SameSite::Strict)
            .partitioned();
        let cookie = CookieText::new(longest);
        let set = cookie.set(&token(), Some(400 * 86_400)).unwrap();
        assert!(set.len() < 4_096 && cookie.removal().len() < 4_096);
        assert!(set.is_sensitive(), "no log shows it");
    }

    #[test]
    fn the_first_well_formed_value_of_our_name_counts() {
        let cookie = CookieText::new(SessionCookie::insecure("id"));
        let (a, b) = (token(), token());
        let lines = fields(&[
            format!("x=1; idx={0}; id=short", text(&b)),
            format!("y=2; id={}; id={}", text(&a), text(&b)),
        ]);
        let found = cookie.find(&lines);
        assert_eq!(found.token.unwrap().0, a.as_bytes());
        assert!(found.duplicate);
        let lines = fields(&["id=".to_owned() + &"A".repeat(53) + "B"]);
        let none = cookie.find(&lines);
        assert!(
            none.any && none.token.is_none(),
            "the spare bits must be zero"
        );
        assert!(!cookie.find(&fields(&["other=1".to_owned()])).any);
    }

    #[test]
    fn wrong_combinations_cannot_be_built() {
        let wrong: [fn() -> SessionCookie; 7] = [
            || SessionCookie::insecure("id").partitioned(),
            || SessionCookie::insecure("id").same_site(SameSite::None),
            || SessionCookie::host("__Host-id"),
            || SessionCookie::host("a b"),
            || SessionCookie::host(""),
            || SessionCookie::domain("id", "192.0.2.1"),
            || SessionCookie::domain("id", "[2001:db8::1]"),
        ];
        for build in wrong {
            assert!(std::panic::catch_unwind(build).is_err());
        }
    }
}
