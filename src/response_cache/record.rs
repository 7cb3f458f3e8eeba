//! Heads as bytes in a shared store: format 1.

use http::header::HeaderMap;
use http::{HeaderName, HeaderValue, StatusCode};

use super::entry::{EntryId, Flags, Head};
use super::fields::room;
use super::key::Text;
use super::stamps::Stamp;
use super::target::Target;
use super::vary::Names;

/// The first byte of an encoded head: its format.
const FORMAT: u8 = 1;
/// The second byte: how the body is coded; 0 is plain.
const PLAIN: u8 = 0;
/// Stands before the name of a field whose value is sensitive; no name begins so.
const SENSITIVE: u8 = b':';

/// Writes a head as bytes, format 1.
pub(super) fn encode(head: &Head) -> Vec<u8> {
    let mut out = vec![FORMAT, PLAIN];
    let numbers = [
        head.id.0,
        head.body_id.0,
        head.begun.0,
        head.at,
        head.received,
        head.initial_age,
        head.lifetime,
        head.refresh_after.unwrap_or(u64::MAX),
        head.stale_while_revalidate,
        head.stale_if_error.unwrap_or(u64::MAX),
        head.expires_at,
        u64::from(head.flags.0),
        u64::from(head.status.as_u16()),
    ];
    numbers
        .iter()
        .for_each(|number| out.extend_from_slice(&number.to_be_bytes()));
    put(&mut out, &head.key);
    put(&mut out, head.names.as_text().as_bytes());
    put(&mut out, &head.selection);
    // What the key says is worked out from it again.
    let targets: Vec<u8> = head
        .said
        .iter()
        .flat_map(|target| target.bits().to_be_bytes())
        .collect();
    put(&mut out, &targets);
    put_fields(&mut out, head.stored_fields());
    put_fields(
        &mut out,
        head.trailers.iter().flat_map(|fields| fields.iter()),
    );
    out
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&(length as u32).to_be_bytes());
}

fn put_fields<'a>(
    out: &mut Vec<u8>,
    fields: impl Iterator<Item = (&'a HeaderName, &'a HeaderValue)>,
) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let mut count = 0_u32;
    for (name, value) in fields {
        let (name, is_sensitive) = (name.as_str().as_bytes(), value.is_sensitive());
        put_length(out, name.len() + usize::from(is_sensitive));
        if is_sensitive {
            out.push(SENSITIVE);
        }
        out.extend_from_slice(name);
        put(out, value.as_bytes());
        count += 1;
    }
    out[start..start + 4].copy_from_slice(&count.to_be_bytes());
}

/// Reads a head; `None` for another format, another coding, or damage.
pub(super) fn decode(bytes: &[u8]) -> Option<Head> {
    let mut from = Reader(bytes.strip_prefix(&[FORMAT, PLAIN])?);
    let some = |number: u64| (number != u64::MAX).then_some(number);
    let mut head = Head {
        id: EntryId(from.number()?),
        body_id: EntryId(from.number()?),
        begun: Stamp(from.number()?),
        at: from.number()?,
        received: from.number()?,
        initial_age: from.number()?,
        lifetime: from.number()?,
        refresh_after: some(from.number()?),
        stale_while_revalidate: from.number()?,
        stale_if_error: some(from.number()?),
        expires_at: from.number()?,
        flags: Flags(u16::try_from(from.number()?).ok()?),
        status: StatusCode::from_u16(u16::try_from(from.number()?).ok()?).ok()?,
        key: Text::from_slice(from.take()?),
        names: Names::from_text(std::str::from_utf8(from.take()?).ok()?),
        selection: from.take()?.into(),
        ..Head::default()
    };
    let targets = from.take()?;
    head.said = targets
        .as_chunks()
        .0
        .iter()
        .map(|bits| Target::from_bits(u64::from_be_bytes(*bits)))
        .collect();
    head.fields = from.fields(room)?.into();
    let trailers = from.fields(HeaderMap::with_capacity)?;
    head.trailers = (!trailers.is_empty()).then(|| Box::new(trailers));
    (from.0.is_empty() && targets.len().is_multiple_of(8)).then_some(head)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    fn length(&mut self) -> Option<usize> {
        let (length, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        usize::try_from(u32::from_be_bytes(*length)).ok()
    }

    fn take(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    fn fields(&mut self, make: impl FnOnce(usize) -> HeaderMap) -> Option<HeaderMap> {
        let count = self.length()?;
        // Each takes at least nine bytes: damage claims no room that is not there.
        let mut fields = make(count.min(self.0.len() / 8).min(64));
        for _ in 0..count {
            let line = self.take()?;
            let is_sensitive = line.first() == Some(&SENSITIVE);
            let name = HeaderName::from_bytes(&line[usize::from(is_sensitive)..]).ok()?;
            let mut value = HeaderValue::from_bytes(self.take()?).ok()?;
            value.set_sensitive(is_sensitive);
            fields.try_append(name, value).ok()?;
        }
        Some(fields)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Head {
        let mut fields = room(2);
        fields.append("x-a", HeaderValue::from_bytes(b"\xff1").unwrap());
        fields.append("x-a", HeaderValue::from_static("2"));
        let mut secret = HeaderValue::from_static("3");
        secret.set_sensitive(true);
        fields.append("x-b", secret);
        let mut head = Head {
            id: EntryId(7),
            lifetime: 60,
            refresh_after: Some(3),
            flags: Flags(Flags::BY_POLICY),
            key: b"key".to_vec().into(),
            names: Names::from_text("accept,origin"),
            said: vec![Target::group("b", "c"), Target::tag("a")].into(),
            fields: fields.into(),
            ..Head::default()
        };
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("9"));
        head.trailers = Some(Box::new(trailers));
        head
    }

    #[test]
    fn a_head_comes_back_as_it_was_written() {
        let head = sample();
        let back = decode(&encode(&head)).unwrap();
        assert_eq!(encode(&back), encode(&head));
        assert_eq!(
            (back.id, back.refresh_after, back.stale_if_error),
            (head.id, Some(3), None)
        );
        let sensitive = ["x-a", "x-b"].map(|name| back.fields[name].is_sensitive());
        assert_eq!(sensitive, [false, true]);
        assert_eq!(
            (&*back.fields, &back.said, &back.trailers),
            (&*head.fields, &head.said, &head.trailers)
        );
    }

    proptest! {
        #[test]
        fn damaged_bytes_are_no_head_and_no_panic(at in 0_usize..200, byte: u8, cut in 0_usize..200) {
            let head = sample();
            let mut bytes = encode(&head);
            let whole = bytes.len();
            if at < whole {
                bytes[at] = byte;
            }
            let _ = decode(&bytes);
            bytes.truncate(cut);
            if cut < whole {
                prop_assert!(decode(&bytes).is_none());
            }
        }

        #[test]
        fn anything_at_all_can_be_offered(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
