//! Tests of JSON by value; the oracle is another parser's idea of equality.

use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..3).prop_map(Value::from),
        "[ab\"\\\\\u{e9}]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map("[ab]{0,2}", inner, 0..3)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn documents_are_alike_exactly_when_another_parser_says_so(a in documents(), b in documents()) {
        let of = |value: &Value| Json::parse(value.to_string().as_bytes()).map(|json| json.canonical());
        let pretty = serde_json::to_vec_pretty(&a).unwrap();
        prop_assert_eq!(of(&a), Json::parse(&pretty).map(|json| json.canonical()));
        prop_assert_eq!(a == b, of(&a) == of(&b));
    }

    #[test]
    fn a_pointer_finds_what_another_implementation_finds(a in documents(), pointer in "(/[ab0-2~]{0,2}){0,3}") {
        let json = Json::parse(a.to_string().as_bytes()).unwrap();
        let theirs = a.pointer(&pointer).map(|found| Json::parse(found.to_string().as_bytes()).unwrap().canonical());
        prop_assert_eq!(json.at(&pointer).map(Json::canonical), theirs);
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "[\\[\\]{}\",:0-9eE+.\\-a-c\\\\ ]{0,60}") {
        let _ = Json::parse(&bytes);
        let _ = Json::parse(text.as_bytes());
    }
}

#[test]
fn spellings_of_one_number_are_one() {
    for (a, b) in [
        ("1", "1.0"),
        ("100", "1e2"),
        ("-0", "0"),
        ("0.50", "5E-1"),
        ("1e+2", "100.00"),
        ("-0.0e9", "0"),
    ] {
        assert_eq!(scalar(a.as_bytes()), scalar(b.as_bytes()), "{a} {b}");
    }
    for (a, b) in [("1", "-1"), ("1", "10"), ("0.1", "0.01"), ("1e2", "1e-2")] {
        assert_ne!(scalar(a.as_bytes()), scalar(b.as_bytes()), "{a} {b}");
    }
}

#[test]
fn numbers_beyond_all_bounds_keep_their_sign() {
    let huge = "e9".to_owned() + &"9".repeat(40);
    let of = |text: &str| Json::parse(text.as_bytes()).map(|json| json.canonical());
    assert_eq!(of(&format!("1{huge}")), of(&format!("1{huge}")));
    assert_ne!(of(&format!("1{huge}")), of(&format!("-1{huge}")));
}
