//! From options to stores to serving, and an end in time: streams end at once, what is running has ten seconds, whether
//! or not its client still waits.
//!
//! Try it: `cargo run --example clinic`, then ctrl-C while `curl -N 'localhost:8080/api/events?topic=slots:e1'` listens.
//!
//! Proof: `sigterm_lets_a_running_booking_end_and_does_not_wait_for_ever`

mod connections;

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use sqlx::{Postgres, Sqlite};
use tokio::signal::unix::{SignalKind, signal};
use tower_keep::SECOND;
use tower_keep::backend::sql::SqlStore;
use tower_keep::store::OpenError;
use tracing_subscriber::EnvFilter;

use crate::hooks::{self, World};
use crate::options::{self, Options};
use crate::records::Records;
use crate::state::{App, Time};
use crate::{db, health, outbox};

/// What the layers have to say, by `RUST_LOG`; warnings without it.
pub fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter)
        .init();
}

/// Opens the stores, puts the practice on them, and serves it.
pub async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    health::gather();
    let time = hooks::clock(options.test_hooks);
    let (store, faults) = hooks::store(&options, &time).await?;
    let mut sql = SqlStore::builder(&options.db);
    if let Time::Manual(clock) = &time {
        sql = sql.clock(clock.clone());
    }
    let sql = sql.open().await?;
    let db = db::Db::open(&sql).await?;
    let postgres = options.db.starts_with("postgres");
    let app = App::new(options, (store, sql, db), time, faults);
    if postgres {
        serve::<Postgres>(app).await
    } else {
        serve::<Sqlite>(app).await
    }
}

/// Serves until the process is told to stop; what is running then has ten seconds.
async fn serve<D: Records>(app: App) -> Result<(), Box<dyn Error>> {
    let working = (!app.options.test_hooks).then(|| tokio::spawn(outbox::work::<D>(app.clone())));
    let listener = tokio::net::TcpListener::bind(app.options.listen).await?;
    let (stopped, world) = (stopped()?, World::new::<D>(app));
    println!("clinic listening on http://{}", listener.local_addr()?);
    tokio::spawn(health::gather_on(world.stopped()));
    let (late, stopping) = (world.stopped(), world.stopped());
    let (service, running) = (world.service::<D>(), world.clone());
    let stopped = tokio::spawn(async move {
        stopped.await;
        world.stop();
        Instant::now()
    });
    let mut serving = tokio::spawn(connections::serve(listener, service, stopping));
    let served = async {
        let told = stopped.await?;
        // Less than there is: what does not end is given up, and then the next process may do it.
        let rest = || (9 * SECOND).saturating_sub(told.elapsed());
        let quiet = tokio::time::timeout(rest(), &mut serving).await;
        running.drain(rest()).await;
        if quiet.is_err() {
            // It may still answer its own client.
            (&mut serving).await?;
        }
        if let Some(working) = working {
            working.await?;
        }
        running.close(rest().max(SECOND)).await;
        Ok::<(), Box<dyn Error>>(())
    };
    tokio::select! {
        served = served => served,
        () = async { late.await; tokio::time::sleep(10 * SECOND).await } => Ok(()),
    }
}

/// Says why it does not run. An address that is none is an option that cannot be, though only who opens it can tell.
pub fn failed(why: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("clinic: {why}");
    let mut causes = std::iter::successors(Some(why), |why| (*why).source());
    let is_option = causes.any(|why| {
        let sql = why.downcast_ref::<sqlx::Error>();
        why.is::<OpenError>() || matches!(sql, Some(sqlx::Error::Configuration(_)))
    });
    if !is_option {
        return ExitCode::FAILURE;
    }
    eprintln!("\n{}", options::USAGE);
    ExitCode::from(2)
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
