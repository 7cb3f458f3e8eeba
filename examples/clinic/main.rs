//! A small practice that takes paid bookings: options → stores → app → serve.
//!
//! Try it: `cargo run --example clinic`, then `curl localhost:8080/api/experts`
//!
//! Proof: `the_tour_of_the_readme_is_true_line_by_line`

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
mod checkout;
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
mod patience;
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

use std::io::Write as _;
use std::process::ExitCode;

use options::Wish;

#[tokio::main]
async fn main() -> ExitCode {
    serve::log_to_stderr();
    let wish = options::parse(std::env::args().skip(1), |name| std::env::var(name).ok());
    let options = match wish {
        Ok(Wish::Run(options)) => *options,
        Ok(Wish::Help) => {
            // Whoever reads only its beginning closes the pipe.
            let _ = writeln!(std::io::stdout(), "{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(why) => {
            eprintln!("{why}\n\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match serve::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => serve::failed(&*why),
    }
}
