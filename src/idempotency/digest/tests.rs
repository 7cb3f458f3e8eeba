//! Tests of digests of uploads.

use http::HeaderValue;

use super::*;

fn fields(lines: &[(HeaderName, &str)]) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for (name, line) in lines {
        fields.append(name, HeaderValue::from_str(line).unwrap());
    }
    fields
}

/// SHA-256 of `hello`, as RFC 9530 spells digests.
const HELLO: &str = "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:";

#[test]
fn the_content_comes_before_the_representation_and_the_longer_before_the_shorter() {
    let hello = Digest::of(&fields(&[(CONTENT_DIGEST, HELLO)])).unwrap();
    assert!(hello.fits(b"hello") && !hello.fits(b"hello "));
    assert_eq!(
        Digest::of(&fields(&[(REPR_DIGEST, HELLO)])),
        Some(hello.clone())
    );
    let zeros = format!("sha-256=:{}=:", "A".repeat(43));
    let both = fields(&[(REPR_DIGEST, &zeros), (CONTENT_DIGEST, HELLO)]);
    assert_eq!(Digest::of(&both), Some(hello.clone()));
    let long = format!("sha-512=:{}==:", "A".repeat(86));
    let lines = fields(&[(CONTENT_DIGEST, HELLO), (CONTENT_DIGEST, &long)]);
    assert_eq!(
        Digest::of(&lines),
        Some(Digest::Sha512(Box::new([0; 64]))),
        "two lines are one list"
    );
    let part = fields(&[(REPR_DIGEST, HELLO), (CONTENT_RANGE, "bytes 0-4/9")]);
    assert_eq!(Digest::of(&part), None, "a part is not the whole");
    let (shown, number) = (
        Keyed::new(&[1; 32], b"t"),
        |digest: &Digest, keyed: &Keyed| {
            let mut hasher = keyed.start();
            digest.put(&mut hasher);
            hasher.finish()
        },
    );
    let zero = Digest::Sha256([0; 32]);
    assert_ne!(number(&hello, &shown), number(&zero, &shown));
}

use crate::idempotency::mac::Keyed;

#[test]
fn what_is_no_digest_is_none() {
    for line in [
        "sha-256=:AAAA:",
        "sha-256=\"x\"",
        "sha-256",
        "md5=:AAAA:",
        "sha-256=(:AAAA:)",
        "???",
        "",
    ] {
        assert_eq!(
            Digest::of(&fields(&[(CONTENT_DIGEST, line)])),
            None,
            "{line}"
        );
    }
    assert_eq!(Digest::of(&HeaderMap::new()), None);
}
