//! Values as they lie in a store: a version, then JSON.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

const VERSION: u8 = 1;

/// Writes a value.
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, serde_json::Error> {
    let mut bytes = BytesMut::with_capacity(128).writer();
    bytes.get_mut().put_u8(VERSION);
    serde_json::to_writer(&mut bytes, value)?;
    Ok(bytes.into_inner().freeze())
}

/// Returns the bytes of a value, which bounds are about: the version is ours.
pub(crate) fn size(record: &[u8]) -> usize {
    record.len().saturating_sub(1)
}

/// Reads a value; `None` for another version, another shape, or what was cut off.
pub(crate) fn decode<T: DeserializeOwned>(record: &[u8]) -> Option<T> {
    serde_json::from_slice(json(record)?).ok()
}

/// Returns the JSON of a record.
pub(crate) fn json(record: &[u8]) -> Option<&[u8]> {
    match record.split_first() {
        Some((&VERSION, json)) => Some(json),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_value_comes_back_as_it_was() {
        for value in [
            json!("true"),
            json!(true),
            json!(42),
            json!(""),
            json!(0),
            json!(null),
            json!([]),
        ] {
            let record = encode(&value).unwrap();
            assert_eq!(decode::<Value>(&record), Some(value));
        }
    }

    #[test]
    fn foreign_and_cut_records_are_none() {
        let record = encode("text").unwrap();
        assert_eq!(decode::<String>(&record[..record.len() - 1]), None);
        assert_eq!(decode::<String>(b"\x02\"text\""), None);
        assert_eq!(decode::<u32>(&record), None);
        assert_eq!(decode::<String>(b""), None);
    }
}
