//! Tests of the record codec.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use proptest::prelude::*;

use super::*;
use crate::idempotency::content::{read_fields, write_fields};

fn head(state: State) -> Head {
    Head {
        state,
        at_lease_end: LeaseEnd::Indeterminate,
        nonce: Nonce([3; 16]),
        fence: Fence(1_893_456_000_000_001),
        fingerprint: Fingerprint {
            rule: 9,
            hash: [5; 32],
        },
        created: Timestamp::from_millis(1),
        lease_until: Timestamp::from_millis(2),
        expires_at: Timestamp::from_millis(3),
        read_at: Timestamp::from_millis(4),
    }
}

fn whole(content: &AnswerContent) -> Bytes {
    let mut bytes = head(content.state()).encode().to_vec();
    bytes.extend(content.encode());
    bytes.into()
}

fn fields() -> impl Strategy<Value = HeaderMap> {
    let value = (prop::collection::vec(any::<u8>(), 0..200), any::<bool>());
    let value = value.prop_filter_map("a value", |(bytes, is_sensitive)| {
        let mut value = HeaderValue::from_bytes(&bytes).ok()?;
        value.set_sensitive(is_sensitive);
        Some(value)
    });
    prop::collection::vec(("x-[a-z]{1,3}", value), 0..6).prop_map(|pairs| {
        let mut fields = HeaderMap::new();
        for (name, value) in pairs {
            fields.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value);
        }
        fields
    })
}

/// What `==` of two values does not see.
fn sensitive(fields: &HeaderMap) -> Vec<bool> {
    fields.values().map(HeaderValue::is_sensitive).collect()
}

proptest! {
    #[test]
    fn an_answer_is_read_as_it_was_written(
        code in 100..1_000_u16, fields in fields(), trailers in prop::option::of(fields()), body in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let status = StatusCode::from_u16(code).unwrap();
        let stored = StoredAnswer { status, fields, body: body.into(), trailers };
        let bytes = whole(&AnswerContent::Full(Arc::new(stored.clone())));
        let record = Record::decode(&bytes, Timestamp::from_millis(4));
        prop_assert_eq!(record.head, head(State::Answered));
        let Content::Full(read) = record.content else { panic!("{record:?}") };
        prop_assert_eq!(&*read, &stored);
        prop_assert_eq!(sensitive(&read.fields), sensitive(&stored.fields));
        prop_assert_eq!(read.trailers.as_ref().map(sensitive), stored.trailers.as_ref().map(sensitive));
        // No copy: the body is a slice of what was read.
        prop_assert!(read.body.is_empty() || bytes.as_ptr_range().contains(&read.body.as_ptr()));
    }

    #[test]
    fn damage_is_unreadable_or_read_but_never_a_panic(at in 0..400_usize, byte in any::<u8>(), cut in 0..400_usize, fields in fields()) {
        let stored = StoredAnswer { status: StatusCode::OK, fields, body: Bytes::from_static(b"body"), trailers: None };
        let mut bytes = whole(&AnswerContent::Full(Arc::new(stored))).to_vec();
        let length = bytes.len();
        bytes[at % length] = byte;
        let _ = Record::decode(&bytes.clone().into(), Timestamp::EPOCH);
        bytes.truncate(cut % length);
        let cut = Record::decode(&bytes.into(), Timestamp::EPOCH);
        prop_assert!(matches!(cut.content, Content::Unreadable), "a cut record is never an answer");
    }
}

#[test]
fn fields_are_written_as_ever_and_a_sensitive_one_behind_a_colon() {
    let mut fields = HeaderMap::new();
    fields.insert("x-a", HeaderValue::from_static("1"));
    let mut secret = HeaderValue::from_static("2");
    secret.set_sensitive(true);
    fields.insert("x-b", secret);
    let mut out = Vec::new();
    write_fields(&mut out, &fields);
    assert_eq!(out, b"\x02\x03x-a\x011\x04:x-b\x012");
    let read = read_fields(&mut Bytes::from(out)).unwrap();
    assert_eq!(sensitive(&read), [false, true]);
    assert!(read_fields(&mut Bytes::from_static(b"\x01\x01:\x00")).is_none());
}

#[test]
fn the_head_has_84_bytes_in_the_order_of_the_scripts() {
    let bytes = head(State::Claimed).encode();
    assert_eq!((bytes.len(), &bytes[..4]), (HEAD_BYTES, &[1, 1, 2, 9][..]));
    assert_eq!(
        (&bytes[4..20], &bytes[28..60]),
        (&[3; 16][..], &[5; 32][..])
    );
    assert_eq!(bytes[20..28], 1_893_456_000_000_001_u64.to_be_bytes());
    assert_eq!(bytes[60..], [1_u64, 2, 3].map(u64::to_be_bytes).concat());
}

#[test]
fn a_tombstone_is_read_as_it_was_written_and_another_version_is_not() {
    let left = Tombstone {
        status: StatusCode::ACCEPTED,
        fields: HeaderMap::new(),
        reason: TombstoneReason::BodyFailed,
    };
    let bytes = whole(&AnswerContent::Tombstone(Arc::new(left.clone())));
    let Content::Tombstone(read) = Record::decode(&bytes, Timestamp::EPOCH).content else {
        panic!()
    };
    assert_eq!(*read, left);
    for (at, byte) in [(0, 2), (0, 0), (1, 0), (1, 4), (2, 0), (2, 3)] {
        let mut bytes = bytes.to_vec();
        bytes[at] = byte;
        let record = Record::decode(&bytes.into(), Timestamp::EPOCH);
        assert!(matches!(record.content, Content::Unreadable), "{at} {byte}");
    }
}

#[test]
fn an_id_is_written_as_two_words_and_read_back() {
    let id = RecordId::from_bytes(std::array::from_fn(|n| n as u8));
    let text = id.to_string();
    assert_eq!((text.len(), text.parse()), (45, Ok(id)));
    for bad in [
        "",
        ":",
        &text[1..],
        &format!("{text}x"),
        &text.replace(':', ""),
    ] {
        assert_eq!(bad.parse::<RecordId>(), Err(NotARecordId));
    }
}
