//! Serving, and an end in time: streams end at once, what is running has ten seconds.
//!
//! Try it: `cargo run --example clinic`, then ctrl-C while `curl -N 'localhost:8080/api/events?topic=slots:e1'` listens.

use std::net::SocketAddr;

use tokio::signal::unix::{SignalKind, signal};
use tower_keep::SECOND;

use crate::hooks::World;
use crate::records::Records;
use crate::state::App;
use crate::{health, outbox};

/// Serves until the process is told to stop; what is running then has ten seconds.
pub async fn serve<D: Records>(app: App) -> Result<(), Box<dyn std::error::Error>> {
    let working = (!app.options.test_hooks).then(|| tokio::spawn(outbox::work::<D>(app.clone())));
    let listener = tokio::net::TcpListener::bind(app.options.listen).await?;
    let (stopped, world) = (stopped()?, World::new::<D>(app));
    println!("clinic listening on http://{}", listener.local_addr()?);
    tokio::spawn(health::gather_on(world.stopped()));
    let (late, stopping) = (world.stopped(), world.stopped());
    let service = world.service::<D>();
    tokio::spawn(async move {
        stopped.await;
        world.stop();
    });
    let served = async {
        axum::serve(
            listener,
            service.into_make_service_with_connect_info::<SocketAddr>(),
        )
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
