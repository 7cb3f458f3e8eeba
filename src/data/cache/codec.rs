//! Records: a version, flags, the schema's number, then JSON.

use serde::Serialize;
use serde::de::DeserializeOwned;

const VERSION: u8 = 1;
const ABSENT: u8 = 1;
const HEAD: usize = 6;

/// Writes a value, or that there is none.
pub(super) fn encode<V: Serialize>(
    value: Option<&V>,
    schema: u32,
) -> Result<Vec<u8>, serde_json::Error> {
    let flags = if value.is_none() { ABSENT } else { 0 };
    let mut bytes = vec![VERSION, flags];
    bytes.extend(schema.to_be_bytes());
    if let Some(value) = value {
        serde_json::to_writer(&mut bytes, value)?;
    }
    Ok(bytes)
}

/// Reads a record: `None` for what cannot be read, `Some(None)` where it says that there is no value.
pub(super) fn decode<V: DeserializeOwned>(bytes: &[u8], schema: u32) -> Option<Option<V>> {
    let (head, json) = bytes.split_at_checked(HEAD)?;
    if head[0] != VERSION || head[2..] != schema.to_be_bytes() {
        return None;
    }
    match head[1] {
        ABSENT if json.is_empty() => Some(None),
        0 => serde_json::from_slice(json).ok().map(Some),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn every_value_comes_back_as_it_was_and_none_is_not_null() {
        for value in [json!("true"), json!(true), json!(""), json!(0), json!(null)] {
            let record = encode(Some(&value), 7).unwrap();
            assert_eq!(decode::<Value>(&record, 7), Some(Some(value)));
        }
        let absent = encode::<Value>(None, 7).unwrap();
        assert_eq!(decode::<Value>(&absent, 7), Some(None));
    }

    #[test]
    fn foreign_cut_and_other_schemas_are_misses() {
        let record = encode(Some(&"text"), 1).unwrap();
        assert_eq!(decode::<String>(&record, 2), None);
        for end in 0..record.len() {
            assert_eq!(decode::<String>(&record[..end], 1), None);
        }
        assert_eq!(decode::<u32>(&record, 1), None);
    }
}
