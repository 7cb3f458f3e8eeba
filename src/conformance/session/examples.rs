//! Promises of a session store, one example each.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::core::{ManualClock, Timestamp};
use crate::session::store::{
    EndCause, Establish, EstablishCause, Established, Identity, Lifetimes, Listed, Loaded,
    LoginIdentity, NotLive, Operation, Otherwise, Part, Patch, Patched, Read, Revoked, Roles,
    SessionId, SessionLimit, SessionRef, SessionStore, Sighting, Target, UserId, Value, Verifier,
    Whose, home_of_user,
};

const SECOND: Duration = Duration::from_secs(1);

/// A new id in `home`, never the same twice in a process.
pub(super) fn new_id(home: u16) -> SessionId {
    let mut bytes: [u8; 16] = *uuid::Uuid::new_v4().as_bytes();
    bytes[0] = (home >> 2) as u8;
    bytes[1] = (bytes[1] & 0x3f) | ((home << 6) as u8);
    SessionId::from_bytes(bytes)
}

pub(super) fn verifier(secret: u64) -> Verifier {
    let mut bytes = [7; 32];
    bytes[..8].copy_from_slice(&secret.to_be_bytes());
    Verifier::from_bytes(bytes)
}

pub(super) fn patch(operations: &[(&str, Operation)]) -> Patch {
    Patch {
        clear: false,
        operations: operations
            .iter()
            .map(|(name, operation)| ((*name).to_owned().into(), operation.clone()))
            .collect(),
        limit: 64 * 1_024,
        sighting: Sighting::default(),
    }
}

pub(super) fn json(text: &str) -> Value {
    Value {
        format: 0,
        json: Bytes::copy_from_slice(text.as_bytes()),
    }
}

pub(super) fn order(fresh: SessionId, secret: u64) -> Establish {
    Establish {
        current: None,
        fresh,
        verifier: verifier(secret),
        identity: Identity::Keep,
        otherwise: Otherwise::Create,
        lifetimes: Lifetimes::DEFAULT,
        extended: Duration::from_secs(3_600),
        limit: SessionLimit::evict_longest_idle(100),
        patch: patch(&[]),
        age: Duration::ZERO,
    }
}

pub(super) fn identity(user: &str) -> LoginIdentity {
    LoginIdentity {
        user: UserId::try_new(user).expect("a user id"),
        roles: Roles::default(),
        stamp: None,
        remembered: false,
        revoke_others: false,
    }
}

fn login_order(user: &str, secret: u64) -> Establish {
    Establish {
        identity: Identity::Set(Box::new(identity(user))),
        ..order(new_id(home_of_user(user)), secret)
    }
}

fn new_user() -> String {
    format!("user-{}", uuid::Uuid::new_v4())
}

async fn done(store: &dyn SessionStore, order: Establish) -> SessionRef {
    let verifier = order.verifier;
    match store.establish(order).await.expect("an answer") {
        Established::Done(done) => SessionRef {
            id: done.record.id,
            verifier,
        },
        other => panic!("a session was to be set up, not {other:?}"),
    }
}

async fn look(store: &dyn SessionStore, at: SessionRef) -> Result<(), NotLive> {
    let read = Read {
        part: Part::Core,
        renew: None,
    };
    match store.load(at, read).await.expect("an answer") {
        Loaded::Live(_) => Ok(()),
        Loaded::NotLive(why) => Err(why),
    }
}

async fn touch(store: &dyn SessionStore, at: SessionRef) -> bool {
    let read = Read {
        part: Part::Core,
        renew: Some(Sighting::default()),
    };
    match store.load(at, read).await.expect("an answer") {
        Loaded::Live(live) => live.renewed.is_some(),
        Loaded::NotLive(why) => panic!("the session was to be live, not {why:?}"),
    }
}

pub(super) async fn ends_at_exactly_its_ends(store: &dyn SessionStore, clock: &ManualClock) {
    let start = Timestamp::of(clock);
    let idle = done(store, login_order(&new_user(), 1)).await;
    let data = done(
        store,
        Establish {
            patch: patch(&[("a", Operation::Set(json("1")))]),
            lifetimes: Lifetimes::new(Duration::from_secs(9_000), Duration::from_secs(9_000)),
            ..order(new_id(1), 2)
        },
    )
    .await;
    clock.set(start.plus(Duration::from_millis(899_999)));
    assert_eq!(look(store, idle).await, Ok(()), "live at 899.999 s");
    clock.set(start.plus(Duration::from_secs(900)));
    assert_eq!(
        look(store, idle).await,
        Err(NotLive::Missing),
        "over at 900 s"
    );

    let read = Read {
        part: Part::Whole,
        renew: None,
    };
    let count = async |at| match store
        .load(data, {
            clock.set(at);
            read.clone()
        })
        .await
        .expect("an answer")
    {
        Loaded::Live(live) => live.data.map_or(0, |data| data.entries().len()),
        Loaded::NotLive(why) => panic!("the core was to be live, not {why:?}"),
    };
    assert_eq!(
        count(start.plus(Duration::from_millis(3_599_999))).await,
        1,
        "data at 3,599.999 s"
    );
    assert_eq!(
        count(start.plus(Duration::from_secs(3_600))).await,
        0,
        "no data at 3,600 s"
    );
}

pub(super) async fn activity_is_recorded_once_an_interval(
    shared: &Arc<dyn SessionStore>,
    clock: &ManualClock,
) {
    let store = &**shared;
    let start = Timestamp::of(clock);
    let at = done(store, login_order(&new_user(), 1)).await;
    let mut renewals = 0;
    for second in 1..=600 {
        clock.set(start.plus(second * SECOND));
        renewals += u32::from(touch(store, at).await);
    }
    assert_eq!(renewals, 9, "one after each whole minute");
    clock.set(start.plus(700 * SECOND));
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let store = Arc::clone(shared);
        requests.spawn(async move { touch(&*store, at).await });
    }
    let renewed = requests.join_all().await;
    let mut renewals = renewed.into_iter().filter(|renewed| *renewed).count();
    for second in 0..=60 {
        clock.set(start.plus((700 + second) * SECOND));
        for _ in 0..15 {
            renewals += usize::from(touch(store, at).await);
        }
    }
    assert_eq!(renewals, 1, "of a thousand requests in one interval");
    // A request every 600 s keeps it to the absolute end and no longer.
    for step in 2..144 {
        clock.set(start.plus(step * 600 * SECOND));
        touch(store, at).await;
    }
    clock.set(start.plus(Duration::from_millis(86_399_999)));
    assert_eq!(look(store, at).await, Ok(()), "live at 86,399.999 s");
    clock.set(start.plus(Duration::from_secs(86_400)));
    assert_eq!(
        look(store, at).await,
        Err(NotLive::Missing),
        "over at 86,400 s"
    );
}

pub(super) async fn the_old_secret_is_superseded_then_replayed(
    store: &dyn SessionStore,
    clock: &ManualClock,
) {
    let old = done(store, login_order(&new_user(), 1)).await;
    let rotated = Timestamp::of(clock);
    let rotation = Establish {
        current: Some(old),
        otherwise: Otherwise::Refuse,
        ..order(new_id(old.id.home()), 2)
    };
    let new = done(store, rotation).await;
    assert_eq!(new.id, old.id, "a rotation keeps the id");
    clock.set(rotated.plus(60 * SECOND));
    assert_eq!(look(store, old).await, Err(NotLive::Superseded));
    clock.set(rotated.plus(Duration::from_millis(60_001)));
    assert_eq!(look(store, old).await, Err(NotLive::Replayed));
    assert_eq!(
        look(
            store,
            SessionRef {
                verifier: verifier(9),
                ..old
            }
        )
        .await,
        Err(NotLive::WrongSecret)
    );
    assert_eq!(look(store, new).await, Ok(()));
    let refused = Establish {
        current: Some(old),
        otherwise: Otherwise::Refuse,
        ..order(new_id(1), 3)
    };
    let answer = store.establish(refused).await.expect("an answer");
    assert_eq!(
        answer,
        Established::NotLive(NotLive::Replayed),
        "an old secret rotates nothing"
    );
}

pub(super) async fn what_was_ended_stays_ended(store: &dyn SessionStore, clock: &ManualClock) {
    let user = new_user();
    let at = done(store, login_order(&user, 1)).await;
    let other = done(store, login_order(&user, 2)).await;
    let stranger = done(store, login_order(&new_user(), 3)).await;
    let foreign = store
        .revoke(Target::One(Whose::Session(stranger), at.id))
        .await
        .expect("an answer");
    assert_eq!(
        foreign,
        Revoked::Done(Vec::new()),
        "a foreign session is not found"
    );
    assert_eq!(look(store, at).await, Ok(()));
    let done_one = store
        .revoke(Target::One(Whose::Session(other), at.id))
        .await
        .expect("an answer");
    assert!(matches!(done_one, Revoked::Done(ended) if ended.len() == 1));
    let ended = Timestamp::of(clock);
    let set = patch(&[("a", Operation::Set(json("1")))]);
    let why = NotLive::Ended(EndCause::Revoked);
    assert_eq!(
        store.patch(at, &set).await.expect("an answer"),
        Patched::NotLive(why),
        "no write revives it"
    );
    let others = store.revoke(Target::Others(at)).await.expect("an answer");
    assert_eq!(
        others,
        Revoked::NotLive(why),
        "who is revoked revokes nobody"
    );
    clock.set(ended.plus(Duration::from_millis(60_001)));
    assert_eq!(
        store.patch(at, &set).await.expect("an answer"),
        Patched::NotLive(NotLive::Missing)
    );
    let listed = store.list(Whose::Session(other)).await.expect("an answer");
    let Listed::Sessions(sessions) = listed else {
        panic!("a list, not {listed:?}")
    };
    assert_eq!(
        sessions.iter().map(|record| record.id).collect::<Vec<_>>(),
        [other.id]
    );
}

pub(super) async fn a_login_that_began_before_is_overtaken(
    store: &dyn SessionStore,
    clock: &ManualClock,
) {
    let user = new_user();
    let whose = Whose::User(UserId::try_new(&user).expect("a user id"));
    store.revoke(Target::All(whose)).await.expect("an answer");
    clock.advance(5 * SECOND);
    let aged = |age| Establish {
        age,
        ..login_order(&user, 1)
    };
    let old = store.establish(aged(5 * SECOND)).await.expect("an answer");
    assert_eq!(
        old,
        Established::Overtaken,
        "it rests on what was known before"
    );
    done(store, aged(Duration::from_millis(4_999))).await;
}

pub(super) async fn everyone_is_cut_off(store: &dyn SessionStore, clock: &ManualClock) {
    let user = done(store, login_order(&new_user(), 1)).await;
    let anonymous = done(store, order(new_id(77), 2)).await;
    store.revoke(Target::Everyone).await.expect("an answer");
    for at in [user, anonymous] {
        assert_eq!(
            look(store, at).await,
            Err(NotLive::Ended(EndCause::Everyone))
        );
    }
    let after = done(store, order(new_id(77), 3)).await;
    assert_eq!(
        look(store, after).await,
        Ok(()),
        "set up in the same millisecond, but afterwards"
    );
    clock.advance(SECOND);
}

pub(super) async fn parallel_writes_are_all_kept(store: &Arc<dyn SessionStore>) {
    let at = done(&**store, order(new_id(5), 1)).await;
    let writes = (0..64).map(|n| {
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let name = format!("k{}", n % 60);
            let write = patch(&[
                (&name, Operation::Set(json("1"))),
                ("sum", Operation::Increment(2)),
            ]);
            store.patch(at, &write).await.expect("an answer")
        })
    });
    for write in writes.collect::<Vec<_>>() {
        assert!(matches!(
            write.await.expect("no panic"),
            Patched::Applied { .. }
        ));
    }
    let read = Read {
        part: Part::Whole,
        renew: None,
    };
    let loaded = store.load(at, read).await.expect("an answer");
    let Loaded::Live(live) = loaded else {
        panic!("live, not {loaded:?}")
    };
    let data = live.data.expect("data");
    assert_eq!(data.entries().len(), 61, "no write undoes another");
    assert_eq!(
        data.get("sum").map(|entry| &*entry.value.json),
        Some(&b"128"[..])
    );
}

pub(super) async fn parallel_logins_keep_the_limit(
    store: &Arc<dyn SessionStore>,
    clock: &ManualClock,
) {
    for limit in [
        SessionLimit::reject(3),
        SessionLimit::evict_oldest(3),
        SessionLimit::evict_longest_idle(3),
    ] {
        let user = new_user();
        let logins = (0..50).map(|n| {
            let (store, order) = (
                Arc::clone(store),
                Establish {
                    limit,
                    ..login_order(&user, n)
                },
            );
            tokio::spawn(async move { store.establish(order).await.expect("an answer") })
        });
        let mut refused = 0;
        for login in logins.collect::<Vec<_>>() {
            match login.await.expect("no panic") {
                Established::Done(done) => assert_eq!(done.cause, EstablishCause::First),
                Established::Limit => refused += 1,
                other => panic!("a login was to be done or refused, not {other:?}"),
            }
        }
        assert!(
            refused == 0 || (limit == SessionLimit::reject(3) && refused == 47),
            "{refused} refused"
        );
        let whose = Whose::User(UserId::try_new(&user).expect("a user id"));
        let listed = store.list(whose).await.expect("an answer");
        assert!(matches!(listed, Listed::Sessions(sessions) if sessions.len() == 3));
    }
    clock.advance(SECOND);
}

/// An address for the model.
pub(super) fn address(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}
