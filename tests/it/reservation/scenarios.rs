//! What goes wrong in home-made booking code, by the names that it has there.

use std::sync::Arc;

use http::StatusCode;
use tower_keep::backend::sql::{Postgres, Sqlite};
use tower_keep::reservation::{
    Commit, ReservationError, ReservationGuard, ReservationLayer, ReservationRejection,
};

use super::{App, check, postgres, slot, sqlite, stores, visits};

#[tokio::test]
async fn recheck_and_insert_are_one_transaction() {
    for store in stores().await {
        let (seen, go) = (Arc::new(tokio::sync::Barrier::new(2)), slot("a"));
        let own = ReservationLayer::new(Arc::clone(&store)).reservations();
        let rival = own.clone();
        // Both find the slot free by their own look, before either asks for it.
        let book = move |own: tower_keep::reservation::Reservations, who: &'static str| {
            let (seen, slot) = (Arc::clone(&seen), go.clone());
            async move {
                let range = slot.blocks();
                let calendar = own.availability(slot.resource(), range.clone()).await?;
                assert!(calendar.spans().is_empty());
                seen.wait().await;
                let held = own.run(move |mut guard: ReservationGuard| {
                    let slot = slot.clone();
                    let range = slot.blocks();
                    async move {
                        let hold = guard.hold(slot.clone(), who).await?;
                        // What is looked at in the transaction is what it wrote, and nothing slips in between.
                        let calendar = guard.availability(slot.resource(), range).await?;
                        assert_eq!(calendar.spans().len(), 1);
                        Ok::<_, ReservationError>(hold)
                    }
                });
                held.await
            }
        };
        let (ann, bob) = tokio::join!(book(own, "ann"), book(rival, "bob"));
        let lost = [&ann, &bob]
            .into_iter()
            .filter(|held| matches!(held, Err(ReservationError::Conflict(_))));
        assert_eq!(lost.count(), 1, "{ann:?} {bob:?}");
        assert!(ann.is_ok() || bob.is_ok());
    }
}

#[tokio::test]
async fn a_conflict_is_a_clause_not_an_exception() {
    let db = postgres().await;
    let app = App::new(db.clone(), async |mut guard: ReservationGuard<Postgres>| {
        assert!(guard.hold(slot("a"), "bob").await.is_err());
        // The transaction has not failed: what the handler writes of the refusal is kept.
        let visit = sqlx::query("insert into visits values ('bob was refused')");
        let mut lease = guard.transaction().await.unwrap();
        visit.execute(&mut *lease).await.unwrap();
        Commit(StatusCode::CONFLICT)
    });
    app.own.hold(slot("a"), "ann").await.unwrap();
    assert_eq!(app.post().await.status, StatusCode::CONFLICT);
    assert_eq!(visits(&db).await, 1);
}

#[tokio::test]
async fn no_row_means_refused() {
    for store in stores().await {
        let app = App::new(store, async |mut guard: ReservationGuard| {
            // One of the three is taken: none of them is held, and nothing is there to be found.
            let wish = [slot("a"), slot("taken"), slot("z")];
            guard.hold(wish, "bob").await?;
            Ok::<_, ReservationRejection>(StatusCode::CREATED)
        });
        app.own.hold(slot("taken"), "ann").await.unwrap();
        let refused = app.post().await;
        check(&refused, StatusCode::CONFLICT, "SLOT_TEMPORARILY_RESERVED");
        for free in ["a", "z"] {
            assert!(!app.is_taken(&slot(free)).await, "{free}");
        }
    }
}

#[tokio::test]
async fn a_race_is_409_other_failures_500_never_429() {
    for store in stores().await {
        let app = App::new(store, async |mut guard: ReservationGuard| {
            guard.hold(slot("a"), "bob").await?;
            Ok::<_, ReservationRejection>(StatusCode::CREATED)
        });
        app.own.hold(slot("a"), "ann").await.unwrap();
        assert_eq!(app.post().await.status, StatusCode::CONFLICT);
    }
    let db = sqlite().await;
    let app = App::new(db, async |mut guard: ReservationGuard<Sqlite>| {
        guard.hold(slot("a"), "bob").await?;
        let wrong = sqlx::query("insert into nowhere values (1)");
        wrong.execute(&mut *guard.transaction().await?).await?;
        Ok::<_, ReservationRejection>(StatusCode::CREATED)
    });
    let failed = app.post().await;
    check(&failed, StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL");
    assert!(
        !failed.text().contains("nowhere"),
        "no text of the database"
    );
    assert!(!app.is_taken(&slot("a")).await);
}
