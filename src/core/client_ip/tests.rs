//! The spoof matrix: who is believed about an address, and in which spellings.

use super::*;
use http::{HeaderMap, HeaderName, HeaderValue};

fn resolve(proxies: &TrustedProxies, peer: &str, lines: &[(&'static str, &str)]) -> String {
    let mut extensions = Extensions::new();
    extensions.insert(PeerAddr(SocketAddr::new(peer.parse().unwrap(), 40_000)));
    let mut headers = HeaderMap::new();
    for (name, line) in lines {
        headers.append(
            HeaderName::from_static(name),
            HeaderValue::from_str(line).unwrap(),
        );
    }
    proxies.resolve(&headers, &extensions).unwrap().to_string()
}

fn xff(proxies: &TrustedProxies, lines: &[&str]) -> String {
    let lines: Vec<_> = lines
        .iter()
        .map(|line| ("x-forwarded-for", *line))
        .collect();
    resolve(proxies, "10.0.0.9", &lines)
}

fn networks() -> TrustedProxies {
    TrustedProxies::cidrs(["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()))
}

#[test]
fn nobody_is_trusted_by_default() {
    assert_eq!(xff(&TrustedProxies::none(), &["1.1.1.1"]), "10.0.0.9");
    assert_eq!(xff(&TrustedProxies::hops(0), &["1.1.1.1"]), "10.0.0.9");
}

#[test]
fn hops_count_from_the_peer_over_all_lines() {
    let (one, two) = (TrustedProxies::hops(1), TrustedProxies::hops(2));
    for (lines, by_one, by_two) in [
        (&[][..], "10.0.0.9", "10.0.0.9"),
        (&["1.1.1.1"], "1.1.1.1", "1.1.1.1"),
        (&["6.6.6.6, 1.1.1.1"], "1.1.1.1", "6.6.6.6"),
        (&["6.6.6.6", "1.1.1.1"], "1.1.1.1", "6.6.6.6"),
        (&["6.6.6.6, 7.7.7.7", "1.1.1.1"], "1.1.1.1", "7.7.7.7"),
        (&["garbage"], "10.0.0.9", "10.0.0.9"),
        (&["1.1.1.1, unknown"], "10.0.0.9", "1.1.1.1"),
        (&["1.1.1.1,, "], "1.1.1.1", "1.1.1.1"),
    ] {
        assert_eq!(xff(&one, lines), by_one, "{lines:?}");
        assert_eq!(xff(&two, lines), by_two, "{lines:?}");
    }
}

#[test]
fn networks_are_walked_to_the_first_that_is_not_trusted() {
    for (lines, client) in [
        (&[][..], "10.0.0.9"),
        (&["1.1.1.1"], "1.1.1.1"),
        (&["6.6.6.6, 1.1.1.1, 10.1.1.1"], "1.1.1.1"),
        (&["6.6.6.6", "1.1.1.1", "10.1.1.1, 10.2.2.2"], "1.1.1.1"),
        (&["10.3.3.3, 10.1.1.1"], "10.3.3.3"),
        (&["1.1.1.1, unknown, 10.1.1.1"], "10.1.1.1"),
        (&["1.1.1.1, _hidden"], "10.0.0.9"),
        (&["2001:db8::1, fd00::1"], "2001:db8::1"),
        (&["::ffff:10.1.1.1"], "10.1.1.1"),
    ] {
        assert_eq!(xff(&networks(), lines), client, "{lines:?}");
    }
    let lines = [("x-forwarded-for", "1.1.1.1")];
    assert_eq!(resolve(&networks(), "9.9.9.9", &lines), "9.9.9.9");
    assert_eq!(resolve(&networks(), "::ffff:10.0.0.9", &lines), "1.1.1.1");
}

#[test]
fn a_walk_ends_after_32_items() {
    let line = format!("6.6.6.6, {}", vec!["10.1.1.1"; 32].join(", "));
    assert_eq!(xff(&networks(), &[&line]), "10.1.1.1");
}

#[test]
fn items_are_read_in_every_usual_spelling() {
    for (item, read) in [
        ("192.0.2.1", Some("192.0.2.1")),
        ("192.0.2.1:8080", Some("192.0.2.1")),
        ("2001:db8::1", Some("2001:db8::1")),
        ("[2001:db8::1]", Some("2001:db8::1")),
        ("[2001:db8::1]:8080", Some("2001:db8::1")),
        ("fe80::1%eth0", Some("fe80::1")),
        ("::ffff:192.0.2.1", Some("192.0.2.1")),
        ("192.0.2.1:http", None),
        ("192.0.2.1:99999", None),
        ("[2001:db8::1", None),
        ("[2001:db8::1]x", None),
        ("[192.0.2.1]:80", None),
        ("192.0.2", None),
        ("unknown", None),
        ("_obfuscated", None),
    ] {
        assert_eq!(
            xff(&TrustedProxies::hops(1), &[item]),
            read.unwrap_or("10.0.0.9"),
            "{item}"
        );
    }
}

#[test]
fn forwarded_is_read_as_rfc_7239_writes_it() {
    let proxies = TrustedProxies::hops(1).forwarded();
    for (line, client) in [
        ("for=192.0.2.1", "192.0.2.1"),
        ("For=\"192.0.2.1:80\";proto=https;by=10.0.0.1", "192.0.2.1"),
        ("proto=http; for=\"[2001:db8::1]:4711\"", "2001:db8::1"),
        ("for=6.6.6.6, for=192.0.2.1", "192.0.2.1"),
        ("for=\"6.6.6.6, for=7.7.7.7\", for=192.0.2.1", "192.0.2.1"),
        ("for=unknown", "10.0.0.9"),
        ("by=192.0.2.1", "10.0.0.9"),
    ] {
        assert_eq!(
            resolve(&proxies, "10.0.0.9", &[("forwarded", line)]),
            client,
            "{line}"
        );
    }
}

#[test]
fn an_open_quote_swallows_nothing_that_a_proxy_appends() {
    let proxies = TrustedProxies::hops(1).forwarded();
    for forged in ["for=\"", "for=\"6.6.6.6", "for=\"\\\"", "a=\"b\", for=\"x"] {
        for appended in ["for=192.0.2.1", "for=\"192.0.2.1\""] {
            let line = format!("{forged}, {appended}");
            assert_eq!(
                resolve(&proxies, "10.0.0.9", &[("forwarded", &line)]),
                "192.0.2.1",
                "{line}"
            );
        }
    }
}

#[test]
fn what_a_proxy_quotes_for_a_client_names_no_other_client() {
    let (hops, networks) = (TrustedProxies::hops(1), networks());
    // The client chose its Host, and what stood in the field before.
    for host in [
        "x;for=6.6.6.6;y",
        "x, for=6.6.6.6",
        "x, for=6.6.6.6, y",
        "\\\";for=6.6.6.6;y=\\\"",
        "\\\", for=6.6.6.6, \\\"",
        "a\\\"b",
        "\\\\",
    ] {
        for before in [
            "",
            "for=6.6.6.6;x=\", ",
            "for=\", ",
            "for=\"\\, ",
            "for=6.6.6.6, ",
        ] {
            for own in [
                format!("for=192.0.2.1;host=\"{host}\""),
                format!("host=\"{host}\";for=192.0.2.1"),
                format!("by=10.0.0.9;host=\"{host}\";for=\"192.0.2.1:80\";proto=http"),
            ] {
                let line = format!("{before}{own}");
                for proxies in [&hops, &networks] {
                    let proxies = proxies.clone().forwarded();
                    let found = resolve(&proxies, "10.0.0.9", &[("forwarded", &line)]);
                    assert_eq!(found, "192.0.2.1", "{line}");
                }
            }
        }
    }
}

#[test]
fn an_address_that_is_already_known_wins_and_without_a_peer_there_is_none() {
    let mut extensions = Extensions::new();
    let mut headers = HeaderMap::new();
    headers.insert("x-forwarded-for", HeaderValue::from_static("6.6.6.6"));
    let proxies = TrustedProxies::hops(1);
    assert_eq!(proxies.resolve(&headers, &extensions), None);
    extensions.insert(ClientIp("192.0.2.1".parse().unwrap()));
    let found = proxies.resolve(&headers, &extensions).unwrap();
    assert_eq!(found.to_string(), "192.0.2.1");
}
