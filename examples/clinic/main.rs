//! A small practice that takes paid bookings: options → stores → app → serve.
//!
//! Try it: `cargo run --example clinic`, then `curl localhost:8080/api/experts`

#![allow(
    unreachable_pub,
    clippy::print_stdout,
    reason = "a program, not a library"
)]

mod account;
mod admin;
mod announce;
mod app;
mod bookings;
mod customers;
mod dashboard;
mod db;
mod deliveries;
mod experts;
mod fakepay;
mod fault;
mod fixtures;
mod guests;
mod health;
mod hooks;
mod identity;
mod limits;
mod live;
mod notifications;
mod operations;
mod options;
mod outbox;
mod pages;
mod payments;
mod problem;
mod progress;
mod provider;
mod records;
mod reservations;
mod serve;
mod sessions;
mod state;
mod tokens;
mod users;
mod visit;
mod webhooks;

use std::process::ExitCode;

use options::{Options, Wish};
use sqlx::{Postgres, Sqlite};
use tower_keep::backend::sql::SqlStore;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    log_to_stderr();
    let wish = options::parse(std::env::args().skip(1), |name| std::env::var(name).ok());
    let options = match wish {
        Ok(Wish::Run(options)) => options,
        Ok(Wish::Help) => {
            println!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("{why}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("clinic: {why}");
            ExitCode::FAILURE
        }
    }
}

/// What the layers have to say, by `RUST_LOG`; warnings without it.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
}

async fn run(options: Options) -> Result<(), Box<dyn std::error::Error>> {
    health::gather();
    let time = hooks::clock(options.test_hooks);
    let (store, faults) = hooks::store(&options, &time).await?;
    let sql = SqlStore::builder(&options.db)
        .clock(time.clone())
        .open()
        .await?;
    let db = db::Db::open(&sql).await?;
    let postgres = options.db.starts_with("postgres");
    let app = state::App::new(options, (store, sql, db), time, faults);
    if postgres {
        serve::serve::<Postgres>(app).await
    } else {
        serve::serve::<Sqlite>(app).await
    }
}
