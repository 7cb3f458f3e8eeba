//! Stored responses on a Redis server.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::backend::redis::{RedisStore, Reply, Script};
use crate::core::{
    Clock, StoreError, StoreErrorKind, StoreFuture, SystemClock, base64url, telemetry,
};
use crate::core::{Notice, Subscription};
use crate::response_cache::entry::{Entry, Head};
use crate::response_cache::key::token;
use crate::response_cache::stamps::{Change, ChangeKind, Changes, Stamp};
use crate::response_cache::target::Target;
use crate::response_cache::vary::Names;

use super::{
    EntryKey, Found, FoundEntry, Hash128, Lease, Lookup, MOST_STAMPS, Place, ResponseStore,
    STAMPS_LEAVING, StoreNotice, StoreNoticeCallback, Stored, Ticket, Want,
};

mod cluster;
mod look;

static LOOKUP: Script = Script::new(include_str!("lookup.lua"));
static STORE: Script = Script::new(include_str!("store.lua"));
static FRESHEN: Script = Script::new(include_str!("freshen.lua"));
static RELEASE: Script = Script::new(include_str!("release.lua"));
static INVALIDATE: Script = Script::new(include_str!("invalidate.lua"));
static CHANGES: Script = Script::new(include_str!("changes.lua"));

const PART: &str = "response_cache";
/// A look-up that takes longer than this part of the handle's timeout is given up: 50 ms of 500.
const LOOKUP_SHARE: u32 = 10;
/// How a notice begins that a lease was dropped for which others wait.
const FILLED: char = 'f';
/// Lua keeps whole numbers exactly up to here.
const LARGEST_NUMBER: u64 = 1 << 53;

impl ResponseStore for RedisStore {
    fn lookup(&self, lookup: Lookup) -> StoreFuture<Found> {
        if self.is_cluster() {
            return StoreFuture::boxed(cluster::lookup(self.clone(), lookup));
        }
        look::look_or_ask(self, lookup)
    }

    fn store(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        let head = entry.head();
        let [primary, own] = keys(self, key);
        let plain = entry_under(&primary, Hash128::default());
        self.script(&STORE, &[primary, own, plain])
            .arg(base64url(&key.selector.0))
            .arg(head.names.as_text())
            .arg(hex(ticket.token))
            .num(ticket.at)
            .num(head.due_at().min(LARGEST_NUMBER))
            .num(head.expires_at.min(LARGEST_NUMBER))
            .num(head.begun.0)
            .num(head.id.0)
            .num(head.body_id.0)
            .arg(head.encode())
            .arg(&*entry.body())
            .arg(base64url(&ticket.selector.0))
            .arg(channel(self))
            .arg(filled(key.primary))
            .run(look::noting(self, key, head))
    }

    fn freshen(&self, key: EntryKey, ticket: Ticket, entry: Arc<Entry>) -> StoreFuture<Stored> {
        let head = entry.head();
        self.script(&FRESHEN, &keys(self, key))
            .arg(base64url(&key.selector.0))
            .arg(hex(ticket.token))
            .num(ticket.at)
            .num(head.due_at().min(LARGEST_NUMBER))
            .num(head.expires_at.min(LARGEST_NUMBER))
            .num(head.begun.0)
            .num(head.id.0)
            .num(head.body_id.0)
            .arg(head.encode())
            .arg(base64url(&ticket.selector.0))
            .arg(channel(self))
            .arg(filled(key.primary))
            .run(look::noting(self, key, head))
    }

    fn release(&self, key: EntryKey, ticket: Ticket, mark: Option<Duration>) -> StoreFuture<()> {
        if mark.is_some() {
            look::forget(self, key);
        }
        self.script(&RELEASE, &keys(self, key))
            .arg(base64url(&key.selector.0))
            .arg(hex(ticket.token))
            .num(micros(mark.unwrap_or_default()))
            .arg(base64url(&ticket.selector.0))
            .arg(channel(self))
            .arg(filled(key.primary))
            .run(|_| Ok(()))
    }

    fn invalidate(&self, changes: &[Change]) -> StoreFuture<Stamp> {
        let mut call = self
            .script(&INVALIDATE, &stamps_keys(self))
            .num(MOST_STAMPS as u64)
            .num(STAMPS_LEAVING as u64)
            .arg(channel(self));
        for change in changes {
            call = call.arg(member(*change));
        }
        call.run(|reply| Ok(Stamp(number(reply)?)))
    }

    fn changes(&self, since: Stamp) -> StoreFuture<Changes> {
        changes(self, since, self.timeout())
    }

    fn subscribe(&self, on: StoreNoticeCallback) -> StoreFuture<Subscription> {
        let hear = move |notice| match notice {
            Notice::Payload(payload) => on(heard(&payload)),
            Notice::Restored => on(StoreNotice::Changed),
            Notice::Lost => {}
        };
        Self::subscribe(self, &channel(self), Arc::new(hear))
    }

    fn place(&self) -> Place {
        Place::Shared
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Self::clock(self).unwrap_or_else(|| Arc::new(SystemClock))
    }
}

fn changes(store: &RedisStore, since: Stamp, timeout: Duration) -> StoreFuture<Changes> {
    let call = store.script(&CHANGES, &stamps_keys(store));
    call.num(since.0).timeout(timeout).run(|reply| {
        let mut parts = reply.array()?.into_iter();
        let mut next = || parts.next().ok_or_else(unexpected);
        let (highest, floor) = (Stamp(number(next()?)?), Stamp(number(next()?)?));
        let mut changes = Vec::new();
        while let (Some(text), Some(stamp)) = (parts.next(), parts.next()) {
            if let Some(change) = change_of(&text.bytes()?) {
                changes.push((change, Stamp(number(stamp)?)));
            }
        }
        Ok(Changes {
            highest,
            floor,
            changes,
        })
    })
}

fn keys(store: &RedisStore, key: EntryKey) -> [String; 2] {
    let primary = store.key(PART).tag([base64url(&key.primary.0)]).finish();
    let entry = entry_under(&primary, key.selector);
    [primary, entry]
}

fn entry_under(primary: &str, selector: Hash128) -> String {
    format!("{primary}:{}", base64url(&selector.0))
}

/// The stamps, and their head beside them: written, and where one of them is lost made anew, together.
fn stamps_keys(store: &RedisStore) -> [String; 2] {
    ["set", "head"].map(|kind| store.key(PART).tag(["stamps"]).plain(kind).finish())
}

/// What is told to those who wait for somebody else's lease.
fn filled(primary: Hash128) -> String {
    format!("{FILLED}{:032x}", u128::from_be_bytes(primary.0))
}

/// A stamp is what an invalidation tells.
fn heard(payload: &[u8]) -> StoreNotice {
    let text = std::str::from_utf8(payload).ok();
    let filled = text.and_then(|text| text.strip_prefix(FILLED));
    let key = filled.and_then(|digits| u128::from_str_radix(digits, 16).ok());
    key.map_or(StoreNotice::Changed, |key| {
        StoreNotice::Filled(Hash128(key.to_be_bytes()))
    })
}

/// Where invalidations are announced, and what others wait for.
fn channel(store: &RedisStore) -> String {
    store.key(PART).tag(["stamps"]).plain("changes").finish()
}

/// What the script tells.
struct Asked {
    found: Found,
    /// At which stamp the entry was begun.
    begun: Stamp,
    /// When the entry is due for a refresh, or stale.
    due: u64,
}

/// Asks what is there under `keys`, with the stamps last where they lie on the same server. What led to the question
/// before counts as waiting, too.
fn question(
    store: &RedisStore,
    keys: &[String],
    lookup: &Lookup,
    began: Option<Instant>,
) -> StoreFuture<Asked> {
    let (want, length) = match lookup.want {
        Want::Entry => (0, Duration::ZERO),
        Want::EntryOrLease(length) => (1, length),
        Want::Lease(length) => (2, length),
    };
    let (token, selector) = (token(), lookup.key.selector);
    let have = lookup.have.map(|id| id.0.to_string()).unwrap_or_default();
    let call = store
        .script(&LOOKUP, keys)
        .arg(base64url(&selector.0))
        .arg(lookup.names.as_text())
        .num(lookup.not_before.0)
        .arg(have)
        .num(want)
        .num(micros(length))
        .arg(hex(token))
        .timeout(store.timeout() / LOOKUP_SHARE);
    let call = match began {
        Some(began) => call.since(began),
        None => call,
    };
    call.run(move |reply| found(reply, token, selector))
}

fn found(reply: Reply, token: u128, selector: Hash128) -> Result<Asked, StoreError> {
    let mut parts = reply.array()?.into_iter();
    let mut next = || parts.next().ok_or_else(unexpected);
    let now = number(next()?)?;
    let (highest, floor) = (Stamp(number(next()?)?), Stamp(number(next()?)?));
    let names = next()?.bytes()?;
    let names = Names::from_text(std::str::from_utf8(&names).map_err(|_| unexpected())?);
    let (state, head, body) = (next()?.int()?, next()?.bytes()?, next()?.bytes()?);
    let (granted, held, marked) = (next()?.int()?, number(next()?)?, number(next()?)?);
    let (begun, due) = (Stamp(number(next()?)?), number(next()?)?);
    let entry = match state {
        1 => FoundEntry::Same,
        2 => decoded(&head, body),
        _ => FoundEntry::None,
    };
    let lease = match granted {
        1 => Some(Lease::Granted(Ticket {
            token,
            selector,
            begun: highest,
            at: now,
        })),
        2 => Some(Lease::Held(Duration::from_micros(held))),
        _ => None,
    };
    let mark = (marked > 0).then(|| Duration::from_micros(marked));
    let found = Found {
        now,
        highest,
        floor,
        names,
        entry,
        lease,
        mark,
    };
    Ok(Asked { found, begun, due })
}

/// A record that cannot be read is a miss; whoever fetches next writes over it.
fn decoded(head: &[u8], body: Bytes) -> FoundEntry {
    match Head::decode(head) {
        Some(head) => FoundEntry::Entry(Arc::new(Entry::new(head, body))),
        None => {
            telemetry::count!("keep_response_cache_undecodable_total", 1);
            FoundEntry::None
        }
    }
}

fn stored(reply: Reply) -> Result<Stored, StoreError> {
    Ok(if reply.int()? == 1 {
        Stored::Yes
    } else {
        Stored::Superseded
    })
}

fn member(change: Change) -> String {
    let kind = match change.kind {
        ChangeKind::Gone => 'g',
        ChangeKind::Stale => 's',
    };
    format!("{kind}{:016x}", change.target.bits())
}

fn change_of(member: &[u8]) -> Option<Change> {
    let (kind, hash) = std::str::from_utf8(member).ok()?.split_at_checked(1)?;
    let kind = match kind {
        "g" => ChangeKind::Gone,
        "s" => ChangeKind::Stale,
        _ => return None,
    };
    let target = Target::from_bits(u64::from_str_radix(hash, 16).ok()?);
    Some(Change { target, kind })
}

fn hex(token: u128) -> String {
    let mut out = String::with_capacity(32);
    // Writing to a `String` cannot fail.
    let _ = write!(out, "{token:032x}");
    out
}

fn number(reply: Reply) -> Result<u64, StoreError> {
    u64::try_from(reply.int()?).map_err(|_| unexpected())
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}

fn unexpected() -> StoreError {
    StoreError::with_source(
        StoreErrorKind::Failed,
        "the server's answer has another form",
    )
}
