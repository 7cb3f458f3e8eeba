//! Tests of derived keys; the oracle compares the normalised values themselves.

use http::Request;
use proptest::prelude::*;

use super::*;
use crate::idempotency::mac::Keyed;

fn derive(key: &DerivedKey, content_type: &str, body: &str) -> Result<[u8; 32], Box<str>> {
    let request = Request::post("/book").header("content-type", content_type);
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let mut hasher = Keyed::new(&[1; 32], b"test").start();
    key.hash(
        &mut hasher,
        &parts,
        &Bytes::copy_from_slice(body.as_bytes()),
    )?;
    Ok(hasher.finish())
}

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";

fn booking() -> DerivedKey {
    DerivedKey::fields("book")
        .text("event")
        .email("mail")
        .instant("start")
}

proptest! {
    #[test]
    fn different_values_make_different_keys(a in ("[a._+:|@ ]{0,4}", "[a._+:|@ ]{0,4}"), b in ("[a._+:|@ ]{0,4}", "[a._+:|@ ]{0,4}")) {
        let key = DerivedKey::fields("k").text("x").text("y");
        let of = |(x, y): &(String, String)| {
            let body = form_urlencoded::Serializer::new(String::new()).append_pair("x", x).append_pair("y", y).finish();
            derive(&key, FORM, &body).ok()
        };
        let normal = |(x, y): &(String, String)| {
            let (x, y) = (x.trim().to_owned(), y.trim().to_owned());
            (!x.is_empty() && !y.is_empty()).then_some((x, y))
        };
        let (one, two) = (of(&a), of(&b));
        prop_assert_eq!((one.is_some(), two.is_some()), (normal(&a).is_some(), normal(&b).is_some()));
        prop_assert_eq!(normal(&a) == normal(&b), one == two);
    }
}

#[test]
fn addresses_that_look_alike_are_not_and_spellings_of_one_value_are() {
    let of = |mail: &str, start: &str| {
        let body = format!("{{\"event\":\" e1 \",\"mail\":\"{mail}\",\"start\":\"{start}\"}}");
        derive(&booking(), JSON, &body).unwrap()
    };
    let (z, offset) = ("2030-01-02T10:00:00Z", "2030-01-02T12:00:00.000+02:00");
    assert_eq!(of("A.b@X", z), of(" a.B@x ", offset));
    let keys = ["a.b@x", "a_b@x", "a+b@x", "ab@x"].map(|mail| of(mail, z));
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(keys.iter().position(|other| other == key), Some(n));
    }
    assert_ne!(of("a@x", z), of("a@x", "2030-01-02T10:00:01Z"));
    let form = "event=e1&mail=a.b%40x&start=2030-01-02T10:00:00Z";
    assert_eq!(
        derive(&booking(), FORM, form).unwrap(),
        of("a.b@x", z),
        "form and JSON alike"
    );
}

#[test]
fn what_is_missing_repeated_or_no_scalar_is_named() {
    let named = |content_type, body| derive(&booking(), content_type, body).unwrap_err();
    assert_eq!(&*named(FORM, "event=1&start=x"), "mail");
    assert_eq!(&*named(FORM, "event=1&event=1&mail=a"), "event");
    assert_eq!(&*named(FORM, "event=+%09&mail=a"), "event", "nothing in it");
    assert_eq!(&*named(JSON, r#"{"event":"1","mail":" "}"#), "mail");
    let by = DerivedKey::by("own", |_, body| Some(body.to_vec()));
    assert_eq!(&*derive(&by, FORM, "").unwrap_err(), "own");
    assert!(derive(&by, FORM, "x").is_ok());
    assert_eq!(
        &*named(FORM, "event=%FF&mail=a&start=2030-01-02T10:00:00Z"),
        "event"
    );
    assert_eq!(&*named(JSON, r#"{"event":1,"event":2}"#), "event");
    assert_eq!(&*named(JSON, r#"{"event":1,"mail":null}"#), "mail");
    assert_eq!(&*named(JSON, r#"{"event":[1]}"#), "event");
    assert_eq!(
        &*named(JSON, r#"{"event":1,"mail":"a","start":"tomorrow"}"#),
        "start"
    );
    assert_eq!(&*named(JSON, "not json"), "event");
    assert_eq!(&*named("text/plain", "event=1"), "event");
}
