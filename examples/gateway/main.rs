//! A small reverse proxy and sidecar: the layers of tower-keep in front of a service in any language.
//!
//! Try it: `cargo run --example gateway -- --upstream http://127.0.0.1:8000 --cache`
//! Without a flag for a layer it is a plain proxy.

#![allow(
    unreachable_pub,
    clippy::print_stdout,
    reason = "a program, not a library"
)]

mod cache;
mod idempotency;
mod limits;
mod options;
mod proxy;
mod serve;
mod setting;
mod stack;

use std::io::Write as _;
use std::process::ExitCode;

use options::{Options, Wish};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    log_to_stderr();
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(Wish::Run(options)) => options,
        Ok(Wish::Help) => {
            // Whoever reads only its beginning closes the pipe.
            let _ = writeln!(std::io::stdout(), "{}", options::usage());
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("gateway: {why}; --help lists the options");
            return ExitCode::from(2);
        }
    };
    let stack = match stack::build(&options).await {
        Ok(stack) => stack,
        Err(why) => {
            eprintln!("gateway: {why}; --help lists the options");
            return ExitCode::from(2);
        }
    };
    match run(&options, stack).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("gateway: {why}");
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

async fn run(options: &Options, stack: stack::Stack) -> std::io::Result<()> {
    let listener = TcpListener::bind(options.listen).await?;
    let stopped = stopped()?;
    println!("gateway listening on http://{}", listener.local_addr()?);
    serve::serve(listener, stack, stopped).await;
    Ok(())
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
