//! A row of the table of sessions, and the entry that it stands for.

use std::time::Duration;

use bytes::Bytes;

use super::super::memory::{Entry, Row};
use crate::core::telemetry::count;
use crate::core::{Principal, Timestamp};
use crate::session::store::{
    AuthStamp, Data, DataEntry, EndCause, NotLive, Seen, SessionId, SessionRecord, Value, Verifier,
};

/// The first byte of a core. Whoever changes what follows takes the next number.
const FORMAT: u8 = 1;
const SESSION: u8 = 0;
const SUPERSEDED: u8 = 1;
/// A tombstone's kind is this and the place of its cause.
const ENDED: u8 = 2;
const CAUSES: [EndCause; 6] = [
    EndCause::Logout,
    EndCause::Revoked,
    EndCause::Evicted,
    EndCause::CredentialChange,
    EndCause::AuthStamp,
    EndCause::Everyone,
];
const REPLACED: u8 = 1;
const AUTHENTICATED: u8 = 2;
const STAMPED: u8 = 4;
const REMEMBERED: u8 = 8;

/// id, user, core, roles, data if it was read, when it expires, the cut-off, the time of reading.
pub(super) type Raw = (
    Vec<u8>,
    Option<Vec<u8>>,
    Vec<u8>,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    i64,
    Option<i64>,
    i64,
);

/// What a row is written with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    pub(super) id: SessionId,
    pub(super) user: Option<Vec<u8>>,
    pub(super) core: Vec<u8>,
    pub(super) roles: Option<Vec<u8>>,
    pub(super) data: Option<Vec<u8>>,
    pub(super) created: i64,
    pub(super) expires_at: i64,
}

/// What a row holds.
pub(super) enum Held {
    Entry(Entry),
    /// Only a newer version can read it: it is left alone.
    Newer,
    Damaged,
}

impl Columns {
    pub(super) fn of(id: SessionId, entry: &Entry, expires_at: i64) -> Option<Self> {
        let row = match entry {
            Entry::Session(row) => row,
            Entry::Grave(why) => return Some(Self::grave(id, *why, expires_at)),
            Entry::User(_) => return None,
        };
        let principal = row.record.principal.as_ref();
        let roles = principal.map(|principal| principal.iter_roles().collect::<Vec<_>>());
        Some(Self {
            id,
            user: principal.map(|principal| principal.id().as_bytes().to_vec()),
            core: encode_core(row),
            roles: roles.and_then(|roles| serde_json::to_vec(&roles).ok()),
            data: (!row.data.is_empty()).then(|| encode_data(&row.data)),
            created: number(row.record.created.as_millis()),
            expires_at,
        })
    }

    pub(super) fn is_session(&self) -> bool {
        self.core.get(1) == Some(&SESSION)
    }

    pub(super) fn grave(id: SessionId, why: NotLive, expires_at: i64) -> Self {
        let kind = match why {
            NotLive::Ended(cause) => {
                let place = CAUSES.iter().position(|own| *own == cause);
                ENDED
                    + place
                        .and_then(|place| u8::try_from(place).ok())
                        .unwrap_or(1)
            }
            _ => SUPERSEDED,
        };
        Self {
            id,
            user: None,
            core: vec![FORMAT, kind],
            roles: None,
            data: None,
            created: 0,
            expires_at,
        }
    }
}

pub(super) fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn time(ms: i64) -> Timestamp {
    Timestamp::from_millis(ms.unsigned_abs())
}

/// Reads a row; a part of it that was not asked for is as good as empty.
pub(super) fn decode(id: SessionId, raw: &Raw) -> Held {
    let (_, user, core, roles, data, ..) = raw;
    match core.first() {
        Some(&FORMAT) => {}
        Some(&later) if later > FORMAT => return Held::Newer,
        _ => return damaged(),
    }
    match core.get(1) {
        Some(&SESSION) => {}
        Some(&SUPERSEDED) => return Held::Entry(Entry::Grave(NotLive::Superseded)),
        Some(kind) => {
            let cause = kind.checked_sub(ENDED).map(usize::from);
            return match cause.and_then(|place| CAUSES.get(place)) {
                Some(cause) => Held::Entry(Entry::Grave(NotLive::Ended(*cause))),
                None => damaged(),
            };
        }
        None => return damaged(),
    }
    let principal = match (user, roles) {
        (None, _) => Some(None),
        (Some(user), Some(roles)) => principal_of(user, roles).map(Some),
        (Some(_), None) => None,
    };
    let row = principal.and_then(|principal| {
        let mut row = decode_core(id, &core[2..])?;
        row.record.principal = principal;
        row.data = data.as_deref().map_or_else(Data::default, decode_data);
        Some(row)
    });
    row.map_or_else(damaged, |row| Held::Entry(Entry::Session(Box::new(row))))
}

fn damaged() -> Held {
    count!("keep_session_undecodable_total", 1, "part" => "core");
    Held::Damaged
}

fn principal_of(user: &[u8], roles: &[u8]) -> Option<Principal> {
    let user = std::str::from_utf8(user).ok()?;
    let roles: Vec<String> = serde_json::from_slice(roles).ok()?;
    Some(Principal::new(user).roles(roles))
}

/// Format, kind, flags, both verifiers, ten numbers, stamp, device and address; the user's are columns of their own.
fn encode_core(row: &Row) -> Vec<u8> {
    let record = &row.record;
    let (previous, replaced) = match &row.previous {
        Some((verifier, at)) => (*verifier.as_bytes(), at.as_millis()),
        None => ([0; 32], 0),
    };
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    let flags = flag(row.previous.is_some(), REPLACED)
        | flag(record.authenticated.is_some(), AUTHENTICATED)
        | flag(record.stamp.is_some(), STAMPED)
        | flag(record.remembered, REMEMBERED);
    let mut core = vec![FORMAT, SESSION, flags];
    core.extend_from_slice(row.verifier.as_bytes());
    core.extend_from_slice(&previous);
    for number in [
        replaced,
        record.generation,
        record.created.as_millis(),
        record.authenticated.map_or(0, |at| at.as_millis()),
        record.last_activity.as_millis(),
        record.absolute_at.as_millis(),
        millis(record.idle),
        millis(row.extended),
        row.data_used.as_millis(),
        row.counter,
    ] {
        core.extend_from_slice(&number.to_be_bytes());
    }
    core.extend_from_slice(&record.stamp.map_or([0; 16], |stamp| *stamp.as_bytes()));
    core.extend_from_slice(&record.seen.encode());
    core
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn decode_core(id: SessionId, mut core: &[u8]) -> Option<Row> {
    let core = &mut core;
    let [flags] = *take::<1>(core)?;
    let verifier = Verifier::from_bytes(*take(core)?);
    let previous = Verifier::from_bytes(*take(core)?);
    let mut numbers = [0; 10];
    for number in &mut numbers {
        *number = u64::from_be_bytes(*take(core)?);
    }
    let stamp = AuthStamp::from_bytes(*take(core)?);
    let seen = Seen::decode(take::<{ Seen::BYTES }>(core)?);
    let latest = Timestamp::MAX.as_millis();
    if !core.is_empty() || numbers.iter().any(|number| *number > latest) {
        return None;
    }
    let has = |flag: u8| flags & flag != 0;
    let at = |place: usize| Timestamp::from_millis(numbers[place]);
    let record = SessionRecord {
        id,
        principal: None,
        stamp: has(STAMPED).then_some(stamp),
        seen,
        generation: numbers[1],
        created: at(2),
        authenticated: has(AUTHENTICATED).then(|| at(3)),
        last_activity: at(4),
        absolute_at: at(5),
        idle: Duration::from_millis(numbers[6]),
        remembered: has(REMEMBERED),
    };
    Some(Row {
        record,
        verifier,
        previous: has(REPLACED).then(|| (previous, at(0))),
        extended: Duration::from_millis(numbers[7]),
        data_used: at(8),
        counter: numbers[9],
        data: Data::default(),
    })
}

fn take<'a, const N: usize>(from: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (taken, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(taken)
}

/// Each value: the length of its name, version, format, the length of its JSON; name and JSON.
fn encode_data(data: &Data) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(data.size() + 16 * data.entries().len());
    for entry in data.entries() {
        let (name, json) = (entry.name.as_bytes(), &entry.value.json);
        bytes.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
        bytes.extend_from_slice(&entry.version.to_be_bytes());
        bytes.push(entry.value.format);
        bytes.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(json);
    }
    bytes
}

/// Reads values up to what is damaged.
fn decode_data(mut bytes: &[u8]) -> Data {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let Some(entry) = decode_value(&mut bytes) else {
            count!("keep_session_undecodable_total", 1, "part" => "entry");
            break;
        };
        entries.push(entry);
    }
    entries.into_iter().collect()
}

fn decode_value(bytes: &mut &[u8]) -> Option<DataEntry> {
    let [name] = *take::<1>(bytes)?;
    let version = u64::from_be_bytes(*take(bytes)?);
    let [format] = *take::<1>(bytes)?;
    let json = usize::try_from(u32::from_be_bytes(*take(bytes)?)).ok()?;
    let (name, rest) = bytes.split_at_checked(usize::from(name))?;
    let (json, rest) = rest.split_at_checked(json)?;
    *bytes = rest;
    Some(DataEntry {
        name: std::str::from_utf8(name).ok()?.into(),
        version,
        value: Value {
            format,
            json: Bytes::copy_from_slice(json),
        },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::session::device::Device;

    const ID: SessionId = SessionId::from_bytes([9; 16]);

    fn row() -> Row {
        let at = Timestamp::from_millis;
        let value = |json: &'static [u8]| Value {
            format: 3,
            json: Bytes::from_static(json),
        };
        let mut data = Data::default();
        data.put("cart", 5, value(b"[1,2]"));
        data.put("k", 6, value(b""));
        Row {
            record: SessionRecord {
                id: ID,
                principal: Some(Principal::new("u1").roles(["admin", "a \"b\""])),
                stamp: Some(AuthStamp::from_bytes([4; 16])),
                seen: Seen {
                    device: Some(Device::of_user_agent(b"curl/8")),
                    ip: "192.0.2.7".parse().ok(),
                },
                generation: 2,
                created: at(1_000),
                authenticated: Some(at(2_000)),
                last_activity: at(3_000),
                absolute_at: at(90_000_000),
                idle: Duration::from_secs(900),
                remembered: true,
            },
            verifier: Verifier::from_bytes([1; 32]),
            previous: Some((Verifier::from_bytes([2; 32]), at(2_500))),
            extended: Duration::from_secs(3_600),
            data_used: at(2_750),
            counter: 6,
            data,
        }
    }

    fn raw(columns: &Columns) -> Raw {
        let columns = columns.clone();
        let id = columns.id.as_bytes().to_vec();
        (
            id,
            columns.user,
            columns.core,
            columns.roles,
            columns.data,
            columns.expires_at,
            None,
            0,
        )
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What version 0.1 wrote: whoever changes these bytes locks out who is logged in, or takes the next format.
    #[test]
    fn the_first_format_is_written_and_read_as_ever() {
        let columns = Columns::of(ID, &Entry::Session(Box::new(row())), 903_000).unwrap();
        let numbers = "00000000000009c4000000000000000200000000000003e800000000000007d0\
                       0000000000000bb8000000000 55d4a8000000000000dbba0000000000036ee80\
                       0000000000000abe0000000000000006"
            .replace(' ', "");
        let core = format!(
            "01000f{}{}{numbers}{}{}",
            "01".repeat(32),
            "02".repeat(32),
            "04".repeat(16),
            "05070704c0000207000000000000000000000000"
        );
        assert_eq!(hex(&columns.core), core);
        assert_eq!(
            columns.roles.as_deref(),
            Some(&br#"["admin","a \"b\""]"#[..])
        );
        let data = "04000000000000000503000000056361 72745b312c325d010000000000000006 03000000006b";
        assert_eq!(
            columns.data.as_deref().map(hex),
            Some(data.replace(' ', ""))
        );
        let Held::Entry(Entry::Session(back)) = decode(ID, &raw(&columns)) else {
            panic!("it is a session");
        };
        let (back, row) = (*back, row());
        assert_eq!((&back.record, &back.data), (&row.record, &row.data));
        assert_eq!((back.previous, back.counter), (row.previous, row.counter));
        for (why, kind) in [
            (NotLive::Superseded, 1),
            (NotLive::Ended(EndCause::Logout), 2),
            (NotLive::Ended(EndCause::Everyone), 7),
        ] {
            let grave = Columns::grave(ID, why, 5);
            assert_eq!(grave.core, [1, kind]);
            let held = decode(ID, &raw(&grave));
            assert!(matches!(held, Held::Entry(Entry::Grave(own)) if own == why));
        }
    }

    proptest! {
        #[test]
        fn whatever_lies_in_a_row_is_read_or_refused(
            cut in 0..200_usize,
            at in 0..200_usize,
            byte in any::<u8>(),
            user in prop::option::of(prop::collection::vec(any::<u8>(), 0..9)),
            roles in prop::option::of(prop::collection::vec(any::<u8>(), 0..9)),
            data in prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
        ) {
            let mut columns = Columns::of(ID, &Entry::Session(Box::new(row())), 1).unwrap();
            if let Some(own) = columns.core.get_mut(at) {
                *own = byte;
            }
            columns.core.truncate(cut);
            (columns.user, columns.roles, columns.data) = (user, roles, data);
            if let Held::Entry(entry) = decode(ID, &raw(&columns)) {
                prop_assert!(Columns::of(ID, &entry, 1).is_some());
            }
        }
    }
}
