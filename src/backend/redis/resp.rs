//! What a server says, read from its bytes (RESP2).

use bytes::Bytes;
use redis::RedisError;
use smallvec::{SmallVec, smallvec};

use super::reply::Reply;

/// The most arrays inside one another: more than any answer has.
const DEEPEST: usize = 32;
/// The longest answer in all: two texts of the largest size.
const LONGEST_ANSWER: usize = 1 << 30;
/// More than any error's text, or any number, takes.
const LONGEST_LINE: usize = 64 << 10;
/// Room made for an array before its elements are there: its length is only a claim.
const FIRST_ROOM: usize = 64;

/// Why there is no answer yet.
#[derive(Debug)]
pub(super) enum Unread {
    /// Some of it has not come; in all there will be at least so many bytes.
    Needs(usize),
    /// The server speaks no RESP2: the connection is of no use any more.
    Broken(&'static str),
}

/// What a server answers to a command: an error, also where it lies among others, is the whole answer.
pub(super) type Answer = Result<Reply, RedisError>;

/// Reads one answer from the front of `bytes`, and says how long it is.
pub(super) fn read(bytes: &[u8]) -> Result<(Answer, usize), Unread> {
    let mut reader = Reader::new(bytes, 0);
    let reply = reader.reply(DEEPEST)?;
    Ok((reader.error.map_or(Ok(reply), Err), reader.at))
}

/// Says how long an answer is that comes in many pieces, and reads each piece once.
#[derive(Debug)]
pub(super) struct Measure {
    at: usize,
    /// Elements that are still to come: of the answer itself, and of each array that lies open inside the one before.
    open: SmallVec<[usize; 4]>,
}

impl Default for Measure {
    fn default() -> Self {
        let open = smallvec![1];
        Self { at: 0, open }
    }
}

impl Measure {
    /// Goes on where it stopped; succeeds where the whole answer is there.
    pub(super) fn go_on(&mut self, bytes: &[u8]) -> Result<(), Unread> {
        while let Some(open) = self.open.last_mut() {
            if *open == 0 {
                self.open.pop();
                continue;
            }
            let mut reader = Reader::new(bytes, self.at);
            let more = match reader.head().map_err(bounded)? {
                Head::Array(elements) => Some(elements),
                Head::Bulk(length) => reader.bulk(length).map(|_bytes| None).map_err(bounded)?,
                Head::Line(_) | Head::Number(_) | Head::Text(_) | Head::Nil => None,
            };
            self.at = reader.at;
            *open -= 1;
            if let Some(elements) = more {
                if self.open.len() > DEEPEST {
                    return Err(Unread::Broken("arrays lie too deep"));
                }
                self.open.push(elements);
            }
        }
        Ok(())
    }
}

/// What would be longer than any answer is not waited for.
fn bounded(unread: Unread) -> Unread {
    match unread {
        Unread::Needs(needs) if needs > LONGEST_ANSWER => {
            Unread::Broken("an answer without its end")
        }
        unread => unread,
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The first that was met.
    error: Option<RedisError>,
}

/// How an answer begins.
enum Head<'a> {
    /// An error, with its end of line.
    Line(&'a [u8]),
    Text(&'a [u8]),
    Number(i64),
    Bulk(usize),
    Array(usize),
    Nil,
}

impl<'a> Reader<'a> {
    const fn new(bytes: &'a [u8], at: usize) -> Self {
        let error = None;
        Self { bytes, at, error }
    }

    fn reply(&mut self, deep: usize) -> Result<Reply, Unread> {
        Ok(match self.head()? {
            // Copied: a slice would keep all alive that was read with it.
            Head::Bulk(length) => Reply::Bytes(self.bulk(length)?.to_vec().into()),
            Head::Number(number) => Reply::Int(number),
            Head::Nil => Reply::Nil,
            Head::Text(b"OK") => Reply::Bytes(Bytes::from_static(b"OK")),
            Head::Text(text) => Reply::Bytes(text.to_vec().into()),
            Head::Line(line) => {
                // The driver knows the kinds of errors.
                let line = String::from_utf8_lossy(line);
                let said = redis::parse_redis_value(line.as_bytes());
                let error = said.and_then(redis::Value::extract_error);
                let error = error.err().ok_or(Unread::Broken("an error that is none"))?;
                self.error.get_or_insert(error);
                Reply::Nil
            }
            Head::Array(elements) => {
                let deep = deep.checked_sub(1);
                let deep = deep.ok_or(Unread::Broken("arrays lie too deep"))?;
                let mut replies = Vec::with_capacity(elements.min(FIRST_ROOM));
                for _ in 0..elements {
                    replies.push(self.reply(deep)?);
                }
                Reply::Array(replies)
            }
        })
    }

    fn head(&mut self) -> Result<Head<'a>, Unread> {
        let start = self.at;
        let line = self.line()?;
        let Some((kind, rest)) = line.split_first() else {
            return Err(Unread::Broken("an empty line"));
        };
        let head = match kind {
            b'+' => Head::Text(rest),
            b'-' => Head::Line(&self.bytes[start..self.at]),
            b':' => Head::Number(number(rest)?),
            b'$' | b'*' => match (kind, number(rest)?) {
                (_, -1) => Head::Nil,
                (b'$', length) => Head::Bulk(size(length)?),
                (_, elements) => Head::Array(size(elements)?),
            },
            _ => return Err(Unread::Broken("an answer of no kind")),
        };
        Ok(head)
    }

    /// Takes a line, and returns it without its end.
    fn line(&mut self) -> Result<&'a [u8], Unread> {
        let rest = &self.bytes[self.at..];
        let is_known = |kind: &u8| b"+-:$*".contains(kind);
        if !rest.first().is_none_or(is_known) {
            return Err(Unread::Broken("an answer of an unknown kind"));
        }
        let Some(length) = rest
            .iter()
            .take(LONGEST_LINE)
            .position(|byte| *byte == b'\n')
        else {
            return Err(if rest.len() < LONGEST_LINE {
                Unread::Needs(self.bytes.len() + 1)
            } else {
                Unread::Broken("a line without its end")
            });
        };
        let line = rest[..length].strip_suffix(b"\r");
        self.at += length + 1;
        line.ok_or(Unread::Broken("a line without its end"))
    }

    fn bulk(&mut self, length: usize) -> Result<&'a [u8], Unread> {
        let end = self.at + length;
        let Some(with_end) = self.bytes.get(self.at..end + 2) else {
            return Err(Unread::Needs(end + 2));
        };
        self.at = end + 2;
        let bytes = with_end.strip_suffix(b"\r\n");
        bytes.ok_or(Unread::Broken("a text without its end"))
    }
}

/// A whole number, as servers write them.
fn number(text: &[u8]) -> Result<i64, Unread> {
    let (digits, is_negative) = match text {
        [b'-', digits @ ..] => (digits, true),
        digits => (digits, false),
    };
    let mut whole = (!digits.is_empty()).then_some(0_i64);
    for byte in digits {
        let digit = i64::from(byte.wrapping_sub(b'0'));
        whole = whole
            .filter(|_| digit <= 9)
            .and_then(|whole| whole.checked_mul(10))
            // Downwards, since there is one more number below zero than above.
            .and_then(|whole| whole.checked_sub(digit));
    }
    let whole = if is_negative {
        whole
    } else {
        whole.and_then(i64::checked_neg)
    };
    whole.ok_or(Unread::Broken("a number that is none"))
}

/// A length, within what any server sends: 512 MiB of text, or elements to that number.
fn size(length: i64) -> Result<usize, Unread> {
    const MOST: usize = 512 << 20;
    let length = usize::try_from(length).ok();
    let length = length.filter(|length| *length <= MOST);
    length.ok_or(Unread::Broken("a length that no answer has"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(reply: &Reply, out: &mut Vec<u8>) {
        match reply {
            Reply::Nil => out.extend(b"$-1\r\n"),
            Reply::Int(number) => out.extend(format!(":{number}\r\n").bytes()),
            Reply::Bytes(bytes) if bytes == "OK" => out.extend(b"+OK\r\n"),
            Reply::Bytes(bytes) => {
                out.extend(format!("${}\r\n", bytes.len()).bytes());
                out.extend(bytes);
                out.extend(b"\r\n");
            }
            Reply::Array(replies) => {
                out.extend(format!("*{}\r\n", replies.len()).bytes());
                replies.iter().for_each(|reply| written(reply, out));
            }
        }
    }

    /// As the driver's own parser has it.
    fn as_reply(value: redis::Value) -> Reply {
        match value {
            redis::Value::Nil => Reply::Nil,
            redis::Value::Int(number) => Reply::Int(number),
            redis::Value::Okay => Reply::Bytes("OK".into()),
            redis::Value::BulkString(bytes) => Reply::Bytes(bytes.into()),
            redis::Value::Array(values) => Reply::Array(values.into_iter().map(as_reply).collect()),
            other => panic!("{other:?}"),
        }
    }

    fn replies() -> impl Strategy<Value = Reply> {
        let leaf = prop_oneof![
            Just(Reply::Nil),
            Just(Reply::Bytes("OK".into())),
            any::<i64>().prop_map(Reply::Int),
            prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Reply::Bytes(bytes.into())),
        ];
        leaf.prop_recursive(4, 60, 8, |inner| {
            prop::collection::vec(inner, 0..8).prop_map(Reply::Array)
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_a_part_of_it_asks_for_no_more_than_there_is(reply in replies(), behind in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut bytes = Vec::new();
            written(&reply, &mut bytes);
            let whole = bytes.len();
            let mut measure = Measure::default();
            for end in 0..whole {
                let needs = match read(&bytes[..end]) {
                    Err(Unread::Needs(needs)) => needs,
                    other => panic!("{other:?}"),
                };
                prop_assert!(end < needs && needs <= whole);
                prop_assert!(matches!(measure.go_on(&bytes[..end]), Err(Unread::Needs(also)) if end < also && also <= whole));
            }
            bytes.extend(behind);
            prop_assert!(measure.go_on(&bytes).is_ok());
            prop_assert_eq!(measure.at, whole);
            let (read, length) = read(&bytes).unwrap();
            prop_assert_eq!(as_reply(redis::parse_redis_value(&bytes[..length]).unwrap()), reply.clone());
            prop_assert_eq!((read.unwrap(), length), (reply, whole));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(prop_oneof![Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'1'), Just(b':'), any::<u8>()], 0..60)) {
            let _ = read(&bytes);
            let _ = Measure::default().go_on(&bytes);
        }
    }

    #[test]
    fn what_is_no_answer_is_broken() {
        let deep = "*1\r\n".repeat(DEEPEST + 1);
        let lines = [
            "\r\n",
            "x\r\n",
            ":\r\n",
            ":1a\r\n",
            ":-\r\n",
            ":9223372036854775808\r\n",
            "$-2\r\n",
            "*-2\r\n",
            "+OK\n",
            "$1\r\nabc",
            "$999999999999\r\n",
            "%1\r\n",
            &deep,
        ];
        for line in lines {
            assert!(
                matches!(read(line.as_bytes()), Err(Unread::Broken(_))),
                "{line:?}"
            );
        }
        let least = read(b":-9223372036854775808\r\n").unwrap().0;
        assert_eq!(least.unwrap(), Reply::Int(i64::MIN));
    }

    #[test]
    fn arrays_without_end_are_not_waited_for_in_pieces_either() {
        let (mut measure, mut bytes) = (Measure::default(), Vec::new());
        for deep in 0..=DEEPEST {
            bytes.extend(b"*1\r\n");
            let unread = measure.go_on(&bytes).unwrap_err();
            let is_broken = matches!(unread, Unread::Broken(_));
            assert_eq!(is_broken, deep == DEEPEST, "{deep}: {unread:?}");
        }
        for (needs, is_broken) in [(LONGEST_ANSWER, false), (LONGEST_ANSWER + 1, true)] {
            let unread = bounded(Unread::Needs(needs));
            assert_eq!(matches!(unread, Unread::Broken(_)), is_broken);
        }
        // Beside one another they are not deep.
        let flat = format!("*40\r\n{}", "*1\r\n:1\r\n*0\r\n".repeat(20));
        assert!(Measure::default().go_on(flat.as_bytes()).is_ok());
    }

    #[test]
    fn a_line_that_never_ends_is_not_waited_for() {
        let line = [b"-ERR ".as_slice(), &vec![b'x'; LONGEST_LINE]].concat();
        assert!(matches!(
            read(&line[..LONGEST_LINE - 1]),
            Err(Unread::Needs(_))
        ));
        assert!(matches!(read(&line), Err(Unread::Broken(_))));
        assert!(matches!(read(b"HTTP/1.1 400"), Err(Unread::Broken(_))));
    }

    #[test]
    fn an_error_is_one_also_where_its_text_is_cut_in_the_middle_of_a_character() {
        let (answer, _) =
            read(b"-ERR unknown command 'x', with args beginning with: '\xc3\r\n").unwrap();
        assert_eq!(answer.unwrap_err().code(), Some("ERR"));
    }

    #[test]
    fn an_error_is_of_the_kind_that_the_driver_knows() {
        let kind = redis::ErrorKind::Server(redis::ServerErrorKind::NoScript);
        for line in ["", "*2\r\n:1\r\n"] {
            let line = format!("{line}-NOSCRIPT No matching script.\r\n");
            let (answer, length) = read(line.as_bytes()).unwrap();
            assert_eq!((answer.unwrap_err().kind(), length), (kind, line.len()));
        }
    }
}
