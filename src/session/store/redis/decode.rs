//! What the session scripts answer, in the words of the trait.

use std::time::Duration;

use bytes::Bytes;

use crate::backend::redis::Reply;
use crate::core::telemetry::count;
use crate::core::{Principal, StoreError, StoreErrorKind, Timestamp};
use crate::session::store::{
    AuthStamp, Data, DataEntry, Done, EndCause, EndedSession, EstablishCause, Established, Listed,
    Live, Loaded, NotLive, Part, Patched, Read, Revoked, Seen, SessionId, SessionRecord,
    SessionRef, UserId, Value,
};

/// Verifiers twice, eleven numbers and a format byte, as `record.lua` packs them.
const HEADER_BYTES: usize = 161;
const HEADER_FORMAT: u8 = 1;
const CORE_BYTES: usize = 39;
const CORE_FORMAT: u8 = 1;
const ID_CHARS: usize = 22;

pub(super) fn loaded(reply: Reply, id: SessionId, part: Part) -> Result<Loaded, StoreError> {
    let mut fields = Fields::of(reply)?;
    if fields.int()? != 0 {
        return Ok(Loaded::NotLive(fields.not_live()?));
    }
    let now = fields.time()?;
    let renewed = seen_before(&fields.next()?.bytes()?);
    let (told, entries) = hash(fields.next()?)?;
    let Ok(record) = told.record(id) else {
        // What cannot be read belongs to nobody; the script has told what a newer version wrote from it.
        return Ok(Loaded::NotLive(NotLive::Missing));
    };
    Ok(Loaded::Live(Box::new(Live {
        now,
        record,
        data: (part == Part::Whole).then(|| entries.into_iter().collect::<Data>()),
        renewed,
    })))
}

/// What a look tells of a session that is as it nearly always is: live for whoever asks, of this version, with nothing
/// to record; or not there at all. `None` for everything else, which `load.lua` decides.
pub(super) fn glanced(
    now_ms: u64,
    mut answers: impl Iterator<Item = Reply>,
    at: SessionRef,
    read: &Read,
) -> Result<Option<Loaded>, StoreError> {
    let fields = answers.next().unwrap_or(Reply::Nil);
    if is_absent(&fields) {
        return Ok(Some(Loaded::NotLive(NotLive::Missing)));
    }
    let Some((told, entries)) = (match read.part {
        Part::Whole => unmarked(fields)?,
        Part::Core => core(fields)?,
    }) else {
        return Ok(None);
    };
    let cut_off = match answers.next().unwrap_or(Reply::Nil) {
        Reply::Nil => None,
        text => match text.int() {
            Ok(at) => Some(at.unsigned_abs()),
            Err(_damaged) => return Ok(None),
        },
    };
    let is_right = told.header.first() == Some(&HEADER_FORMAT)
        && told.header.get(1..33) == Some(at.verifier.as_bytes());
    let (true, Ok(record), Ok(times)) = (is_right, told.record(at.id), times(&told.header)) else {
        return Ok(None);
    };
    let [
        ..,
        created,
        _,
        last,
        absolute,
        idle,
        extended,
        used,
        _,
        keys,
        _,
    ] = times;
    let has_data = keys > 0;
    let is_live = last.saturating_add(idle) > now_ms
        && absolute > now_ms
        && cut_off.is_none_or(|cut_off| created > cut_off)
        && !(has_data && used.saturating_add(extended) <= now_ms);
    let reads_data = read.part == Part::Whole && has_data;
    let is_due = read.renew.is_some()
        && (is_due(now_ms, last, idle) || reads_data && is_due(now_ms, used, extended));
    if !is_live || is_due {
        return Ok(None);
    }
    let entries = if has_data { entries } else { Vec::new() };
    Ok(Some(Loaded::Live(Box::new(Live {
        now: Timestamp::from_millis(now_ms),
        record,
        data: (read.part == Part::Whole).then(|| entries.into_iter().collect::<Data>()),
        renewed: None,
    }))))
}

/// No hash is under the key: it has no field, or none of those that were asked for.
fn is_absent(fields: &Reply) -> bool {
    matches!(fields, Reply::Array(fields) if fields.iter().all(|field| *field == Reply::Nil))
}

/// As in `record.lua`: a tenth of the lifetime has passed, or a minute.
fn is_due(now_ms: u64, recorded: u64, lifetime: u64) -> bool {
    let since = now_ms.saturating_sub(recorded);
    since > 60_000 || since.saturating_mul(10) > lifetime
}

/// All fields of a session; `None` where it has ended, is frozen, or is not there.
fn unmarked(fields: Reply) -> Result<Option<(Told, Vec<DataEntry>)>, StoreError> {
    let Reply::Array(fields) = fields else {
        return Ok(None);
    };
    let is_mark = |name: &Reply| matches!(name, Reply::Bytes(name) if name == "t");
    if fields.iter().step_by(2).any(is_mark) {
        return Ok(None);
    }
    hash(Reply::Array(fields)).map(Some)
}

/// The fields `h`, `t`, `c`, `u`, `r`; `None` where it has ended, is frozen, or is not there.
fn core(fields: Reply) -> Result<Option<(Told, Vec<DataEntry>)>, StoreError> {
    let mut fields = fields.array()?.into_iter();
    let mut next = || fields.next().unwrap_or(Reply::Nil).opt_bytes();
    let (header, mark, core, user, roles) = (next()?, next()?, next()?, next()?, next()?);
    let (Some(header), None, Some(core)) = (header, mark, core) else {
        return Ok(None);
    };
    let told = Told {
        header,
        user: user.unwrap_or_default(),
        roles: roles.unwrap_or_default(),
        core,
    };
    Ok(Some((told, Vec::new())))
}

pub(super) fn patched(reply: Reply) -> Result<Patched, StoreError> {
    let mut fields = Fields::of(reply)?;
    Ok(match fields.int()? {
        0 => Patched::Applied {
            version: fields.int()?.unsigned_abs(),
            renewed: seen_before(&fields.next()?.bytes()?),
        },
        1 => Patched::NotLive(fields.not_live()?),
        2 => Patched::Conflict(entries(fields.next()?)?),
        3 => Patched::TooLarge,
        _ => Patched::NotANumber,
    })
}

pub(super) fn established(reply: Reply) -> Result<Established, StoreError> {
    let mut fields = Fields::of(reply)?;
    Ok(match fields.int()? {
        0 => {
            let now = fields.time()?;
            let record = record(fields.next()?)?;
            let cause = match fields.int()? {
                0 => EstablishCause::Created,
                1 => EstablishCause::First,
                2 => EstablishCause::Again,
                3 => EstablishCause::Switched,
                _ => EstablishCause::Rotated,
            };
            let ended = ended(fields.next()?)?;
            Established::Done(Box::new(Done {
                now,
                record,
                cause,
                ended,
            }))
        }
        1 => Established::NotLive(fields.not_live()?),
        3 => Established::TooLarge,
        4 => Established::NotANumber,
        5 => Established::Limit,
        6 => Established::Overtaken,
        _ => Established::Taken,
    })
}

pub(super) fn listed(reply: Reply) -> Result<Listed, StoreError> {
    let mut fields = Fields::of(reply)?;
    Ok(match fields.int()? {
        0 => {
            // One damaged record does not hide the others.
            let sessions = fields.next()?.array()?.into_iter();
            let mut sessions: Vec<_> = sessions.filter_map(|one| record(one).ok()).collect();
            sessions.sort_by_key(|record| (std::cmp::Reverse(record.last_activity), record.id));
            Listed::Sessions(sessions)
        }
        1 => Listed::NotLive(fields.not_live()?),
        _ => Listed::NoUser,
    })
}

/// What became of a revocation.
pub(super) struct Revocation {
    /// `None` where a newer version wrote the session that asked.
    pub(super) answer: Option<Revoked>,
    /// The session that asked is not live, and is not known to have been when it asked.
    pub(super) is_unproven: bool,
}

impl Revocation {
    pub(super) const fn of(answer: Revoked) -> Self {
        Self {
            answer: Some(answer),
            is_unproven: false,
        }
    }
}

pub(super) fn revoked(reply: Reply) -> Result<Revocation, StoreError> {
    let mut fields = Fields::of(reply)?;
    Ok(match fields.int()? {
        0 => Revocation::of(Revoked::Done(ended(fields.next()?)?)),
        1 => Revocation {
            answer: Some(Revoked::NotLive(fields.not_live()?)),
            is_unproven: fields.int()? == 0,
        },
        2 => Revocation::of(Revoked::NoUser),
        _ => Revocation {
            answer: None,
            is_unproven: false,
        },
    })
}

/// A session that waits for its end or another 5 s, and its fields.
pub(super) enum Frozen {
    Fields(Vec<Bytes>),
    NotLive(NotLive),
}

pub(super) fn frozen(reply: Reply) -> Result<Frozen, StoreError> {
    let mut fields = Fields::of(reply)?;
    if fields.int()? != 0 {
        return Ok(Frozen::NotLive(fields.not_live()?));
    }
    let all = fields.next()?.array()?.into_iter().map(Reply::bytes);
    Ok(Frozen::Fields(all.collect::<Result<_, _>>()?))
}

/// The elements of an answer, one after the other.
struct Fields(std::vec::IntoIter<Reply>);

impl Fields {
    fn of(reply: Reply) -> Result<Self, StoreError> {
        Ok(Self(reply.array()?.into_iter()))
    }

    fn next(&mut self) -> Result<Reply, StoreError> {
        self.0
            .next()
            .ok_or_else(|| failed("an answer of a session script is too short"))
    }

    fn int(&mut self) -> Result<i64, StoreError> {
        self.next()?.int()
    }

    fn time(&mut self) -> Result<Timestamp, StoreError> {
        Ok(Timestamp::from_millis(self.int()?.unsigned_abs()))
    }

    fn not_live(&mut self) -> Result<NotLive, StoreError> {
        let (why, cause) = (self.int()?, self.int()?);
        Ok(match why {
            1 => NotLive::Superseded,
            2 => NotLive::Replayed,
            3 => NotLive::WrongSecret,
            4 => NotLive::Missing,
            _ => NotLive::Ended(cause_of(cause)),
        })
    }
}

fn failed(why: &'static str) -> StoreError {
    StoreError::with_source(StoreErrorKind::Failed, why)
}

const fn cause_of(code: i64) -> EndCause {
    match code {
        1 => EndCause::Logout,
        3 => EndCause::Evicted,
        4 => EndCause::CredentialChange,
        5 => EndCause::AuthStamp,
        6 => EndCause::Everyone,
        _ => EndCause::Revoked,
    }
}

fn id_of(key: &[u8]) -> Result<SessionId, StoreError> {
    let start = key.len().checked_sub(ID_CHARS);
    let text = start.and_then(|start| std::str::from_utf8(&key[start..]).ok());
    let id = text.and_then(|text| text.parse().ok());
    id.ok_or_else(|| failed("a key is no key of a session"))
}

fn ended(reply: Reply) -> Result<Vec<EndedSession>, StoreError> {
    let one = |reply: Reply| -> Result<EndedSession, StoreError> {
        let mut fields = Fields::of(reply)?;
        let id = id_of(&fields.next()?.bytes()?)?;
        let user = fields.next()?.bytes()?;
        let user = std::str::from_utf8(&user).ok().and_then(UserId::try_new);
        let cause = cause_of(fields.int()?);
        Ok(EndedSession { id, user, cause })
    };
    let mut ended = reply
        .array()?
        .into_iter()
        .map(one)
        .collect::<Result<Vec<_>, _>>()?;
    ended.sort_by_key(|ended| ended.id);
    Ok(ended)
}

/// What was seen before a renewal; empty without one.
fn seen_before(bytes: &[u8]) -> Option<Seen> {
    bytes.try_into().ok().map(Seen::decode)
}

/// Names and entries in turn; what is damaged is as good as absent.
fn entries(reply: Reply) -> Result<Vec<DataEntry>, StoreError> {
    let mut fields = reply.array()?.into_iter();
    let mut entries = Vec::with_capacity(fields.len() / 2);
    while let (Some(name), Some(entry)) = (fields.next(), fields.next()) {
        entries.extend(entry_of(&name.bytes()?, &entry.bytes()?));
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn entry_of(name: &[u8], entry: &Bytes) -> Option<DataEntry> {
    let parts = entry
        .split_first_chunk()
        .and_then(|(version, rest)| Some((version, rest.first()?)));
    let (Ok(name), Some((version, format))) = (std::str::from_utf8(name), parts) else {
        count!("keep_session_undecodable_total", 1, "part" => "entry");
        return None;
    };
    let value = Value {
        format: *format,
        json: entry.slice(9..),
    };
    Some(DataEntry {
        name: name.into(),
        version: u64::from_be_bytes(*version),
        value,
    })
}

/// A session as it is told: header, user, roles, core.
#[derive(Default)]
struct Told {
    header: Bytes,
    user: Bytes,
    roles: Bytes,
    core: Bytes,
}

/// The fields of a session's hash: what tells of it, and its values behind `d:`.
fn hash(reply: Reply) -> Result<(Told, Vec<DataEntry>), StoreError> {
    let mut fields = reply.array()?.into_iter();
    let (mut told, mut entries) = (Told::default(), Vec::with_capacity(fields.len() / 2));
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        let (name, value) = (name.bytes()?, value.bytes()?);
        match name.as_ref() {
            b"h" => told.header = value,
            b"u" => told.user = value,
            b"r" => told.roles = value,
            b"c" => told.core = value,
            name => {
                let name = name.strip_prefix(b"d:");
                entries.extend(name.and_then(|name| entry_of(name, &value)));
            }
        }
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok((told, entries))
}

/// Key, header, user, roles, core, as `told` of `record.lua` tells them.
fn record(reply: Reply) -> Result<SessionRecord, StoreError> {
    let mut fields = Fields::of(reply)?;
    let id = id_of(&fields.next()?.bytes()?)?;
    let mut next = || fields.next()?.bytes();
    let told = Told {
        header: next()?,
        user: next()?,
        roles: next()?,
        core: next()?,
    };
    told.record(id)
}

impl Told {
    fn record(&self, id: SessionId) -> Result<SessionRecord, StoreError> {
        let principal = principal(&self.user, &self.roles)?;
        let times = times(&self.header)?;
        let core: &[u8; CORE_BYTES] = self
            .core
            .as_ref()
            .try_into()
            .map_err(|_| failed("a core has another length"))?;
        if core[0] != CORE_FORMAT {
            return Err(failed("a core has another format"));
        }
        let (seen, login) = (&core[1..=Seen::BYTES], &core[1 + Seen::BYTES..]);
        let mut stamp = [0; 16];
        stamp.copy_from_slice(&login[1..17]);
        let mut was_seen = [0; Seen::BYTES];
        was_seen.copy_from_slice(seen);
        let at = |number: usize| Timestamp::from_millis(times[number]);
        Ok(SessionRecord {
            id,
            authenticated: principal.is_some().then(|| at(3)),
            principal,
            stamp: (login[0] == 1).then_some(AuthStamp::from_bytes(stamp)),
            seen: Seen::decode(&was_seen),
            generation: times[1],
            created: at(2),
            last_activity: at(4),
            absolute_at: at(5),
            idle: Duration::from_millis(times[6]),
            remembered: login[17] == 1,
        })
    }
}

/// The numbers of a header behind its verifiers.
fn times(header: &Bytes) -> Result<[u64; 12], StoreError> {
    if header.len() != HEADER_BYTES {
        return Err(failed("a header has another length"));
    }
    let mut times = [0; 12];
    for (time, bytes) in times.iter_mut().zip(header[65..].chunks_exact(8)) {
        let mut number = [0; 8];
        number.copy_from_slice(bytes);
        *time = u64::from_be_bytes(number);
    }
    Ok(times)
}

fn principal(user: &[u8], roles: &[u8]) -> Result<Option<Principal>, StoreError> {
    if user.is_empty() {
        return Ok(None);
    }
    let user = std::str::from_utf8(user).map_err(|_| failed("a user is no text"))?;
    let roles: Vec<String> =
        serde_json::from_slice(roles).map_err(|_| failed("roles are no list"))?;
    Ok(Some(Principal::new(user).roles(roles)))
}
