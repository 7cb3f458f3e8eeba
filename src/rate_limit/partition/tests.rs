//! Partitions and their keys, by example and at random.

use super::*;

fn key(text: &str, prefix: u8) -> PartitionKey {
    let address: IpAddr = text.parse().unwrap();
    Segment::address(address, prefix).into()
}

#[test]
fn ipv6_counts_by_its_prefix_and_mapped_ipv4_as_ipv4() {
    for (prefix, same, other) in [
        (32, "2001:db8:ffff::1", "2001:db9::1"),
        (48, "2001:db8:0:ffff::1", "2001:db8:1::1"),
        (56, "2001:db8:0:ff::1", "2001:db8:0:100::1"),
        (63, "2001:db8:0:1::1", "2001:db8:0:2::1"),
        (64, "2001:db8::ffff:1", "2001:db8:0:1::1"),
        (128, "2001:db8::1", "2001:db8::2"),
    ] {
        assert_eq!(key("2001:db8::1", prefix), key(same, prefix), "/{prefix}");
        assert_ne!(key("2001:db8::1", prefix), key(other, prefix), "/{prefix}");
    }
    assert_eq!(key("::ffff:192.0.2.1", 64), key("192.0.2.1", 64));
    assert_ne!(key("::ffff:192.0.2.1", 64), key("::ffff:192.0.2.2", 64));
}

#[test]
fn a_caller_s_address_is_cut_as_the_layer_cuts_it() {
    let address: IpAddr = "2001:db8::7:1".parse().unwrap();
    let partition = Partition::client_ip().ipv6_prefix(48);
    assert_eq!(partition.normalize(address.into()), key("2001:db8::", 48));
}

#[test]
fn keys_carry_no_text_and_differ_by_kind_and_spelling() {
    let keys = [
        PartitionKey::from("a.b@x"),
        PartitionKey::from("a_b@x"),
        PartitionKey::from("192.0.2.1"),
        key("192.0.2.1", 64),
        PartitionKey::from(()),
        PartitionKey::all([PartitionKey::from("a.b@x"), ().into()]),
    ];
    let texts: std::collections::HashSet<_> = keys.iter().map(PartitionKey::text).collect();
    assert_eq!(texts.len(), keys.len());
    assert!(texts.iter().all(|text| !text.contains("a.b")));
    assert!(!format!("{:?}", keys[3]).contains("192"));
}

#[test]
fn of_an_authorization_field_only_the_bearer_token_counts() {
    for (value, token) in [
        ("Bearer abc", Some("abc")),
        ("bearer  abc ", Some("abc")),
        ("Basic abc", None),
        ("Bearer ", None),
        ("Bear", None),
    ] {
        assert_eq!(
            credential(&AUTHORIZATION, value.as_bytes()),
            token.map(str::as_bytes),
            "{value}"
        );
    }
}

#[test]
fn an_empty_field_names_nobody() {
    let parts = |value: &'static str| {
        let request = http::Request::builder().header("x-key", value).body(());
        request.unwrap().into_parts().0
    };
    let of = |partition: Partition, value| {
        let parts = parts(value);
        let found = Found {
            head: View::from(&parts),
            client: Some("192.0.2.1".parse().unwrap()),
            principal: None,
        };
        let mut key = PartitionKey::empty();
        assert_eq!(partition.find(&found, &mut key), Keyed::Key);
        key
    };
    let by_address = key("192.0.2.1", 64);
    for value in ["", " "] {
        assert_eq!(of(Partition::header("x-key"), value), by_address);
        assert_eq!(of(Partition::api_key("x-key"), value), by_address);
    }
    assert_eq!(
        of(Partition::api_key("x-key"), "k"),
        PartitionKey::from("k")
    );
}
