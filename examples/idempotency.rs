//! Sent twice, done once: a mail under a lease, and money in the database's own transaction.
//!
//! Run it: `cargo run --example idempotency`, then send the same request twice:
//! `curl -i localhost:8083/mails -H 'idempotency-key: "a"' -d 'hello'` and
//! `curl -i localhost:8083/transfers -H 'idempotency-key: "b"' -d '30'`. The second time the answer says
//! `idempotency-replayed: true`, and `curl localhost:8083/balance` has gone down once. The same key with another
//! body is 422; without a key 400; more money than there is 409, and that answer is given again, too.
//!
//! Arguments: where to listen, the database (`sqlite::memory:`, or `sqlite:money.db` for several processes).

#![allow(clippy::print_stdout, reason = "a program tells where it listens")]

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};
use http::StatusCode;
use tokio::net::TcpListener;
use tower_keep::SECOND;
use tower_keep::backend::memory::MemoryStore;
use tower_keep::backend::sql::{SqlStore, SqlTransaction, Sqlite};
use tower_keep::idempotency::{IdempotencyLayer, IdempotentRun, Preset, Scope};

type Fault = (StatusCode, &'static str);

/// An effect outside any database: should the process die between mail and answer, nobody knows whether it
/// went out. `Preset::Payments` then says 409 until an operator has looked; other presets would send it again.
async fn mail(run: IdempotentRun, text: String) -> (StatusCode, String) {
    println!("sending a mail, {} bytes", text.len());
    // A provider that knows idempotency keys would be given this one.
    (StatusCode::ACCEPTED, format!("mail {}\n", run.id()))
}

/// An effect inside the database: it is committed together with the answer, or neither is there.
async fn transfer(
    mut transaction: SqlTransaction<Sqlite>,
    amount: String,
) -> Result<(StatusCode, String), Fault> {
    let amount: u32 = amount
        .trim()
        .parse()
        .map_err(|_| bad("an amount, please"))?;
    let mut lease = transaction.lease().await.map_err(|_| DOWN)?;
    let left: Option<i64> = sqlx::query_scalar(
        "update account set balance = balance - $1 where balance >= $1 returning balance",
    )
    .bind(amount)
    .fetch_optional(&mut *lease)
    .await
    .map_err(|_| DOWN)?;
    // Any status that is no success undoes what was written; a 409 is kept and given again.
    let left = left.ok_or((StatusCode::CONFLICT, "not enough money\n"))?;
    Ok((StatusCode::CREATED, format!("{left} left\n")))
}

async fn balance(State(db): State<SqlStore>) -> Result<String, Fault> {
    let pool = db.pool::<Sqlite>().ok_or(DOWN)?;
    let asked = sqlx::query_scalar("select balance from account").fetch_one(pool);
    let balance: i64 = asked.await.map_err(|_| DOWN)?;
    Ok(format!("{balance}\n"))
}

const DOWN: Fault = (StatusCode::SERVICE_UNAVAILABLE, "try again\n");

const fn bad(why: &'static str) -> Fault {
    (StatusCode::BAD_REQUEST, why)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: &str| arguments.next().unwrap_or_else(|| default.to_owned());
    let address = next("127.0.0.1:8083");
    let db = SqlStore::connect(&next("sqlite::memory:")).await?;
    let made = "create table if not exists account (id integer primary key, balance integer not null); \
                insert into account values (1, 100) on conflict do nothing";
    let pool = db.pool::<Sqlite>().ok_or("this example needs SQLite")?;
    sqlx::raw_sql(made).execute(pool).await?;

    // One scope for all, since nobody logs in here. In earnest: `Scope::principal()`, inside your login.
    let mails = IdempotencyLayer::new(MemoryStore::new(), Scope::global()).preset(Preset::Payments);
    let transfers = IdempotencyLayer::transactional(db.clone(), Scope::global()).require_key();
    let app = Router::new()
        .route("/mails", post(mail).layer(mails.clone()))
        .route("/transfers", post(transfer).layer(transfers.clone()))
        .route("/balance", get(balance))
        .with_state(db);
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app)
        .with_graceful_shutdown(async { drop(tokio::signal::ctrl_c().await) })
        .await?;
    // Runs whose clients have left go on: let them end.
    mails.drain(10 * SECOND).await;
    transfers.drain(10 * SECOND).await;
    Ok(())
}
