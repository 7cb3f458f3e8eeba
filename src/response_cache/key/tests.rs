//! Keys of requests, by example and at random.

use super::*;

fn key(rules: &KeyRules, uri: &str, fields: &[(&'static str, &str)]) -> Vec<u8> {
    let mut request = http::Request::get(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    let mut request = request.body(()).unwrap();
    if let Some(uri) = rewritten(rules, request.uri()) {
        *request.uri_mut() = uri;
    }
    let own = rules.own_parts(&mut request);
    let poison = fields.iter().any(|(name, _)| is_poison(name));
    Key::of(rules, &request, request.uri(), &own, poison, None)
        .unwrap()
        .text()
        .to_vec()
}

#[test]
fn paths_and_queries_are_exact_bytes() {
    let none = KeyRules::new();
    let same = |a, b| key(&none, a, &[]) == key(&none, b, &[]);
    for other in ["/a/", "//a", "/A", "/%61", "/a?", "/a?x", "/a;x"] {
        assert!(!same("/a", other), "{other}");
    }
}

#[test]
fn hosts_are_lower_case_without_a_default_port_and_differ() {
    let none = KeyRules::new();
    let host = |host| key(&none, "/", &[("host", host)]);
    assert_eq!(host("A.test:80"), host("a.test"));
    assert_ne!(host("a.test"), host("b.test"));
    assert_ne!(host("a.test:81"), host("a.test"));
    assert_ne!(host("a.test"), key(&none, "/", &[]));
}

#[test]
fn poison_fields_make_keys_of_their_own() {
    let none = KeyRules::new();
    let plain = key(&none, "/", &[]);
    for name in [
        "x-forwarded-host",
        "x-original-url",
        "forwarded",
        "x-forwarded-prefix",
    ] {
        assert_ne!(key(&none, "/", &[(name, "evil")]), plain);
        assert_ne!(
            key(&none, "/", &[(name, "evil")]),
            key(&none, "/", &[(name, "other")])
        );
    }
}

#[test]
fn query_rules_rewrite_the_uri_stably() {
    let rewritten = |rules: &KeyRules, uri: &str| {
        let uri: Uri = uri.parse().unwrap();
        rewritten(rules, &uri).unwrap_or(uri).to_string()
    };
    let sorted = KeyRules::new().sort_query().ignore_query(TRACKING);
    assert_eq!(
        rewritten(&sorted, "/x?b=2&utm_a=1&a=1&b=1&gclid"),
        "/x?a=1&b=2&b=1"
    );
    assert_eq!(rewritten(&sorted, "/x?utm_source=1"), "/x");
    assert_eq!(
        rewritten(&KeyRules::new().only_query(["a"]), "http://h/x?b=1&a=2"),
        "http://h/x?a=2"
    );
    assert_eq!(rewritten(&KeyRules::new(), "/x?b=2&a=1"), "/x?b=2&a=1");
}

#[test]
fn one_cookie_and_one_header_select() {
    let rules = KeyRules::new()
        .cookie("theme")
        .header(HeaderName::from_static("x-lang"));
    let of = |cookie: &'static str| key(&rules, "/", &[("cookie", cookie)]);
    assert_eq!(of("id=1; theme=dark"), of("theme=dark; id=2"));
    assert_ne!(of("theme=dark"), of("theme=light"));
    assert_ne!(of("theme=dark; theme=light"), of("theme=dark"));
    assert_ne!(of("id=1"), of("theme="));
    assert_ne!(
        key(&rules, "/", &[("x-lang", "de")]),
        key(&rules, "/", &[("x-lang", "en")])
    );
}
