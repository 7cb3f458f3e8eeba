//! Tests of the key field, some against an independent parser.

use proptest::prelude::*;
use sfv::{BareItem, Parser};

use super::*;

fn read(format: KeyFormat, line: &[u8]) -> Option<Vec<u8>> {
    let line = HeaderValue::from_bytes(line).ok()?;
    format.read(&line).map(|key| key.as_bytes().to_vec())
}

/// What an independent parser of RFC 9651 makes of a String Item within our length.
fn by_sfv(line: &[u8]) -> Option<Vec<u8>> {
    let item: sfv::Item = Parser::new(line).parse().ok()?;
    match item.bare_item {
        BareItem::String(text) => {
            let text = text.as_str().as_bytes().to_vec();
            (1..=255).contains(&text.len()).then_some(text)
        }
        _ => None,
    }
}

#[track_caller]
fn check_like_sfv(line: &[u8]) {
    if HeaderValue::from_bytes(line).is_ok() {
        let shown = String::from_utf8_lossy(line);
        assert_eq!(read(KeyFormat::structured(), line), by_sfv(line), "{shown}");
    }
}

#[test]
fn all_item_types_escapes_padding_and_parameters_are_read_as_rfc_9651_says() {
    for line in [
        "\"k\"",
        "  \"k\"  ",
        "\"k\" x",
        "k",
        "1",
        "1.5",
        ":aGk=:",
        "?1",
        "@1",
        "%\"a\"",
        "(\"k\")",
        "\"\"",
        "\"a\\\"b\"",
        "\"a\\\\b\"",
        "\"a\\b\"",
        "\"a",
        "a\"",
        "\"k\";a",
        "\"k\"; a=1;b=?0",
        "\"k\";a=1.5",
        "\"k\";a=1.",
        "\"k\";a=1.2345",
        "\"k\";a=-0",
        "\"k\";a=-",
        "\"k\";a=\"x\"",
        "\"k\";a=tok/en:1",
        "\"k\";a=*t",
        "\"k\";a=:aGk=:",
        "\"k\";a=:aGk:",
        "\"k\";a=:a!k=:",
        "\"k\";a=?2",
        "\"k\";a=@17",
        "\"k\";a=@-17",
        "\"k\";a=@1.5",
        "\"k\";a=%\"f%c3%bc\"",
        "\"k\";a=%\"f%C3%BC\"",
        "\"k\";a=%\"%ff\"",
        "\"k\";A=1",
        "\"k\" ;a=1",
        "\"k\";",
        "\"k\";a=",
        "\"k\";*a=1",
        "\"k\";1a=1",
        "\"k\", \"l\"",
        "\"k\";a=1234567890123456",
        "\"k\";a=1;a=2",
        "\"k\";a=123456789012345",
        "\"k\";a=1234567890123.1",
        "\"k\";a=123456789012.123",
    ] {
        check_like_sfv(line.as_bytes());
    }
    check_like_sfv(b"\"caf\xc3\xa9\"");
    check_like_sfv(b"\t\"k\"");
    check_like_sfv(format!("\"{}\"", "k".repeat(255)).as_bytes());
    check_like_sfv(format!("\"{}\"", "k".repeat(256)).as_bytes());
}

proptest! {
    #[test]
    fn any_line_is_read_as_an_independent_parser_reads_it(line in "[ -~]{0,40}") {
        check_like_sfv(line.as_bytes());
    }

    #[test]
    fn any_string_item_with_parameters_is_read_as_an_independent_parser_reads_it(
        line in r#" {0,2}"([ -!#-\[\]-~]|\\"|\\\\|\\a){0,12}"( ?;[ ]?[a-c*][a-c0-9_.*-]{0,3}(=(-?[0-9]{1,17}(\.[0-9]{0,4})?|\?[0-2]|@-?[0-9.]{0,3}|"[ a\\]{0,3}"|[a-zA*:/%]{1,4}|:[a-zA-Z0-9+/=]{0,8}:|%"[a%cf0-9]{0,6}"))?){0,3} {0,2}"#
    ) {
        check_like_sfv(line.as_bytes());
    }

    #[test]
    fn a_quoted_and_a_bare_key_are_one_key(key in "[!#-+\\--~]{1,40}") {
        let quoted = format!("\"{}\"", key.replace('\\', "\\\\"));
        prop_assert_eq!(read(KeyFormat::lenient(), key.as_bytes()), Some(key.clone().into_bytes()));
        prop_assert_eq!(read(KeyFormat::lenient(), quoted.as_bytes()), Some(key.into_bytes()));
    }
}

#[test]
fn lengths_and_forms_are_bounded() {
    let lenient = KeyFormat::lenient();
    assert_eq!(read(lenient, &[b'k'; 255]).map(|key| key.len()), Some(255));
    assert_eq!(read(lenient, &[b'k'; 256]), None);
    assert_eq!(read(lenient.min_len(16), b"short"), None);
    for bad in [&b""[..], b"a,b", b"a b", b" a", b"a\"", b"\xff"] {
        assert_eq!(read(lenient, bad), None);
    }
    let uuid = b"8E03978E-40D5-43DD-BC93-6894A57F9324";
    assert_eq!(
        read(KeyFormat::uuid(), uuid),
        Some(uuid.to_ascii_lowercase())
    );
    assert_eq!(
        read(KeyFormat::uuid(), b"8e03978e-40d5-43dd-bc93-6894a57f932"),
        None
    );
    assert_eq!(
        read(KeyFormat::uuid(), b"8e03978e-40d5-43dd-bc93-6894a57f932g"),
        None
    );
}

#[test]
fn a_bare_key_is_visible_ascii_without_quote_and_comma() {
    for byte in 0..=u8::MAX {
        let line = [b'a', byte, b'a'];
        let plain = byte > b' ' && byte < 0x7F && byte != b'"' && byte != b',';
        let expected = plain.then(|| line.to_vec());
        assert_eq!(read(KeyFormat::lenient(), &line), expected, "{byte:#x}");
    }
}

#[test]
fn debug_does_not_show_a_key() {
    assert_eq!(format!("{:?}", ClientKey::from("secret")), "ClientKey(..)");
}
