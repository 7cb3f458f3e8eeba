//! Which node of a cluster has which keys: the slot of a key, and the map that a node tells.

use super::error::away;
use super::reply::Reply;

pub(super) const SLOTS: usize = 16_384;

/// The number of a slot, below [`SLOTS`].
pub(super) type Slot = u16;

/// Slots from the first to the last, and the host and port of the node that has them. An empty host is the asked
/// node's own.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: Slot,
    pub(super) last: Slot,
    pub(super) host: String,
    pub(super) port: u16,
}

/// Returns the slot of a key: of its hash tag, where it has one that is not empty.
pub(super) fn slot_of(key: &[u8]) -> Slot {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let behind = &key[open + 1..];
        let end = behind.iter().position(|byte| *byte == b'}')?;
        (end > 0).then(|| &behind[..end])
    });
    crc16(tag.unwrap_or(key)) % SLOTS as u16
}

/// CRC-16/XMODEM, as the cluster specification has it.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let index = ((crc >> 8) ^ u16::from(*byte)) as usize;
        (crc << 8) ^ TABLE[index]
    })
}

static TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let (mut crc, mut bit) = ((index as u16) << 8, 0);
        while bit < 8 {
            crc = (crc << 1) ^ (0x1021 * (crc >> 15));
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

/// Reads the answer to CLUSTER SLOTS; the replicas in it are not asked.
pub(super) fn parse_slots(answer: Reply) -> Result<Vec<Range>, redis::RedisError> {
    let wrong = || away("the answer to CLUSTER SLOTS cannot be understood");
    let Reply::Array(rows) = answer else {
        return Err(wrong());
    };
    let ranges: Option<Vec<Range>> = rows.into_iter().map(range).collect();
    ranges.ok_or_else(wrong)
}

fn range(row: Reply) -> Option<Range> {
    let Reply::Array(fields) = row else {
        return None;
    };
    let mut fields = fields.into_iter();
    let (first, last) = (number(fields.next()?)?, number(fields.next()?)?);
    let Reply::Array(node) = fields.next()? else {
        return None;
    };
    let mut node = node.into_iter();
    let (host, port) = (text(node.next()?)?, number(node.next()?)?);
    let holds = first <= last && usize::from(last) < SLOTS;
    holds.then_some(Range {
        first,
        last,
        host,
        port,
    })
}

fn number(value: Reply) -> Option<u16> {
    match value {
        Reply::Int(number) => u16::try_from(number).ok(),
        _ => None,
    }
}

fn text(value: Reply) -> Option<String> {
    match value {
        Reply::Bytes(bytes) => String::from_utf8(bytes.into()).ok(),
        Reply::Nil => Some(String::new()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::resp::read;
    use super::*;

    #[test]
    fn the_slot_is_the_published_checksum_of_the_tag() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12_182);
        assert_eq!(slot_of(b"keep:x:{foo}:y"), slot_of(b"foo"));
        // Of several tags the first counts; an empty or open one is none.
        assert_eq!(slot_of(b"{foo}{bar}"), slot_of(b"foo"));
        assert_eq!(slot_of(b"foo{}{bar}"), crc16(b"foo{}{bar}") % 16_384);
        assert_eq!(slot_of(b"foo{bar"), crc16(b"foo{bar") % 16_384);
        assert_eq!(slot_of(b"foo{{bar}}"), slot_of(b"{bar"));
    }

    #[test]
    fn the_map_is_read_and_anything_else_is_refused() {
        let told = |line: &str| parse_slots(read(line.as_bytes()).unwrap().0.unwrap());
        let one = "*1\r\n*4\r\n:0\r\n:5460\r\n*3\r\n$9\r\n127.0.0.1\r\n:7000\r\n$2\r\nid\r\n\
                   *3\r\n$9\r\n127.0.0.1\r\n:7003\r\n$2\r\nid\r\n";
        let expected = Range {
            first: 0,
            last: 5_460,
            host: "127.0.0.1".to_owned(),
            port: 7_000,
        };
        assert_eq!(told(one).unwrap(), [expected]);
        assert_eq!(told("*0\r\n").unwrap(), []);
        let nameless = "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$-1\r\n:7000\r\n";
        assert_eq!(told(nameless).unwrap()[0].host, "");
        for wrong in [
            "+OK\r\n",
            "*1\r\n:1\r\n",
            "*1\r\n*3\r\n:5\r\n:1\r\n*2\r\n$1\r\na\r\n:7000\r\n",
            "*1\r\n*3\r\n:0\r\n:16384\r\n*2\r\n$1\r\na\r\n:7000\r\n",
            "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\na\r\n:70000\r\n",
            "*1\r\n*2\r\n:0\r\n:1\r\n",
        ] {
            assert!(told(wrong).is_err(), "{wrong}");
        }
    }
}
