//! Tables that somebody made by hand from what was printed.

use sqlx::AssertSqlSafe;
use tower_keep::backend::sql::{Migrations, Postgres, SqlStore, Sqlite};
use tower_keep::reservation::{ReservationLayer, Reservations};

use crate::support::postgres::shared;

async fn open(url: &str, migrations: Migrations) -> SqlStore {
    let db = SqlStore::builder(url).table_prefix("shop_");
    db.migrations(migrations).open().await.unwrap()
}

async fn run(db: &SqlStore, statements: &str) -> Result<(), sqlx::Error> {
    let sql = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
    match db.pool::<Sqlite>() {
        Some(pool) => sql.execute(pool).await.map(drop),
        None => sql.execute(db.pool::<Postgres>().unwrap()).await.map(drop),
    }
}

fn reservations(db: &SqlStore) -> Reservations {
    ReservationLayer::new(db.clone()).reservations()
}

/// A folder that has to stay, and a database on each engine.
async fn databases() -> (tempfile::TempDir, [String; 2]) {
    let folder = tempfile::tempdir().unwrap();
    let file = format!("sqlite:{}", folder.path().join("keep.db").display());
    (folder, [file, shared().await.database().await])
}

#[tokio::test]
async fn tables_made_from_the_printed_statements_are_the_tables() {
    let (_folder, urls) = databases().await;
    for url in urls {
        let checked = open(&url, Migrations::Check).await;
        let own = reservations(&checked);
        assert!(own.migrate().await.is_err(), "there is nothing yet");
        let printed = own.schema(checked.dialect());
        run(&checked, &printed).await.unwrap();
        own.migrate().await.unwrap();
        own.health().await.unwrap();
        // Twice is refused, and changes nothing.
        run(&checked, &printed).await.unwrap_err();
        reservations(&open(&url, Migrations::Check).await)
            .migrate()
            .await
            .unwrap();
        // Whoever would make them finds them made.
        let own = reservations(&open(&url, Migrations::Apply).await);
        own.migrate().await.unwrap();
        own.health().await.unwrap();
    }
}

#[tokio::test]
async fn statements_of_an_older_release_do_not_turn_the_version_back() {
    let (_folder, urls) = databases().await;
    for url in urls {
        let db = open(&url, Migrations::Apply).await;
        let own = reservations(&db);
        own.migrate().await.unwrap();
        run(&db, "UPDATE shop_schema SET version = 7")
            .await
            .unwrap();
        let printed = own.schema(db.dialect());
        // As a client does that goes on after an error.
        for statement in printed.split_inclusive(";\n") {
            let _ = run(&db, statement).await;
        }
        assert_eq!(version(&db).await.unwrap(), 7);
    }
}

async fn version(db: &SqlStore) -> Result<i64, sqlx::Error> {
    let sql = "SELECT CAST(version AS bigint) FROM shop_schema";
    match db.pool::<Sqlite>() {
        Some(pool) => sqlx::query_scalar(sql).fetch_one(pool).await,
        None => {
            let pool = db.pool::<Postgres>().unwrap();
            sqlx::query_scalar(sql).fetch_one(pool).await
        }
    }
}

/// What the log told the owner of the database to run is enough for whoever may make nothing.
#[tokio::test]
async fn who_may_make_no_tables_works_with_those_that_were_made() {
    let url = shared().await.database().await;
    let owner = open(&url, Migrations::Check).await;
    let role = format!("app_{}", std::process::id());
    let printed = reservations(&owner).schema(owner.dialect());
    let rights = format!(
        "CREATE ROLE {role} LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC; {printed}
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};"
    );
    run(&owner, &rights).await.unwrap();
    let own = url.replacen("postgres@", &format!("{role}@"), 1);
    let own = reservations(&open(&own, Migrations::Apply).await);
    own.migrate().await.unwrap();
    own.health().await.unwrap();
}
