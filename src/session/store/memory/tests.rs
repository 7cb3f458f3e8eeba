//! What sessions cost, and what is left of them.

use std::time::Duration;

use super::*;
use crate::core::ManualClock;
use crate::session::limits::{Lifetimes, SessionLimit};
use crate::session::store::{Identity, LoginIdentity, Otherwise};

const MANY: usize = 100_000;

fn login(n: usize) -> Establish {
    let mut id = *uuid::Uuid::from_u128(n as u128).as_bytes();
    id[0] = (n % 251) as u8;
    Establish {
        current: None,
        fresh: SessionId::from_bytes(id),
        verifier: Verifier::from_bytes([7; 32]),
        identity: Identity::Set(Box::new(LoginIdentity {
            user: UserId::try_new(format!("user-{}", n / 2)).unwrap(),
            roles: Roles::default(),
            stamp: None,
            remembered: false,
            revoke_others: false,
        })),
        otherwise: Otherwise::Create,
        lifetimes: Lifetimes::DEFAULT,
        extended: Duration::from_secs(3_600),
        limit: SessionLimit::evict_longest_idle(100),
        patch: Patch {
            clear: false,
            operations: crate::session::store::Operations::new(),
            limit: 64 * 1_024,
            sighting: Sighting::default(),
        },
        age: Duration::ZERO,
    }
}

#[test]
fn a_hundred_thousand_sessions_left_behind_give_their_memory_back() {
    let clock = ManualClock::at(Timestamp::from_millis(1_900_000_000_000));
    let store = MemoryStore::builder().clock(clock.clone()).build();
    let table = store.table::<Entry>();
    for n in 0..MANY {
        let done = establish::establish(&store, &login(n)).unwrap();
        assert!(matches!(done, Established::Done(_)));
    }
    let each = table.bytes() / MANY;
    assert!(
        each <= 600,
        "a logged-in session without data takes {each} bytes"
    );
    // Nobody comes back to them; other visitors come, a few at a time, and go as well.
    clock.advance(Duration::from_secs(2 * 86_400));
    for n in 0..MANY {
        establish::establish(&store, &login(MANY + n)).unwrap();
        if n % 100 == 0 {
            clock.advance(Duration::from_secs(86_400));
        }
    }
    clock.advance(Duration::from_secs(2 * 86_400));
    let left = table.entries();
    assert!(left < 5_000, "{left} entries left");
    let left = table.bytes();
    assert!(left < 5_000 * 600, "{left} bytes left");
}
