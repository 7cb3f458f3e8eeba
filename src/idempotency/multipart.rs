//! Multipart bodies: clients draw a new boundary for every retry, so the boundary must not count.

use super::mac::Hasher;

/// A multipart content type, taken apart around its boundary.
pub(super) struct Multipart<'a> {
    before: &'a [u8],
    boundary: &'a [u8],
    after: &'a [u8],
}

impl<'a> Multipart<'a> {
    /// Finds the boundary; `None` where the body is not multipart or says none.
    pub(super) fn of(content_type: &'a [u8]) -> Option<Self> {
        let kind = content_type.get(..10)?;
        if !kind.eq_ignore_ascii_case(b"multipart/") {
            return None;
        }
        let mut at = content_type.iter().position(|byte| *byte == b';')?;
        loop {
            let start = at + 1;
            let end = end_of_parameter(content_type, start);
            let parameter = content_type[start..end].trim_ascii();
            if let Some(name) = parameter.get(..9)
                && name.eq_ignore_ascii_case(b"boundary=")
            {
                let value = &parameter[9..];
                let bare = value
                    .strip_prefix(b"\"")
                    .and_then(|value| value.strip_suffix(b"\""));
                let boundary = bare.unwrap_or(value);
                let (before, after) = (&content_type[..start], &content_type[end..]);
                return (!boundary.is_empty()).then_some(Self {
                    before,
                    boundary,
                    after,
                });
            }
            if end == content_type.len() {
                return None;
            }
            at = end;
        }
    }

    /// Takes in the body; each delimiter line counts as one fixed mark.
    pub(super) fn hash(&self, hasher: &mut Hasher, body: &[u8]) {
        hasher.part(self.before).part(self.after);
        let mut rest = body;
        let mut at_line_start = true;
        while let Some((content, closes, after)) = self.split(rest, at_line_start) {
            hasher.number(if closes { 2 } else { 1 }).part(content);
            (rest, at_line_start) = (after, false);
        }
        hasher.number(0).part(rest);
    }

    /// Splits at the next delimiter line: what stands before it, whether it closes, and what follows the delimiter.
    fn split<'b>(&self, body: &'b [u8], at_line_start: bool) -> Option<(&'b [u8], bool, &'b [u8])> {
        let mut from = 0;
        loop {
            let start = if from == 0 && at_line_start && body.starts_with(b"--") {
                0
            } else {
                from + body
                    .get(from..)?
                    .windows(4)
                    .position(|four| four == b"\r\n--")?
            };
            let dashes = if body[start..].starts_with(b"\r\n") {
                start + 4
            } else {
                start + 2
            };
            if let Some(after) = body[dashes..].strip_prefix(self.boundary)
                && let Some((closes, after)) = end_of_delimiter(after)
            {
                return Some((&body[..start], closes, after));
            }
            from = dashes;
        }
    }
}

/// After the boundary: `--` if it closes, spaces and tabs, the end of the line (which belongs to the next part) or of the body.
fn end_of_delimiter(after: &[u8]) -> Option<(bool, &[u8])> {
    let (closes, rest) = after
        .strip_prefix(b"--")
        .map_or((false, after), |rest| (true, rest));
    let spaces = rest
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    let rest = &rest[spaces..];
    (rest.is_empty() || rest.starts_with(b"\r\n")).then_some((closes, rest))
}

fn end_of_parameter(content_type: &[u8], start: usize) -> usize {
    let mut quoted = false;
    for (at, byte) in content_type.iter().enumerate().skip(start) {
        match byte {
            b'"' => quoted = !quoted,
            b';' if !quoted => return at,
            _ => {}
        }
    }
    content_type.len()
}
