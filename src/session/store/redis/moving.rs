//! A login that moves a session to its user's home on a Cluster, where no script reaches both: freeze, set up, end.

use std::sync::Arc;

use bytes::Bytes;

use super::decode::{Frozen, frozen};
use super::{ESTABLISH, cut_off_key, send_establish, session_key};
use crate::backend::redis::RedisStore;
use crate::core::{Clock, StoreError, StoreFuture, SystemClock};
use crate::session::store::{Establish, Established, NotLive, SessionRef};

/// The fields of a session that was frozen, as they lie in its hash.
pub(super) type Fields = Vec<Bytes>;

/// Says whether the order takes more than one home.
pub(super) fn moves(order: &Establish) -> bool {
    let home = order.fresh.home();
    order.current.is_some_and(|at| at.id.home() != home)
}

/// Moves in three steps. Whatever fails leaves the old session to itself again, after 5 s at the latest, or a new one
/// without a holder.
pub(super) fn move_home(store: &RedisStore, order: Establish) -> StoreFuture<Established> {
    let Some(from) = order.current else {
        return send_establish(store, &order, None);
    };
    let store = store.clone();
    StoreFuture::boxed(async move {
        // An injected clock decides for the scripts, so it measures the way to them as well.
        let clock = store.clock().unwrap_or_else(|| Arc::new(SystemClock));
        let began = clock.now_micros();
        let fields = match freeze(&store, from).await? {
            Frozen::Fields(fields) => fields,
            // Not live: the login begins anew.
            Frozen::NotLive(why) => return anew(&store, order, why).await,
        };
        let waited = clock.now_micros().saturating_sub(began);
        let order = Establish {
            age: order.age + std::time::Duration::from_micros(waited),
            ..order
        };
        let answer = send_establish(&store, &order, Some(&fields)).await?;
        let is_done = matches!(answer, Established::Done(_));
        leave(&store, from, is_done).await?;
        Ok(answer)
    })
}

async fn anew(
    store: &RedisStore,
    order: Establish,
    why: NotLive,
) -> Result<Established, StoreError> {
    if order.otherwise == crate::session::store::Otherwise::Refuse {
        return Ok(Established::NotLive(why));
    }
    let order = Establish {
        current: None,
        ..order
    };
    send_establish(store, &order, None).await
}

fn freeze(store: &RedisStore, from: SessionRef) -> StoreFuture<Frozen> {
    let keys = [
        session_key(store, from.id),
        cut_off_key(store, from.id.home()),
    ];
    store
        .script(&ESTABLISH, &keys)
        .arg("freeze")
        .arg(from.verifier.as_bytes())
        .run(frozen)
}

/// Ends the old session, or lets it go on.
fn leave(store: &RedisStore, from: SessionRef, is_done: bool) -> StoreFuture<()> {
    let keys = [
        session_key(store, from.id),
        cut_off_key(store, from.id.home()),
    ];
    store
        .script(&ESTABLISH, &keys)
        .arg(if is_done { "end" } else { "thaw" })
        .arg(from.verifier.as_bytes())
        .run(|_| Ok(()))
}
