//! A look-up on a Redis Cluster: the entry on the node of its key, the stamps on theirs, asked for at once.
//!
//! The two are read at two moments, both after the request came. An invalidation that was told before is seen by the
//! second; one that comes in between is one that the request may miss. A fetch counts as begun at the stamp that was
//! read, never at a later one.

use crate::backend::redis::RedisStore;
use crate::core::StoreError;
use crate::response_cache::stamps::{Changes, Stamp};
use crate::response_cache::store::{Found, FoundEntry, Lease, Lookup, ResponseStore};

use super::{Asked, LARGEST_NUMBER, LOOKUP_SHARE, changes, keys, question};

/// Asks both nodes; again where a floor that has risen unheard turns what was found into nothing.
pub(super) async fn lookup(store: RedisStore, mut lookup: Lookup) -> Result<Found, StoreError> {
    loop {
        let (found, begun) = both(&store, &lookup).await?;
        if begun >= found.floor {
            return Ok(found);
        }
        // Now nothing is found, so that the lease is given; a third time only if the floor rises meanwhile.
        give_back(&store, &lookup, &found).await;
        lookup.not_before = lookup.not_before.max(found.floor);
    }
}

/// What is there, with the stamps as they are now; and the stamp that it was begun at.
async fn both(store: &RedisStore, lookup: &Lookup) -> Result<(Found, Stamp), StoreError> {
    let timeout = store.timeout() / LOOKUP_SHARE;
    let (head, found) = tokio::join!(
        changes(store, Stamp(LARGEST_NUMBER), timeout),
        question(store, &keys(store, lookup.key), lookup, None),
    );
    let Asked {
        mut found, begun, ..
    } = found?;
    let Changes { highest, floor, .. } = match head {
        Ok(head) => head,
        Err(error) => {
            give_back(store, lookup, &found).await;
            return Err(error);
        }
    };
    (found.highest, found.floor) = (highest, floor);
    if let Some(Lease::Granted(ticket)) = &mut found.lease {
        ticket.begun = highest;
    }
    let is_none = matches!(found.entry, FoundEntry::None);
    Ok((found, if is_none { highest } else { begun }))
}

/// Gives a lease back that nobody will use; not heard, it ends by itself.
async fn give_back(store: &RedisStore, lookup: &Lookup, found: &Found) {
    if let Some(Lease::Granted(ticket)) = found.lease {
        let _ = store.release(lookup.key, ticket, None).await;
    }
}
