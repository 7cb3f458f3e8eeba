//! A hot slot: four wait for it when its holder gives up. How long until all of them know, beside what SQL
//! alone does. `KEEP_HOT` is the number of rounds (5); with `--no-capture` the rates are told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use tower_keep::backend::sql::{Postgres, SqlStore};
use tower_keep::reservation::{ReservationError, ReservationGuard, ReservationLayer};

use super::slot;
use crate::support::PostgresServer;

const GUESTS: usize = 4;

/// What one round came to.
#[derive(Debug, Default)]
struct Round {
    took: Duration,
    won: usize,
    lost: usize,
    deadlocked: usize,
}

/// One guest's answer.
enum Told {
    Won,
    Lost,
    Deadlocked,
}

/// Waits until this many transactions wait for another one to end.
async fn all_wait(pool: &PgPool) {
    let sql = "select count(*) from pg_locks where locktype = 'transactionid' and not granted";
    let started = Instant::now();
    loop {
        let waiting: i64 = sqlx::query_scalar(sql).fetch_one(pool).await.unwrap();
        if waiting >= GUESTS as i64 {
            return;
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{waiting} wait"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Lets the guests ask while somebody has the slot, and measures from when it is given up.
async fn round<F>(pool: &PgPool, give_up: impl AsyncFnOnce(), ask: impl Fn(usize) -> F) -> Round
where
    F: Future<Output = Told> + Send + 'static,
{
    let asking: Vec<_> = (0..GUESTS).map(|guest| tokio::spawn(ask(guest))).collect();
    all_wait(pool).await;
    let started = Instant::now();
    give_up().await;
    let mut round = Round::default();
    for asked in asking {
        match asked.await.unwrap() {
            Told::Won => round.won += 1,
            Told::Lost => round.lost += 1,
            Told::Deadlocked => round.deadlocked += 1,
        }
    }
    round.took = started.elapsed();
    round
}

async fn of_ours(db: &SqlStore, pool: &PgPool, nth: usize) -> Round {
    let own = ReservationLayer::new(db.clone()).reservations();
    let slot = slot(&format!("hot {nth}"));
    let (had, may_go) = (
        Arc::new(tokio::sync::Notify::new()),
        Arc::new(tokio::sync::Notify::new()),
    );
    let first = tokio::spawn({
        let (own, slot, had, may_go) = (own.clone(), slot.clone(), had.clone(), may_go.clone());
        async move {
            let held = own.run(move |mut guard: ReservationGuard| {
                let (slot, had, may_go) = (slot.clone(), had.clone(), may_go.clone());
                async move {
                    guard.hold(slot, "first").await?;
                    had.notify_one();
                    may_go.notified().await;
                    Err::<(), _>(ReservationError::HoldNotFound)
                }
            });
            assert!(held.await.is_err());
        }
    });
    had.notified().await;
    let give_up = async || {
        may_go.notify_one();
        first.await.unwrap();
    };
    let ask = |guest: usize| {
        let (own, slot) = (own.clone(), slot.clone());
        async move {
            let held = own.run(move |mut guard: ReservationGuard| {
                let (slot, guest) = (slot.clone(), format!("guest {guest}"));
                async move { guard.hold(slot, &guest).await }
            });
            match held.attempts(1).await {
                Ok(_) => Told::Won,
                Err(ReservationError::Conflict(_)) => Told::Lost,
                Err(other) => panic!("{other:?}"),
            }
        }
    };
    round(pool, give_up, ask).await
}

/// The same by an insert of one's own.
async fn of_sql(pool: &PgPool, nth: usize, after: &'static str) -> Round {
    let insert = move |room: String| {
        let sql = format!("insert into rooms values ($1, int8range(0, 60)) {after}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).bind(room)
    };
    let room = format!("hot {nth} {after}");
    let mut first = pool.begin().await.unwrap();
    insert(room.clone()).execute(&mut *first).await.unwrap();
    let give_up = async || first.rollback().await.unwrap();
    let ask = |_| {
        let (pool, room) = (pool.clone(), room.clone());
        async move {
            let mut own = pool.begin().await.unwrap();
            let told = match insert(room).execute(&mut *own).await {
                Ok(done) if done.rows_affected() == 1 => Told::Won,
                Ok(_) => Told::Lost,
                Err(error) => match error.as_database_error().unwrap().code().as_deref() {
                    Some("23P01") => Told::Lost,
                    Some("40P01") => Told::Deadlocked,
                    other => panic!("{other:?}"),
                },
            };
            own.commit().await.unwrap();
            told
        }
    };
    round(pool, give_up, ask).await
}

fn mean(rounds: &[Round]) -> Duration {
    rounds.iter().map(|round| round.took).sum::<Duration>() / rounds.len() as u32
}

fn best(rounds: &[Round]) -> Duration {
    rounds.iter().map(|round| round.took).min().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_slot_is_decided_ten_times_as_fast_as_by_a_plain_insert() {
    let rounds = std::env::var("KEEP_HOT").map_or(5, |rounds| rounds.parse().unwrap());
    let server = PostgresServer::start().await;
    let db = SqlStore::builder(&server.database().await)
        .max_connections(2 * GUESTS as u32)
        .acquire_timeout(Duration::from_secs(30))
        .lock_timeout(Duration::from_secs(30));
    let db = db.open().await.unwrap();
    ReservationLayer::new(db.clone())
        .reservations()
        .migrate()
        .await
        .unwrap();
    let pool = db.pool::<Postgres>().unwrap();
    let rooms = "create table rooms (room text, during int8range, \
                 exclude using gist (room with =, during with &&))";
    sqlx::raw_sql(rooms).execute(pool).await.unwrap();
    let (mut ours, mut plain, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for nth in 0..rounds {
        ours.push(of_ours(&db, pool, nth).await);
        raw.push(of_sql(pool, nth, "on conflict do nothing").await);
    }
    // Seconds each: their rows are in already when the slot becomes free, they wait for each other in a circle, and
    // the server looks for circles after one.
    for nth in 0..rounds.div_ceil(3) {
        plain.push(of_sql(pool, nth, "").await);
    }
    let rate = |took: Duration| GUESTS as f64 / took.as_secs_f64();
    for (name, rounds) in [
        ("ours", &ours),
        ("on conflict do nothing", &raw),
        ("plain insert", &plain),
    ] {
        let circles: usize = rounds.iter().map(|round| round.deadlocked).sum();
        println!(
            "{name}: {:.1} guests/s at best, {:.1} on the average, {circles} deadlocks",
            rate(best(rounds)),
            rate(mean(rounds)),
        );
    }
    for round in &ours {
        assert_eq!((round.won, round.lost), (1, GUESTS - 1), "{round:?}");
    }
    // In fact it is a hundred times and more; the machine may be busy with other things.
    assert!(
        best(&ours) * 10 <= mean(&plain),
        "{ours:?} beside {plain:?}"
    );
}
