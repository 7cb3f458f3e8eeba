//! Tests of fingerprints; the oracle compares the requests themselves.

use http::Request;
use proptest::prelude::*;

use super::*;

fn print_of(rule: &FingerprintRule, request: &Request<Bytes>) -> [u8; 32] {
    let (parts, body) = request.clone().into_parts();
    rule.of_request(&Keyed::new(&[1; 32], b"test"), rule.tag(), &parts, &body)
        .hash
}

fn request(target: &str, content_type: &str, body: &[u8]) -> Request<Bytes> {
    let request = Request::post(target).header("content-type", content_type);
    request.body(Bytes::copy_from_slice(body)).unwrap()
}

/// Parameters by name, those of one name in their order.
fn parameters(query: &str) -> Vec<(String, Vec<String>)> {
    let mut names: Vec<(String, Vec<String>)> = Vec::new();
    for parameter in query.split('&') {
        let name = parameter.split('=').next().unwrap_or_default();
        match names.iter_mut().find(|(own, _)| own == name) {
            Some((_, values)) => values.push(parameter.to_owned()),
            None => names.push((name.to_owned(), vec![parameter.to_owned()])),
        }
    }
    names.sort();
    names
}

proptest! {
    #[test]
    fn two_requests_hash_alike_exactly_when_they_are_the_same(
        paths in ("/[ab]{0,2}", "/[ab]{0,2}"),
        queries in ("[ab=&]{0,5}", "[ab=&]{0,5}"),
        types in ("[ab]{0,2}", "[ab]{0,2}"),
        bodies in ("[ab]{0,2}", "[ab]{0,2}"),
    ) {
        let make = |path: &str, query: &str, kind: &str, body: &str| request(&format!("{path}?{query}"), kind, body.as_bytes());
        let one = make(&paths.0, &queries.0, &types.0, &bodies.0);
        let two = make(&paths.1, &queries.1, &types.1, &bodies.1);
        let same = paths.0 == paths.1 && types.0 == types.1 && bodies.0 == bodies.1
            && parameters(&queries.0) == parameters(&queries.1);
        let rule = FingerprintRule::bytes();
        prop_assert_eq!(same, print_of(&rule, &one) == print_of(&rule, &two));
    }
}

proptest! {
    /// Delimiters, case and percent-encoding: whatever was sent otherwise is another request.
    #[test]
    fn nothing_is_decoded_folded_or_joined(
        ones in prop::collection::vec(
            ("/[aA%61.;]{0,3}", "[aA%61=&+;]{0,4}", "[aA/; =]{0,3}", "[aA%61=&\r\n]{0,3}", 0_u8..2),
            2..8,
        ),
    ) {
        let mut seen: Vec<([u8; 32], _)> = Vec::new();
        for one in ones {
            let (path, query, kind, body, method) = &one;
            let mut made = request(&format!("{path}?{query}"), kind, body.as_bytes());
            if *method == 1 {
                *made.method_mut() = http::Method::PATCH;
            }
            let same = (path.clone(), parameters(query), kind.clone(), body.clone(), *method);
            let print = print_of(&FingerprintRule::bytes(), &made);
            for (other, what) in &seen {
                prop_assert_eq!(*other == print, *what == same, "{:?} and {:?}", what, same);
            }
            seen.push((print, same));
        }
    }
}

#[test]
fn a_multipart_retry_with_a_new_boundary_is_the_same_request() {
    let form = |boundary: &str, file: &str| {
        let body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n{file}\r\n--{boundary}\r\n\r\nsecond\r\n--{boundary}--\r\n"
        );
        request(
            "/upload",
            &format!("multipart/form-data; boundary={boundary}"),
            body.as_bytes(),
        )
    };
    let rule = FingerprintRule::bytes();
    let first = print_of(&rule, &form("xxYY", "one"));
    assert_eq!(first, print_of(&rule, &form("----other123", "one")));
    assert_ne!(first, print_of(&rule, &form("xxYY", "two")));
    // What only looks like a delimiter counts: the boundary of the first stands in the file of the second.
    assert_ne!(first, print_of(&rule, &form("zz", "one\r\n--xxYY")));
    assert_ne!(
        print_of(&rule, &form("zz", "a--zzb")),
        print_of(&rule, &form("yy", "a--yyb"))
    );
}

#[test]
fn chosen_fields_count_and_a_route_is_only_a_route() {
    let plain = request("/p?x=1", "a", b"1");
    let mut marked = plain.clone();
    marked
        .headers_mut()
        .insert("x-version", "2".parse().unwrap());
    let rule = FingerprintRule::bytes().header(HeaderName::from_static("x-version"));
    assert_ne!(print_of(&rule, &plain), print_of(&rule, &marked));
    let route = FingerprintRule::route();
    assert_eq!(
        print_of(&route, &plain),
        print_of(&route, &request("/p", "b", b"2"))
    );
    assert_ne!(
        print_of(&route, &plain),
        print_of(&route, &request("/q", "a", b"1"))
    );
    assert_ne!(FingerprintRule::bytes().tag(), route.tag());
}

#[test]
fn json_counts_by_value_and_pointers_choose_what_counts() {
    let json = |body: &str| request("/p", "application/json; charset=utf-8", body.as_bytes());
    let rule = FingerprintRule::json();
    let same = |a: &str, b: &str| print_of(&rule, &json(a)) == print_of(&rule, &json(b));
    assert!(same(
        r#"{"a":1,"b":[true,null]}"#,
        r#" {"b" : [ true , null ],"a":1.0e0}"#
    ));
    assert!(!same(r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#));
    let patch = request("/p", "application/merge-patch+json", b"{}");
    assert_ne!(
        print_of(&rule, &json("{}")),
        print_of(&rule, &patch),
        "one document, two meanings"
    );
    assert!(!same(r#"{"a":1}"#, r#"{"a":"1"}"#));
    assert!(
        !same("18446744073709551617", "18446744073709551618"),
        "no number is rounded"
    );
    assert!(
        !same(r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#),
        "duplicates count as bytes"
    );
    assert!(!same("{", "{ "), "so does what is no JSON");
    let deep = |spaces: &str| format!("{}{spaces}{}", "[".repeat(130), "]".repeat(130));
    assert!(!same(&deep(""), &deep(" ")), "and what is too deep");
    let some = FingerprintRule::json().include("/amount");
    let amount = |body: &str| print_of(&some, &json(body));
    assert_eq!(
        amount(r#"{"amount":5,"note":"a"}"#),
        amount(r#"{"note":"b","amount":5}"#)
    );
    assert_ne!(amount(r#"{"amount":5}"#), amount(r#"{"note":"b"}"#));
}
