//! An answer in little room, as the memory store keeps it: a map of fields is mostly empty places.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::content::{decode_tombstone, read_text};
use super::record::{AnswerContent, Content, State};

/// Status, fields and trailers as text; of most answers they lie in the record's own memory. The body is a copy: what came
/// over a wire is a slice of a buffer many times its size, which it would keep alive uncounted.
pub(super) struct Packed {
    text: SmallVec<[u8; INLINE]>,
    body: Bytes,
    is_whole: bool,
}

const INLINE: usize = 54;
/// What an allocation costs beside its bytes.
const ALLOCATION: usize = 16;

impl Packed {
    /// Packs an answer, or what is left of one.
    pub(super) fn of(content: &AnswerContent) -> Box<Self> {
        let mut text = Vec::with_capacity(256);
        content.write_text(&mut text);
        let (body, is_whole) = match content {
            AnswerContent::Full(answer) => (Bytes::copy_from_slice(&answer.body), true),
            AnswerContent::Tombstone(_) => (Bytes::new(), false),
        };
        Box::new(Self {
            text: SmallVec::from_slice(&text),
            body,
            is_whole,
        })
    }

    /// Unpacks it.
    pub(super) fn content(&self) -> Content {
        let mut text = Bytes::copy_from_slice(&self.text);
        let content = if self.is_whole {
            read_text(&mut text).map(|mut answer| {
                answer.body = self.body.clone();
                Content::Full(Arc::new(answer))
            })
        } else {
            decode_tombstone(text).map(|left| Content::Tombstone(Arc::new(left)))
        };
        content.unwrap_or(Content::Unreadable)
    }

    /// The state of a record that holds this.
    pub(super) const fn state(&self) -> State {
        if self.is_whole {
            State::Answered
        } else {
            State::Tombstone
        }
    }

    /// The bytes it accounts for.
    pub(super) fn weight(&self) -> usize {
        let spilled = if self.text.spilled() {
            self.text.capacity() + ALLOCATION
        } else {
            0
        };
        size_of::<Self>() + ALLOCATION + spilled + self.body.len()
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, StatusCode};

    use super::*;
    use crate::idempotency::record::{StoredAnswer, Tombstone, TombstoneReason};

    fn fields(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            fields.append(*name, HeaderValue::from_bytes(value).unwrap());
        }
        fields
    }

    #[test]
    fn an_answer_comes_out_as_it_went_in_whatever_its_length() {
        let long = vec![b'v'; 300];
        for lines in [
            vec![],
            vec![("content-type", &b"application/json"[..])],
            vec![
                ("link", b"<a>"),
                ("x-own", b"\xff\x80"),
                ("link", b""),
                ("location", &long),
            ],
        ] {
            for trailers in [None, Some(fields(&[("x-sum", b"1")]))] {
                let answer = StoredAnswer {
                    status: StatusCode::from_u16(299).unwrap(),
                    fields: fields(&lines),
                    body: Bytes::from_static(b"body"),
                    trailers,
                };
                let packed = Packed::of(&AnswerContent::Full(Arc::new(answer.clone())));
                let Content::Full(found) = packed.content() else {
                    panic!("not whole");
                };
                assert_eq!((&*found, packed.state()), (&answer, State::Answered));
                assert_ne!(found.body.as_ptr(), answer.body.as_ptr(), "kept apart");
            }
            let left = Tombstone {
                status: StatusCode::CREATED,
                fields: fields(&lines),
                reason: TombstoneReason::Streamed,
            };
            let packed = Packed::of(&AnswerContent::Tombstone(Arc::new(left.clone())));
            let Content::Tombstone(found) = packed.content() else {
                panic!("whole");
            };
            assert_eq!((&*found, packed.state()), (&left, State::Tombstone));
        }
    }

    #[test]
    fn the_usual_answer_takes_one_small_allocation() {
        let answer = StoredAnswer {
            status: StatusCode::CREATED,
            fields: fields(&[("content-type", b"application/json")]),
            body: Bytes::from_static(b"{}"),
            trailers: None,
        };
        let packed = Packed::of(&AnswerContent::Full(Arc::new(answer)));
        assert!(!packed.text.spilled());
        assert!(packed.weight() <= 128 + 2, "{}", packed.weight());
    }
}
