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
mod options;
mod outbox;
mod pages;
mod payments;
mod problem;
mod progress;
mod provider;
mod records;
mod reservations;
mod sessions;
mod state;
mod tokens;
mod users;
mod visit;
mod webhooks;

use std::net::SocketAddr;
use std::process::ExitCode;

use options::{Options, Wish};
use records::Records;
use sqlx::{Postgres, Sqlite};
use tokio::signal::unix::{SignalKind, signal};
use tower_keep::SECOND;
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
    let store = tower_keep::store::builder(&options.store)
        .clock(time.clone())
        .open()
        .await?;
    let sql = SqlStore::builder(&options.db)
        .clock(time.clone())
        .open()
        .await?;
    let db = db::Db::open(&sql).await?;
    let postgres = options.db.starts_with("postgres");
    let app = state::App::new(options, store, sql, db, time);
    if postgres {
        serve::<Postgres>(app).await
    } else {
        serve::<Sqlite>(app).await
    }
}

/// Serves until the process is told to stop; what is running then has ten seconds.
async fn serve<D: Records>(app: state::App) -> Result<(), Box<dyn std::error::Error>> {
    let working = (!app.options.test_hooks).then(|| tokio::spawn(outbox::work::<D>(app.clone())));
    let listener = tokio::net::TcpListener::bind(app.options.listen).await?;
    let (stopped, live) = (stopped()?, app.live.clone());
    println!("clinic listening on http://{}", listener.local_addr()?);
    let (late, stopping) = (live.stopped(), live.stopped());
    tokio::spawn(async move {
        stopped.await;
        live.stop();
    });
    let service = app::app::<D>(app).into_make_service_with_connect_info::<SocketAddr>();
    let served = async {
        axum::serve(listener, service)
            .with_graceful_shutdown(stopping)
            .await?;
        if let Some(working) = working {
            working.await?;
        }
        Ok::<(), Box<dyn std::error::Error>>(())
    };
    tokio::select! {
        served = served => served,
        () = async { late.await; tokio::time::sleep(10 * SECOND).await } => Ok(()),
    }
}

/// Ends with SIGTERM or ctrl-C, heard from the moment this returns.
fn stopped() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
