//! A hold alone that had to wait for somebody else's transaction.

use std::time::Duration;

use sqlx::{Connection, SqliteConnection};
use tokio::sync::oneshot;
use tower_keep::backend::sql::{Postgres, SqlStore, Sqlite};
use tower_keep::reservation::{
    Conflict, ReservationError, ReservationGuard, ReservationLayer, Settled,
};

use super::trips::Statements;
use super::{postgres, slot};

/// Comes back when somebody waits for a lock in this database.
pub(super) async fn somebody_waits(pool: &sqlx::PgPool) {
    let waiting = "select count(*) from pg_stat_activity \
                   where datname = current_database() and wait_event_type = 'Lock'";
    while sqlx::query_scalar::<_, i64>(waiting)
        .fetch_one(pool)
        .await
        .unwrap()
        == 0
    {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn who_waited_for_a_confirmation_is_told_of_it_and_not_of_the_hold_before() {
    let db = postgres().await;
    let pool = db.pool::<Postgres>().unwrap();
    let own = ReservationLayer::new(db.clone()).reservations();
    let id = own.hold(slot("a"), "ann").await.unwrap().id();
    let (confirmed, is_confirmed) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel();
    let mut ends = Some((confirmed, may_go_on));
    let confirming = own.run(|mut guard: ReservationGuard| {
        let (confirmed, may_go_on) = ends.take().unwrap();
        async move {
            let settled = guard.confirm(id).await?;
            confirmed.send(()).unwrap();
            let () = may_go_on.await.unwrap();
            Ok::<_, ReservationError>(settled)
        }
    });
    let asking = async {
        is_confirmed.await.unwrap();
        let letting_go = async {
            somebody_waits(pool).await;
            go_on.send(()).unwrap();
        };
        tokio::join!(own.hold(slot("a"), "bob"), letting_go).0
    };
    let (settled, refused) = tokio::join!(confirming, asking);
    assert!(matches!(settled, Ok(Settled::Confirmed(_))), "{settled:?}");
    let is_booked = matches!(
        refused,
        Err(ReservationError::Conflict(Conflict::SlotTaken {
            held_until: None,
            by_you: false,
            ..
        }))
    );
    assert!(is_booked, "{refused:?}");
}

#[tokio::test]
async fn a_connection_left_impatient_waits_for_another_process_all_the_same() {
    let statements = Statements::listen();
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("keep.db").display());
    let db = SqlStore::builder(&url)
        .max_connections(1)
        .lock_timeout(Duration::from_secs(20));
    let db = db.open().await.unwrap();
    let own = ReservationLayer::new(db.clone()).reservations();
    own.migrate().await.unwrap();
    let pool = db.pool::<Sqlite>().unwrap();
    // As a transaction leaves it that had waited long for its turn.
    sqlx::raw_sql("pragma busy_timeout = 1")
        .execute(pool)
        .await
        .unwrap();
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql("begin immediate")
        .execute(&mut other)
        .await
        .unwrap();
    let before = statements.count();
    // When the first attempt has met the lock and was told so.
    let letting_go = async {
        while statements.count() == before {
            tokio::task::yield_now().await;
        }
        sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    };
    let (held, ()) = tokio::join!(own.hold(slot("a"), "ann"), letting_go);
    held.unwrap();
}
