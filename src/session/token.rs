//! The credential: a public id and a secret, of which the store only keeps a hash.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::core::{StoreError, StoreErrorKind};

const ID_BYTES: usize = 16;
const SECRET_BYTES: usize = 24;
/// The length of a token in text.
pub(super) const TOKEN_CHARS: usize = 54;
const ID_CHARS: usize = 22;

const VERIFIER_LABEL: &[u8; 15] = b"keep-session-1:";
const HOME_LABEL: &[u8] = b"keep-session-home-1:";

/// Names a session in lists and logs; opens nothing. 16 bytes, 22 characters of base64url.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId([u8; ID_BYTES]);

impl SessionId {
    /// Draws an id in `home`, or in a random one.
    pub(super) fn draw(home: Option<u16>) -> Result<Self, StoreError> {
        let mut bytes = [0; ID_BYTES];
        fill(&mut bytes)?;
        if let Some(home) = home {
            bytes[0] = (home >> 2) as u8;
            bytes[1] = (bytes[1] & 0x3f) | ((home << 6) as u8);
        }
        Ok(Self(bytes))
    }

    /// Makes an id of its bytes; for stores.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; ID_BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the 16 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; ID_BYTES] {
        &self.0
    }

    /// Returns the home, 0 to 1,023: the first 10 bits. Keys of one home live in one cluster slot.
    #[must_use]
    pub const fn home(&self) -> u16 {
        (self.0[0] as u16) << 2 | (self.0[1] >> 6) as u16
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; ID_CHARS];
        encode(&self.0, &mut text);
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// A text that is no session id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotASessionId;

impl fmt::Display for NotASessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected 22 characters of base64url without padding")
    }
}

impl std::error::Error for NotASessionId {}

impl FromStr for SessionId {
    type Err = NotASessionId;

    fn from_str(text: &str) -> Result<Self, NotASessionId> {
        let mut bytes = [0; ID_BYTES];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(ID_BYTES) => Ok(Self(bytes)),
            _ => Err(NotASessionId),
        }
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Returns the home of a user: 10 bits of SHA-256 over a fixed label and the id.
#[must_use]
pub fn home_of_user(user: &str) -> u16 {
    let digest = Sha256::new()
        .chain_update(HOME_LABEL)
        .chain_update(user)
        .finalize();
    u16::from_be_bytes([digest[0], digest[1]]) >> 6
}

/// What the store keeps of a secret: SHA-256 behind a label.
#[derive(Clone, Copy)]
pub struct Verifier([u8; 32]);

impl Verifier {
    /// Makes a verifier of its bytes; for stores.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn words(&self) -> [u64; 4] {
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(self.0.as_chunks().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }

    fn of(secret: &[u8]) -> Self {
        // 39 bytes fit one block of SHA-256.
        let digest = Sha256::new()
            .chain_update(VERIFIER_LABEL)
            .chain_update(secret)
            .finalize();
        Self(digest.into())
    }
}

impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        // Four words take a fraction of the time of 32 bytes, and no more tells.
        self.words().ct_eq(&other.words()).into()
    }
}

impl Eq for Verifier {}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(redacted)")
    }
}

/// Which session, and the proof that its secret is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionRef {
    /// The public id.
    pub id: SessionId,
    /// The hash of the secret.
    pub verifier: Verifier,
}

impl SessionRef {
    /// Decodes and hashes a token: 54 characters of base64url, the spare bits zero; anything else is none.
    pub(super) fn of_token(text: &[u8]) -> Option<Self> {
        if text.len() != TOKEN_CHARS {
            return None;
        }
        let mut bytes = [0; ID_BYTES + SECRET_BYTES];
        // Refuses foreign characters, and spare bits that are not zero.
        let decoded = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes);
        let (id, secret) = bytes.split_at(ID_BYTES);
        let reference = decoded.ok().and_then(|_| {
            Some(Self {
                id: SessionId(id.try_into().ok()?),
                verifier: Verifier::of(secret),
            })
        });
        bytes.zeroize();
        reference
    }
}

/// A secret that was just drawn; joins an id to become a token. Zeroed on drop.
pub(super) struct Secret([u8; SECRET_BYTES]);

impl Secret {
    pub(super) fn draw() -> Result<Self, StoreError> {
        let mut secret = Self([0; SECRET_BYTES]);
        fill(&mut secret.0)?;
        Ok(secret)
    }

    pub(super) fn verifier(&self) -> Verifier {
        Verifier::of(&self.0)
    }

    pub(super) fn token(&self, id: SessionId) -> Token {
        let mut bytes = [0; ID_BYTES + SECRET_BYTES];
        bytes[..ID_BYTES].copy_from_slice(&id.0);
        bytes[ID_BYTES..].copy_from_slice(&self.0);
        let mut token = Token([0; TOKEN_CHARS]);
        encode(&bytes, &mut token.0);
        bytes.zeroize();
        token
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A token in text, well-formed: 54 characters of base64url, the spare bits zero. Zeroed on drop.
#[derive(Clone)]
pub(super) struct Token([u8; TOKEN_CHARS]);

impl Token {
    pub(super) fn as_bytes(&self) -> &[u8; TOKEN_CHARS] {
        &self.0
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// A token handed to the handler of a bearer request, to be sent in the body. Its Debug text is redacted.
#[derive(Clone)]
pub struct BearerToken(pub(super) Token);

impl BearerToken {
    /// Returns the token, 54 characters. Whoever has it is the visitor.
    #[must_use]
    pub fn expose(&self) -> &str {
        // A token is ASCII by construction.
        std::str::from_utf8(&self.0.0).unwrap_or_default()
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(redacted)")
    }
}

fn fill(bytes: &mut [u8]) -> Result<(), StoreError> {
    getrandom::fill(bytes)
        .map_err(|error| StoreError::with_source(StoreErrorKind::Failed, error.to_string()))
}

/// Writes `bytes` as base64url; `text` has exactly the right length at each call of this file.
fn encode(bytes: &[u8], text: &mut [u8]) {
    let written = URL_SAFE_NO_PAD.encode_slice(bytes, text);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_comes_back_as_the_reference_it_was_made_of() {
        let (id, secret) = (
            SessionId::draw(Some(1_023)).unwrap(),
            Secret::draw().unwrap(),
        );
        let token = secret.token(id);
        assert_eq!(id.home(), 1_023);
        let expected = SessionRef {
            id,
            verifier: secret.verifier(),
        };
        assert_eq!(SessionRef::of_token(token.as_bytes()), Some(expected));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(
            format!("{token:?} {:?}", secret.verifier()),
            "Token(redacted) Verifier(redacted)"
        );
    }

    #[test]
    fn a_drawn_home_is_the_home_of_the_id() {
        for home in [0, 1, 3, 4, 511, 1_023] {
            assert_eq!(SessionId::draw(Some(home)).unwrap().home(), home);
        }
        assert!(home_of_user("u1") < 1_024);
    }

    proptest! {
        #[test]
        fn every_change_of_one_character_is_refused_or_is_another_token(at in 0..TOKEN_CHARS, byte in any::<u8>()) {
            let token = Secret::draw().unwrap().token(SessionId::draw(None).unwrap());
            let mut text = *token.as_bytes();
            prop_assume!(text[at] != byte);
            text[at] = byte;
            if let Some(other) = SessionRef::of_token(&text) {
                prop_assert_ne!(Some(other), SessionRef::of_token(token.as_bytes()));
            }
        }

        #[test]
        fn any_bytes_are_refused_or_are_a_well_formed_token(text in prop::collection::vec(any::<u8>(), 0..80)) {
            let is_of_alphabet = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
            let is_well_formed = text.len() == TOKEN_CHARS
                && text.iter().all(is_of_alphabet)
                && matches!(text[TOKEN_CHARS - 1], b'A' | b'Q' | b'g' | b'w');
            prop_assert_eq!(SessionRef::of_token(&text).is_some(), is_well_formed);
        }

        #[test]
        fn every_last_character_but_four_is_refused(byte in any::<u8>()) {
            let mut text = [b'A'; TOKEN_CHARS];
            text[TOKEN_CHARS - 1] = byte;
            prop_assert_eq!(SessionRef::of_token(&text).is_some(), b"AQgw".contains(&byte));
        }
    }
}
