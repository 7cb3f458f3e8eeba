//! Records: a version, flags, the schema's number, then JSON; or its size and the JSON compressed.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fill::LARGEST;

const VERSION: u8 = 1;
const ABSENT: u8 = 1;
const LZ4: u8 = 2;
const HEAD: usize = 6;
/// Room for a small record without growing.
const FIRST: usize = 256;

/// How values are written.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    pub(super) schema: u32,
    /// From how many bytes of JSON on it is compressed.
    pub(super) compress_over: Option<usize>,
}

/// Writes a value, or that there is none; `None` for one that is too large.
pub(super) fn encode<V: Serialize>(
    value: Option<&V>,
    shape: Shape,
) -> Result<Option<Vec<u8>>, serde_json::Error> {
    let flags = if value.is_none() { ABSENT } else { 0 };
    let mut bytes = Vec::with_capacity(FIRST);
    bytes.extend([VERSION, flags]);
    bytes.extend(shape.schema.to_be_bytes());
    if let Some(value) = value {
        serde_json::to_writer(&mut bytes, value)?;
    }
    if bytes.len() > LARGEST {
        return Ok(None);
    }
    if shape
        .compress_over
        .is_some_and(|most| bytes.len() > HEAD + most)
    {
        bytes = compressed(bytes);
    }
    Ok(Some(bytes))
}

#[cfg(feature = "lz4")]
fn compressed(plain: Vec<u8>) -> Vec<u8> {
    let json = &plain[HEAD..];
    let block = lz4_flex::block::compress(json);
    if block.len() + 4 >= json.len() {
        return plain;
    }
    let mut bytes = plain[..HEAD].to_vec();
    bytes[1] |= LZ4;
    // Not above `LARGEST`.
    bytes.extend((json.len() as u32).to_be_bytes());
    bytes.extend(block);
    bytes
}

#[cfg(not(feature = "lz4"))]
fn compressed(plain: Vec<u8>) -> Vec<u8> {
    plain
}

/// Reads a record: `None` for what cannot be read, `Some(None)` where it says that there is no value.
pub(super) fn decode<V: DeserializeOwned>(bytes: &[u8], schema: u32) -> Option<Option<V>> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    if head[0] != VERSION || head[2..] != schema.to_be_bytes() {
        return None;
    }
    match head[1] {
        ABSENT if rest.is_empty() => Some(None),
        0 => serde_json::from_slice(rest).ok().map(Some),
        LZ4 => {
            let json = expanded(rest)?;
            serde_json::from_slice(&json).ok().map(Some)
        }
        _ => None,
    }
}

/// What a record says of its size is checked before anything is allocated, and no more than that is written.
#[cfg(feature = "lz4")]
fn expanded(bytes: &[u8]) -> Option<Vec<u8>> {
    let (size, block) = bytes.split_first_chunk()?;
    let size = u32::from_be_bytes(*size) as usize;
    if size > LARGEST {
        return None;
    }
    let json = lz4_flex::block::decompress(block, size).ok()?;
    (json.len() == size).then_some(json)
}

#[cfg(not(feature = "lz4"))]
fn expanded(_: &[u8]) -> Option<Vec<u8>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn plain(schema: u32) -> Shape {
        Shape {
            schema,
            compress_over: None,
        }
    }

    fn record(value: Option<&Value>, shape: Shape) -> Vec<u8> {
        encode(value, shape).unwrap().unwrap()
    }

    #[test]
    fn every_value_comes_back_as_it_was_and_none_is_not_null() {
        for value in [
            json!("true"),
            json!(true),
            json!([1]),
            json!(""),
            json!(0),
            json!(null),
        ] {
            let bytes = record(Some(&value), plain(7));
            assert_eq!(decode::<Value>(&bytes, 7), Some(Some(value)));
        }
        let absent = record(None, plain(7));
        assert_eq!(decode::<Value>(&absent, 7), Some(None));
    }

    #[test]
    fn foreign_cut_and_other_schemas_are_misses() {
        let bytes = record(Some(&json!("text")), plain(1));
        assert_eq!(decode::<String>(&bytes, 2), None);
        for end in 0..bytes.len() {
            assert_eq!(decode::<String>(&bytes[..end], 1), None);
        }
        assert_eq!(decode::<u32>(&bytes, 1), None);
    }

    #[test]
    fn a_value_over_a_mebibyte_is_not_written() {
        assert!(
            encode(Some(&"x".repeat(LARGEST)), plain(0))
                .unwrap()
                .is_none()
        );
    }

    #[cfg(feature = "lz4")]
    #[test]
    fn compressed_values_come_back_and_bombs_are_misses() {
        let shape = Shape {
            schema: 3,
            compress_over: Some(100),
        };
        let long = json!("tower".repeat(1_000));
        let bytes = record(Some(&long), shape);
        assert!(bytes.len() < 200, "{}", bytes.len());
        assert_eq!(decode::<Value>(&bytes, 3), Some(Some(long)));
        assert_eq!(record(Some(&json!("short")), shape)[1], 0);
        for end in 0..bytes.len() {
            assert_eq!(decode::<Value>(&bytes[..end], 3), None);
        }
        for size in [u32::MAX, LARGEST as u32 + 1, 5_003, 5_001, 1, 0] {
            let mut lie = bytes.clone();
            lie[HEAD..HEAD + 4].copy_from_slice(&size.to_be_bytes());
            assert_eq!(decode::<Value>(&lie, 3), None, "{size}");
        }
    }
}
