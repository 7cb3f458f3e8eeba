//! Queues in SQL: the suite and the model on each engine, two pools, and jobs in the caller's own transaction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tower_keep::backend::sql::{Postgres, RequestTransaction, SqlStore, Sqlite};
use tower_keep::conformance::queue::{histories, queue};
use tower_keep::core::{ManualClock, RollbackCause};
use tower_keep::data::queue::store::{Claim, QueueStore, Rules, Token};
use tower_keep::data::queue::{self as service, Batch, Job, JobError, Queue};
use tower_keep::{HOUR, MINUTE, SECOND};

use super::stores::{ids_go_after_their_jobs, ids_of_digests_and_of_cancelled_jobs_go};
use crate::support::postgres::shared;

fn clock() -> ManualClock {
    ManualClock::at("2030-01-01T00:00:00.007Z".parse().unwrap())
}

async fn open(url: &str, clock: &ManualClock) -> Arc<SqlStore> {
    let store = SqlStore::builder(url).clock(clock.clone()).open().await;
    Arc::new(store.unwrap())
}

#[tokio::test]
async fn sqlite_keeps_its_promises() {
    let clock = clock();
    queue(open("sqlite::memory:", &clock).await, &clock).await;
}

#[tokio::test]
async fn postgres_keeps_its_promises() {
    let clock = clock();
    let url = shared().await.database().await;
    queue(open(&url, &clock).await, &clock).await;
}

#[tokio::test]
async fn random_histories_on_sqlite_are_those_of_a_sorted_list() {
    let clock = clock();
    let store = open("sqlite::memory:", &clock).await;
    for seed in 0..12 {
        histories(store.clone(), &clock, seed, 200).await;
    }
}

#[tokio::test]
async fn random_histories_on_postgres_are_those_of_a_sorted_list() {
    let clock = clock();
    let store = open(&shared().await.database().await, &clock).await;
    for seed in 100..104 {
        histories(store.clone(), &clock, seed, 200).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_on_two_pools_get_each_job_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("keep.db").display());
    for url in [file, shared().await.database().await] {
        let (seen, mut workers) = (
            Arc::new(std::sync::Mutex::new(BTreeMap::new())),
            tokio::task::JoinSet::new(),
        );
        let mut queues: Vec<Queue<u64>> = Vec::new();
        for _ in 0..2 {
            queues.push(Queue::new(SqlStore::connect(&url).await.unwrap(), "jobs"));
        }
        queues[0]
            .enqueue_many((0..60).map(|number| Job::to(number % 9, number)))
            .await
            .unwrap();
        for queue in queues {
            let seen = Arc::clone(&seen);
            let worker = queue.worker(move |batch: Batch<u64>| {
                for item in batch.into_items() {
                    *seen.lock().unwrap().entry(item).or_insert(0) += 1;
                }
                async { Ok::<(), JobError>(()) }
            });
            workers.spawn(async move {
                worker
                    .concurrency(2)
                    .run_until_idle()
                    .await
                    .unwrap()
                    .delivered
            });
        }
        let mut delivered = 0;
        while let Some(done) = workers.join_next().await {
            delivered += done.unwrap();
        }
        assert_eq!(delivered, 60, "{url}");
        assert_eq!(
            *seen.lock().unwrap(),
            (0..60).map(|number| (number, 1)).collect(),
            "{url}"
        );
    }
}

#[tokio::test]
async fn a_job_in_the_callers_transaction_shares_its_fate() {
    let postgres = shared().await.database().await;
    for url in ["sqlite::memory:", &postgres] {
        let db = SqlStore::connect(url).await.unwrap();
        service::sql::register(&db);
        db.migrate().await.unwrap();
        let notices: Queue<String> = Queue::new(db.clone(), "notices");
        for commits in [false, true] {
            let (transaction, finisher) = RequestTransaction::alone(&db);
            let job = Job::to("u1", "booked".to_owned());
            let added = if url.starts_with("sqlite") {
                let mut lease = transaction.lease::<Sqlite>().await.unwrap();
                service::sql::enqueue(&db, &mut lease, &notices, job).await
            } else {
                let mut lease = transaction.lease::<Postgres>().await.unwrap();
                service::sql::enqueue(&db, &mut lease, &notices, job).await
            };
            added.unwrap();
            if commits {
                finisher.commit().await.unwrap();
            } else {
                finisher.rollback(RollbackCause::Cancelled).await;
            }
            assert_eq!(
                notices.depth().await.unwrap().ready,
                u64::from(commits),
                "{url}"
            );
        }
        let batch = notices.lease(5).await.unwrap().unwrap();
        assert_eq!(batch.jobs[0].items, ["booked"]);
        assert!(notices.ack(&batch).await.unwrap().is_complete());
    }
}

/// On SQLite one transaction writes at a time, and the extension of the lease is one: it waits for the job's own.
#[tokio::test]
async fn a_job_with_a_transaction_on_the_queues_own_store_runs_once() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("keep.db").display());
    let db = SqlStore::builder(&url).lock_timeout(30 * SECOND);
    let db = db.open().await.unwrap();
    let lease = 12 * SECOND;
    let queue: Queue<u64> = Queue::new(db.clone(), "q").lease_for(lease);
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    let runs = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&runs);
    let worker = queue.worker(move |_: Batch<u64>| {
        let (db, count) = (db.clone(), Arc::clone(&count));
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            let (transaction, finisher) = RequestTransaction::alone(&db);
            drop(transaction.lease::<Sqlite>().await.unwrap());
            // The extension begins meanwhile, at a third.
            tokio::time::sleep(lease / 3 + SECOND).await;
            finisher.commit().await.unwrap();
            Ok::<(), JobError>(())
        }
    });
    let report = worker.run_until_idle().await.unwrap();
    assert_eq!((report.delivered, report.retried), (1, 0));
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

const RULES: Rules = Rules {
    capacity: 1_000,
    per_recipient: 1_000,
    attempts: 5,
    expire_after: HOUR,
    remember_for: HOUR,
    aging: Duration::ZERO,
};

fn claim() -> Claim {
    Claim {
        token: Token([1; 16]),
        most: 5,
        lease: MINUTE,
        recipient: None,
    }
}

/// Whoever looks for work passes it over, and must not look again at once, for as long as that transaction is open.
#[tokio::test]
async fn a_ready_job_that_another_transaction_has_locked_is_looked_at_a_little_later() {
    let url = shared().await.database().await;
    let db = SqlStore::connect(&url).await.unwrap();
    let queue: Queue<u64> = Queue::new(db.clone(), "q");
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    let mut other = PgConnection::connect(&url).await.unwrap();
    let mut held = other.begin().await.unwrap();
    let lock = "SELECT seq FROM keep_queue FOR UPDATE";
    sqlx::query(lock).execute(&mut *held).await.unwrap();
    let name = Arc::from("q");
    let passed = db.lease(&name, claim(), &RULES).await.unwrap();
    assert!(passed.jobs.is_empty());
    let again = passed.next_due.unwrap().since(passed.now);
    assert!(!again.is_zero(), "it is looked at without a pause");
    assert!(again <= 5 * SECOND);
    held.rollback().await.unwrap();
    let leased = db.lease(&name, claim(), &RULES).await.unwrap();
    assert_eq!((leased.jobs.len(), leased.next_due), (1, Some(leased.now)));
}

/// As many as one look buries are looked for again at once.
#[tokio::test]
async fn however_many_expired_one_lease_buries_them() {
    let (clock, postgres) = (clock(), shared().await.database().await);
    for url in ["sqlite::memory:", &postgres] {
        let store = open(url, &clock).await;
        let queue: Queue<u64> = Queue::new(store, "q").expire_after(HOUR);
        let jobs = (0..250).map(|number| Job::to("u1", number));
        queue.enqueue_many(jobs).await.unwrap();
        clock.advance(HOUR);
        assert!(queue.lease(5).await.unwrap().is_none());
        let depth = queue.depth().await.unwrap();
        assert_eq!((depth.waiting(), depth.dead), (0, 250), "{url}");
    }
}

async fn ids_of(db: &SqlStore) -> usize {
    let count = "SELECT count(*) FROM keep_queue_once";
    let ids: i64 = if let Some(pool) = db.pool::<Sqlite>() {
        sqlx::query_scalar(count).fetch_one(pool).await.unwrap()
    } else {
        let pool = db.pool::<Postgres>().unwrap();
        sqlx::query_scalar(count).fetch_one(pool).await.unwrap()
    };
    usize::try_from(ids).unwrap()
}

#[tokio::test]
async fn an_id_goes_when_its_time_is_over_and_its_job_is_gone() {
    let (clock, postgres) = (clock(), shared().await.database().await);
    for url in ["sqlite::memory:", &postgres] {
        let store = open(url, &clock).await;
        let ids = async || ids_of(&store).await;
        ids_go_after_their_jobs(Queue::new(store.clone(), "q"), &clock, ids).await;
    }
}

/// The session ends while it commits: the driver has no reply, and the job is not there.
#[tokio::test]
async fn a_job_lost_with_its_commit_is_never_told_as_enqueued() {
    let url = shared().await.database().await;
    let db = SqlStore::builder(&url).commit_timeout(std::time::Duration::from_millis(200));
    let db = db.open().await.unwrap();
    let queue: Queue<String> = Queue::new(db.clone(), "notices");
    let job = || Job::to("u1", "booked".to_owned());
    queue.enqueue(job()).await.unwrap();
    let dies = "create function die() returns trigger language plpgsql as \
                'begin perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(60); return null; end'; \
                create constraint trigger dies after insert on keep_queue deferrable initially deferred \
                for each row execute function die()";
    let pool = db.pool::<Postgres>().unwrap();
    sqlx::raw_sql(dies).execute(pool).await.unwrap();
    assert!(queue.enqueue(job()).await.is_err());
    assert_eq!(queue.depth().await.unwrap().ready, 1);
}

/// What has been read of the jobs; the handles that did it are closed.
async fn rows_read(url: &str) -> i64 {
    let mut admin = PgConnection::connect(url).await.unwrap();
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    while sqlx::query_scalar::<_, i64>(others)
        .fetch_one(&mut admin)
        .await
        .unwrap()
        > 0
    {
        tokio::task::yield_now().await;
    }
    let read = "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'keep_queue')::bigint \
                + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'keep_queue')";
    sqlx::query_scalar(read)
        .fetch_one(&mut admin)
        .await
        .unwrap()
}

const THERE: u64 = 4_096;

/// A queue in which so many wait, each for somebody else, and that holds `capacity`.
async fn crowd(url: &str, capacity: u64) -> (SqlStore, Queue<u64>) {
    let db = SqlStore::connect(url).await.unwrap();
    let queue: Queue<u64> = Queue::new(db.clone(), "crowd");
    for first in (0..THERE).step_by(512) {
        let jobs = (first..first + 512).map(|number| Job::to(number, number));
        queue.enqueue_many(jobs).await.unwrap();
    }
    (db, queue.capacity(capacity, capacity))
}

/// Those over the limit are found by going through all that are kept.
#[tokio::test]
async fn hardly_a_lease_goes_through_the_dead_letters() {
    let url = shared().await.database().await;
    let db = SqlStore::connect(&url).await.unwrap();
    let queue: Queue<u64> = Queue::new(db.clone(), "q");
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    let dead = "INSERT INTO keep_queue (queue, recipient, rank, state, due, expires, attempts, items, died) \
                SELECT 'q', 'u2', 1, 3, 0, 0, 5, ''::bytea, extract(epoch FROM now()) * 1000 FROM generate_series(1, 4096); ANALYZE keep_queue";
    let pool = db.pool::<Postgres>().unwrap();
    sqlx::raw_sql(dead).execute(pool).await.unwrap();
    db.close(MINUTE).await;
    let before = rows_read(&url).await;
    let db = SqlStore::connect(&url).await.unwrap();
    for (token, jobs) in (1..8).zip([1, 0, 0, 0, 0, 0, 0]) {
        let claim = Claim {
            token: Token([token; 16]),
            ..claim()
        };
        let leased = db.lease(&Arc::from("q"), claim, &RULES).await.unwrap();
        assert_eq!(leased.jobs.len(), jobs);
    }
    db.close(MINUTE).await;
    let read = rows_read(&url).await - before;
    assert!(read < 4_096, "{read} rows were read");
}

#[tokio::test]
async fn a_lease_that_finds_nothing_does_not_go_through_what_is_due_later() {
    let url = shared().await.database().await;
    let db = SqlStore::connect(&url).await.unwrap();
    let queue: Queue<u64> = Queue::new(db.clone(), "q");
    queue.enqueue(Job::to("u1", 1).after(HOUR)).await.unwrap();
    let later = "INSERT INTO keep_queue (queue, recipient, rank, state, due, expires, attempts, items) \
                 SELECT 'q', 'u2', rank, 1, due + n, expires + n, 0, items FROM keep_queue, generate_series(1, 4096) n; \
                 ANALYZE keep_queue";
    let pool = db.pool::<Postgres>().unwrap();
    sqlx::raw_sql(later).execute(pool).await.unwrap();
    db.close(MINUTE).await;
    let before = rows_read(&url).await;
    let db = SqlStore::connect(&url).await.unwrap();
    let leased = db.lease(&Arc::from("q"), claim(), &RULES).await.unwrap();
    assert!(leased.jobs.is_empty() && leased.next_due > Some(leased.now));
    db.close(MINUTE).await;
    let read = rows_read(&url).await - before;
    assert!(read < 4_096, "{read} rows were read");
}

#[tokio::test]
async fn an_enqueue_far_from_its_limits_counts_no_jobs() {
    let url = shared().await.database().await;
    let (db, queue) = crowd(&url, 2 * THERE).await;
    db.close(MINUTE).await;
    let before = rows_read(&url).await;
    drop(queue);
    let db = SqlStore::connect(&url).await.unwrap();
    let queue: Queue<u64> = Queue::new(db.clone(), "crowd").capacity(2 * THERE, 2 * THERE);
    queue.enqueue(Job::to("u1", 1)).await.unwrap();
    db.close(MINUTE).await;
    let read = rows_read(&url).await - before;
    assert!(read < 100, "{read} entries were read");
}

#[tokio::test]
async fn an_enqueue_near_its_limits_counts_what_is_there_whatever_has_gone() {
    let postgres = shared().await.database().await;
    for url in ["sqlite::memory:", &postgres] {
        let (_db, queue) = crowd(url, THERE + 1).await;
        let add = async || queue.enqueue(Job::to("u1", 1)).await;
        let last = add().await.unwrap().id();
        assert!(add().await.is_err(), "{url}");
        assert_eq!(queue.cancel("u1", [last]).await.unwrap(), [last]);
        let inner = queue.list(7_u64, 1).await.unwrap()[0].id;
        assert_eq!(queue.cancel(7_u64, [inner]).await.unwrap(), [inner]);
        for _ in 0..2 {
            add().await.unwrap();
        }
        assert!(add().await.is_err(), "{url}");
    }
}

/// Puts a view in the place of the table of jobs: whoever looks at dead letters by age waits at a lock that the test has.
const SLOWLY: [&str; 3] = [
    "ALTER TABLE keep_queue RENAME TO jobs",
    "CREATE FUNCTION slowly(state int) RETURNS boolean VOLATILE COST 1000000 LANGUAGE plpgsql AS \
     $$ BEGIN IF state = 3 THEN PERFORM pg_advisory_xact_lock_shared(77); END IF; RETURN true; END $$",
    "CREATE VIEW keep_queue AS SELECT * FROM jobs WHERE slowly(state::int)",
];

#[tokio::test]
async fn dead_letters_beyond_ten_thousand_go_but_none_that_was_revived_meanwhile() {
    let clock = clock();
    let url = shared().await.database().await;
    let queue: Queue<u64> = Queue::new(open(&url, &clock).await, "q");
    queue.enqueue(Job::to("a", 7)).await.unwrap();
    let dead = queue.worker(|_| async { Err(JobError::dead("no")) });
    dead.run_until_idle().await.unwrap();
    let mut desk = PgConnection::connect(&url).await.unwrap();
    // The one that is dead already is the oldest.
    let columns = "SELECT string_agg(column_name, ', ') FROM information_schema.columns \
                   WHERE table_name = 'keep_queue' AND column_name NOT IN ('seq', 'died')";
    let columns: String = sqlx::query_scalar(columns)
        .fetch_one(&mut desk)
        .await
        .unwrap();
    let many = format!(
        "INSERT INTO keep_queue (seq, died, {columns}) OVERRIDING SYSTEM VALUE SELECT seq + n, died + n, {columns} \
         FROM keep_queue, generate_series(1, 10000) n"
    );
    let many = sqlx::AssertSqlSafe(many);
    sqlx::query(many).execute(&mut desk).await.unwrap();
    for made in SLOWLY {
        sqlx::query(made).execute(&mut desk).await.unwrap();
    }
    let mut door = PgConnection::connect(&url).await.unwrap();
    let shut = "SELECT pg_advisory_lock(77)";
    sqlx::query(shut).execute(&mut door).await.unwrap();
    let counting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.depth().await }
    });
    somebody_waits_at_the_door(&mut desk).await;
    let revive =
        "UPDATE jobs SET state = 1, attempts = 0 WHERE died = (SELECT min(died) FROM jobs)";
    sqlx::query(revive).execute(&mut desk).await.unwrap();
    let open = "SELECT pg_advisory_unlock(77)";
    sqlx::query(open).execute(&mut door).await.unwrap();
    let depth = counting.await.unwrap().unwrap();
    assert_eq!((depth.ready, depth.dead), (1, 10_000));
    // And the bound itself.
    let kill = "UPDATE jobs SET state = 3 WHERE state = 1";
    sqlx::query(kill).execute(&mut desk).await.unwrap();
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.dead), (0, 10_000));
}

async fn somebody_waits_at_the_door(desk: &mut PgConnection) {
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77 AND NOT granted \
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    loop {
        let waiting: i64 = sqlx::query_scalar(waits)
            .fetch_one(&mut *desk)
            .await
            .unwrap();
        if waiting > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_cancels_in_another_order_is_not_in_the_way() {
    let queue: Queue<u64> = Queue::new(
        SqlStore::connect(&shared().await.database().await)
            .await
            .unwrap(),
        "q",
    );
    for round in 0..50 {
        let jobs = (0..8).map(|n| Job::to("a", n));
        let added = queue.enqueue_many(jobs).await.unwrap();
        let ids: Vec<_> = added.iter().map(|added| added.id()).collect();
        let mut back = ids.clone();
        back.reverse();
        let (one, two) = (queue.clone(), queue.clone());
        let (one, two) = tokio::join!(
            tokio::spawn(async move { one.cancel("a", ids).await }),
            tokio::spawn(async move { two.cancel("a", back).await }),
        );
        let (one, two) = (one.unwrap().unwrap(), two.unwrap().unwrap());
        assert_eq!(one.len() + two.len(), 8, "round {round}");
    }
}

#[tokio::test]
async fn ids_that_no_lease_of_their_own_follows_go_from_sql() {
    for url in ["sqlite::memory:", &shared().await.database().await] {
        let clock = clock();
        let db = open(url, &clock).await;
        let ids = async || {
            let sql = "SELECT count(*) FROM keep_queue_once";
            let ids: i64 = match db.pool::<Sqlite>() {
                Some(pool) => sqlx::query_scalar(sql).fetch_one(pool).await.unwrap(),
                None => {
                    let pool = db.pool::<Postgres>().unwrap();
                    sqlx::query_scalar(sql).fetch_one(pool).await.unwrap()
                }
            };
            usize::try_from(ids).unwrap()
        };
        let queue = Queue::new(Arc::clone(&db), "q");
        ids_of_digests_and_of_cancelled_jobs_go(queue, &clock, ids).await;
    }
}

/// The transaction of a handler may be open for long, and the next handler's ids are no matter of his.
#[tokio::test]
async fn an_open_transaction_that_brings_ids_holds_up_no_id_that_is_not_its_own() {
    let (clock, url) = (clock(), shared().await.database().await);
    let db = open(&url, &clock).await;
    let other = SqlStore::builder(&url).clock(clock.clone());
    let other = other.lock_timeout(SECOND).open().await.unwrap();
    let queue = |store: &SqlStore| {
        let queue: Queue<u64> = Queue::new(store.clone(), "q");
        queue.remember_for(HOUR)
    };
    let (ours, theirs) = (queue(&db), queue(&other));
    ours.enqueue(Job::to("u1", 1).once("old")).await.unwrap();
    let batch = ours.lease(1).await.unwrap().unwrap();
    assert!(ours.ack(&batch).await.unwrap().is_complete());
    clock.advance(2 * HOUR);
    let (transaction, finisher) = RequestTransaction::alone(&db);
    let mut lease = transaction.lease::<Postgres>().await.unwrap();
    // One id in eight lets what is over be forgotten.
    for number in 0..64 {
        let job = Job::to("u2", number).once(format!("new {number}"));
        let added = service::sql::enqueue(&db, &mut lease, &ours, job).await;
        added.unwrap();
    }
    drop(lease);
    theirs.enqueue(Job::to("u1", 2).once("old")).await.unwrap();
    finisher.commit().await.unwrap();
    assert_eq!(ours.depth().await.unwrap().ready, 65);
}
