//! What a test moves by hand: the clock, the line to the store, and how often something fails.
//!
//! Try it: `curl -i localhost:8080/_test/fault -H 'content-type: application/json' -d '{"store":"down"}'`, with `--test-hooks`
//!
//! Proof: `store_outage`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tower_keep::backend::fault;
use tower_keep::core::{ManualClock, SystemClock};
use tower_keep::store::{OpenError, Store};

use crate::options::Options;
use crate::state::Time;

/// The first moment of tested time, a Tuesday.
pub const START: &str = "2030-01-01T00:00:00Z";

/// The store of this process, by whose own clock everything in it goes: processes that are one clinic have one time. With
/// hooks time is moved by hand, and it is at the far end of a line that can be cut.
pub async fn store(
    options: &Options,
    time: &Time,
) -> Result<(Arc<dyn Store>, Arc<Faults>), OpenError> {
    let faults = Arc::<Faults>::default();
    let mut builder = tower_keep::store::builder(&options.store);
    if let Time::Manual(clock) = time {
        builder = builder.clock(clock.clone());
    }
    if options.test_hooks {
        builder = builder.faults(&faults.store);
    }
    Ok((builder.open().await?, faults))
}

/// The clock of this process: with hooks it stands still until moved.
pub fn clock(test_hooks: bool) -> Time {
    match START.parse() {
        Ok(start) if test_hooks => Time::Manual(ManualClock::at(start)),
        _ => Time::System(SystemClock),
    }
}

/// What goes wrong by order of a test; nothing without hooks.
#[derive(Debug, Default)]
pub struct Faults {
    pub payment: Failures,
    pub webhook: Failures,
    pub notification: Failures,
    pub provider_delay_ms: AtomicU64,
    /// The line to the store.
    pub store: fault::Faults,
}

impl Faults {
    /// The payment provider takes its time.
    pub async fn provider(&self) {
        match self.provider_delay_ms.load(Ordering::Relaxed) {
            0 => {}
            millis => tokio::time::sleep(Duration::from_millis(millis)).await,
        }
    }
}

/// How many of the next runs fail.
#[derive(Debug, Default)]
pub struct Failures(pub AtomicU64);

impl Failures {
    /// Says whether this run fails, and counts it.
    pub fn strikes(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less)
            .is_ok()
    }
}
