//! Sessions on Redis: a hash per session, an index per user, a cut-off per home; one script per method.
//!
//! Every key is `<prefix>:session:{<home>}:…`. A user's sessions share the user's home, and so a cluster slot. On a
//! Cluster a login that moves a session to its user's home takes three steps (`moving`).

mod decode;
mod holders;
mod moving;
mod pending;

use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use self::decode::{Revocation, established, glanced, listed, loaded, patched, revoked};
use self::holders::Holders;
use self::moving::Fields;
use self::pending::after_pending;

use super::{
    EndCause, Establish, Established, Identity, LimitRule, Listed, Loaded, LoginIdentity,
    Operation, Otherwise, Part, Patch, Patched, Read, Revoked, Roles, Seen, SessionId, SessionRef,
    SessionStore, Sighting, Target, UserId, Value, Whose, home_of_user,
};
use crate::backend::redis::{Call, RedisStore, Script};
use crate::core::{StoreError, StoreErrorKind, StoreFuture, digest22, monotonic};

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("record.lua"), include_str!($file)))
    };
    // What is asked for by nearly every request: a usual session before the functions for all others are made.
    (usual $file:literal) => {
        Script::composed(|| {
            include_str!($file)
                .replace("--> usual\n", include_str!("usual.lua"))
                .replace("--> record\n", include_str!("record.lua"))
        })
    };
}

/// A home is the cluster slot that all keys of a session share: the first 10 bits of its id.
const HOMES: u16 = 1_024;
const HOMES_AT_ONCE: usize = 32;

static LOAD: Script = script!(usual "load.lua");
static PATCH: Script = script!(usual "patch.lua");
static ESTABLISH: Script = script!("establish.lua");
static LIST: Script = script!("list.lua");
static ASSIGN_ROLES: Script = script!("assign_roles.lua");
static REVOKE: Script = script!("revoke.lua");

impl SessionStore for RedisStore {
    fn load(&self, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
        let home = at.id.home();
        after_pending(self, [home; 2], move |store| look_or_load(store, at, read))
    }

    fn patch(&self, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
        if !pending::has_any(self) {
            return send_patch(self, at, patch);
        }
        let patch = patch.clone();
        after_pending(self, [at.id.home(); 2], move |store| {
            send_patch(store, at, &patch)
        })
    }

    fn establish(&self, order: Establish) -> StoreFuture<Established> {
        let home = order.fresh.home();
        let homes = [home, order.current.map_or(home, |at| at.id.home())];
        let (verifier, known) = (order.verifier, Holders::of(self));
        let answer = after_pending(self, homes, move |store| {
            let is_login = matches!(order.identity, Identity::Set(_));
            if is_login && store.is_cluster() && moving::moves(&order) {
                moving::move_home(store, order)
            } else {
                send_establish(store, &order, None)
            }
        });
        answer.map(move |answer| {
            if let Established::Done(done) = &answer {
                known.note(verifier, &done.record);
            }
            answer
        })
    }

    fn list(&self, of: Whose) -> StoreFuture<Listed> {
        after_pending(self, [home_of(&of); 2], move |store| {
            let asking = Asking::of(store, &of);
            store
                .script(&LIST, &asking.keys)
                .arg(flag(asking.is_session))
                .arg(asking.verifier)
                .run(listed)
        })
    }

    fn assign_roles(&self, user: UserId, roles: Roles) -> StoreFuture<u64> {
        let home = home_of_user(user.as_str());
        after_pending(self, [home; 2], move |store| {
            let keys = [index_key(store, &user), cut_off_key(store, home)];
            store
                .script(&ASSIGN_ROLES, &keys)
                .arg(encode_roles(&roles))
                .run(|reply| Ok(reply.int()?.unsigned_abs()))
        })
    }

    fn revoke(&self, target: Target) -> StoreFuture<Revoked> {
        pending::revoke(self, target)
    }
}

/// Asks the script; the caller waits since `began`.
fn send_load(
    store: &RedisStore,
    at: SessionRef,
    read: &Read,
    began: Instant,
) -> StoreFuture<Loaded> {
    let (seen, part) = (
        read.renew.as_ref().map(|sighting| sighting.seen().encode()),
        read.part,
    );
    let keys = [session_key(store, at.id), cut_off_key(store, at.id.home())];
    store
        .script(&LOAD, &keys)
        .arg(at.verifier.as_bytes())
        .arg(flag(part == Part::Whole))
        .arg(seen.as_ref().map_or(&[][..], |seen| seen.as_slice()))
        .since(began)
        .run(move |reply| loaded(reply, at.id, part))
}

/// Looks at a session without a script, which is asked where there is anything to decide or to write: `glanced` knows.
///
/// The session is read first and the cut-off, which only grows, after it: a session that the later cut-off does not
/// end was live when it was read. No replica is believed (GETEX).
fn look_or_load(store: &RedisStore, at: SessionRef, read: Read) -> StoreFuture<Loaded> {
    let session = session_key(store, at.id);
    let look = store.look("session.look", &session);
    let look = match read.part {
        Part::Whole => look.command(["HGETALL", &session]),
        Part::Core => look.command(["HMGET", &session, "h", "t", "c", "u", "r"]),
    };
    let look = look.command(["GETEX", &cut_off_key(store, at.id.home())]);
    let store = store.clone();
    StoreFuture::boxed(async move {
        let began = monotonic();
        let seen = match look.ask().await {
            Ok(seen) => seen,
            Err(error) if error.is_unknown() => return Err(error),
            // A server that takes no writes now refuses GETEX; the script reads on.
            Err(_refused) => None,
        };
        let loaded =
            match seen.and_then(|(now, answers)| glanced(now / 1_000, answers, at, &read).ok()?) {
                Some(loaded) => loaded,
                None => send_load(&store, at, &read, began).await?,
            };
        if let Loaded::Live(live) = &loaded {
            Holders::of(&store).note(at.verifier, &live.record);
        }
        Ok(loaded)
    })
}

fn send_patch(store: &RedisStore, at: SessionRef, patch: &Patch) -> StoreFuture<Patched> {
    let keys = [session_key(store, at.id), cut_off_key(store, at.id.home())];
    let call = store
        .script(&PATCH, &keys)
        .arg(at.verifier.as_bytes())
        .arg(seen(&patch.sighting));
    with_patch(call, patch).run(patched)
}

/// One step; with `moved`, the fields of a session that was frozen in another home take the place of `current`.
fn send_establish(
    store: &RedisStore,
    order: &Establish,
    moved: Option<&Fields>,
) -> StoreFuture<Established> {
    let current = order.current.filter(|_| moved.is_none());
    let fresh = match (&order.identity, order.otherwise, current) {
        // A rotation sets up nothing: it stays in its session's home.
        (Identity::Keep, Otherwise::Refuse, Some(current)) => current.id,
        _ => order.fresh,
    };
    let fresh_key = session_key(store, fresh);
    let keys = [
        fresh_key.clone(),
        cut_off_key(store, fresh.home()),
        current.map_or_else(|| fresh_key.clone(), |at| session_key(store, at.id)),
        cut_off_key(store, current.map_or(fresh, |at| at.id).home()),
        match &order.identity {
            Identity::Set(login) => index_key(store, &login.user),
            Identity::Keep => fresh_key,
        },
    ];
    let call = store
        .script(&ESTABLISH, &keys)
        .arg(match (current, moved) {
            (_, Some(_)) => "moved",
            (Some(_), None) => "1",
            (None, None) => "0",
        })
        .arg(current.map_or([0; 32], |current| *current.verifier.as_bytes()))
        .arg(order.verifier.as_bytes())
        .arg(seen(&order.patch.sighting));
    let call = with_identity(call, &order.identity)
        .arg(flag(order.otherwise == Otherwise::Refuse))
        .num(millis(order.lifetimes.idle))
        .num(millis(order.lifetimes.absolute))
        .num(millis(order.extended))
        .num(order.limit.most)
        .arg(match order.limit.rule {
            LimitRule::Reject => "reject",
            LimitRule::EvictOldest => "oldest",
            LimitRule::EvictLongestIdle => "idle",
        })
        .arg(flag(
            matches!(&order.identity, Identity::Set(login) if login.revoke_others),
        ))
        .num(millis(order.age));
    let call = with_patch(call, &order.patch);
    let fields = moved.into_iter().flatten();
    fields.fold(call, Call::arg).run(established)
}

fn send_revoke(
    store: &RedisStore,
    target: Target,
    made_up: Option<MadeUp>,
) -> StoreFuture<Revocation> {
    let (what, whose, cause, one) = match target {
        Target::Everyone => return revoke_everyone(store, made_up),
        Target::Own(at, cause) => ("own", Whose::Session(at), cause, None),
        Target::One(whose, id) => ("one", whose, EndCause::Revoked, Some(id)),
        Target::Others(at) => ("others", Whose::Session(at), EndCause::Revoked, None),
        Target::All(whose) => ("all", whose, EndCause::Revoked, None),
    };
    let asking = Asking::of(store, &whose);
    let call = store
        .script(&REVOKE, &asking.keys)
        .arg(what)
        .arg(flag(asking.is_session))
        .arg(asking.verifier)
        .num(code_of(cause))
        .arg(one.map_or_else(String::new, |id| session_key(store, id)));
    asked_ago(call, made_up).run(revoked)
}

/// How long ago something that is made up for was asked for.
#[derive(Clone, Copy)]
struct MadeUp {
    last: Duration,
    first: Duration,
}

fn asked_ago(call: Call, made_up: Option<MadeUp>) -> Call {
    match made_up {
        Some(ago) => call.num(millis(ago.last)).num(millis(ago.first)),
        None => call.arg("").arg(""),
    }
}

/// One step on a single server; on a Cluster one per home, 32 at a time, done after the last.
fn revoke_everyone(store: &RedisStore, made_up: Option<MadeUp>) -> StoreFuture<Revocation> {
    if !store.is_cluster() {
        return cut_off(store, 0..HOMES, made_up);
    }
    let store = store.clone();
    StoreFuture::boxed(async move {
        let mut steps = (0..HOMES).map(|home| cut_off(&store, home..home + 1, made_up));
        let mut running = tokio::task::JoinSet::new();
        loop {
            while running.len() < HOMES_AT_ONCE
                && let Some(step) = steps.next()
            {
                running.spawn(step);
            }
            match running.join_next().await {
                Some(Ok(answer)) => drop(answer?),
                Some(Err(error)) => {
                    return Err(StoreError::with_source(StoreErrorKind::Unavailable, error));
                }
                None => return Ok(Revocation::of(Revoked::Done(Vec::new()))),
            }
        }
    })
}

/// Ends all sessions of homes that one server holds.
fn cut_off(
    store: &RedisStore,
    homes: Range<u16>,
    made_up: Option<MadeUp>,
) -> StoreFuture<Revocation> {
    let keys: Vec<String> = homes.map(|home| cut_off_key(store, home)).collect();
    let step = store.script(&REVOKE, &keys).arg("everyone");
    asked_ago(step, made_up).run(revoked)
}

fn home_of(whose: &Whose) -> u16 {
    match whose {
        Whose::User(user) => home_of_user(user.as_str()),
        Whose::Session(at) => at.id.home(),
    }
}

fn session_key(store: &RedisStore, id: SessionId) -> String {
    store
        .key("session")
        .tag([id.home().to_string()])
        .plain(id)
        .finish()
}

fn index_key(store: &RedisStore, user: &UserId) -> String {
    let home = home_of_user(user.as_str()).to_string();
    let digest = digest22(user.as_str().as_bytes());
    store
        .key("session")
        .tag([home])
        .plain("user")
        .plain(digest)
        .finish()
}

fn cut_off_key(store: &RedisStore, home: u16) -> String {
    store
        .key("session")
        .tag([home.to_string()])
        .plain("cutoff")
        .finish()
}

/// Who asks about a user's sessions.
struct Asking {
    keys: [String; 3],
    is_session: bool,
    verifier: [u8; 32],
}

impl Asking {
    fn of(store: &RedisStore, whose: &Whose) -> Self {
        match whose {
            Whose::User(user) => {
                let index = index_key(store, user);
                let cut_off = cut_off_key(store, home_of_user(user.as_str()));
                Self {
                    keys: [index.clone(), index, cut_off],
                    is_session: false,
                    verifier: [0; 32],
                }
            }
            Whose::Session(at) => {
                let session = session_key(store, at.id);
                Self {
                    keys: [session.clone(), session, cut_off_key(store, at.id.home())],
                    is_session: true,
                    verifier: *at.verifier.as_bytes(),
                }
            }
        }
    }
}

fn flag(is_set: bool) -> &'static str {
    if is_set { "1" } else { "0" }
}

fn millis(duration: Duration) -> i128 {
    i128::try_from(duration.as_millis()).unwrap_or(i128::MAX)
}

fn seen(sighting: &Sighting) -> [u8; Seen::BYTES] {
    sighting.seen().encode()
}

fn with_identity(call: Call, identity: &Identity) -> Call {
    match identity {
        Identity::Keep => call.arg("0").arg("").arg("").arg(""),
        Identity::Set(login) => call
            .arg("1")
            .arg(login.user.as_str())
            .arg(encode_roles(&login.roles))
            .arg(encode_login(login)),
    }
}

/// The end of a core: stamp and whether the cookie outlives the browser.
fn encode_login(login: &LoginIdentity) -> [u8; 18] {
    let mut bytes = [0; 18];
    if let Some(stamp) = login.stamp {
        bytes[0] = 1;
        bytes[1..17].copy_from_slice(stamp.as_bytes());
    }
    bytes[17] = u8::from(login.remembered);
    bytes
}

fn encode_roles(roles: &Roles) -> Vec<u8> {
    let roles: Vec<&str> = roles.iter().collect();
    // Strings cannot fail to become JSON.
    serde_json::to_vec(&roles).unwrap_or_default()
}

fn with_patch(call: Call, patch: &Patch) -> Call {
    let count = i128::try_from(patch.operations.len()).unwrap_or(i128::MAX);
    let limit = i128::try_from(patch.limit).unwrap_or(i128::MAX);
    let call = call.num(limit).arg(flag(patch.clear)).num(count);
    patch
        .operations
        .iter()
        .fold(call, |call, (name, operation)| {
            let call = call.arg(name.as_bytes());
            match operation {
                Operation::Set(value) => call.arg("s").arg("").arg(encode_value(value)),
                Operation::SetIf(version, value) => {
                    call.arg("S").num(*version).arg(encode_value(value))
                }
                Operation::Remove => call.arg("r").arg("").arg(""),
                Operation::RemoveIf(version) => call.arg("R").num(*version).arg(""),
                Operation::Increment(by) => {
                    let most = crate::session::data::LARGEST_INTEGER;
                    call.arg("i").arg("").num(*by.clamp(&-most, &most))
                }
            }
        })
}

fn encode_value(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.json.len() + 1);
    bytes.push(value.format);
    bytes.extend_from_slice(&value.json);
    bytes
}

const fn code_of(cause: EndCause) -> u8 {
    match cause {
        EndCause::Logout => 1,
        EndCause::Revoked => 2,
        EndCause::Evicted => 3,
        EndCause::CredentialChange => 4,
        EndCause::AuthStamp => 5,
        EndCause::Everyone => 6,
    }
}
