//! Runtimes that end before their tasks do.

use std::future::Future;

use futures_util::FutureExt;

/// Begins `ask` on a runtime that ends at once: of the tasks that it spawns none runs.
pub fn on_a_runtime_that_ends(ask: impl Future + Send + 'static) {
    let begun = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async { drop(ask.now_or_never()) });
    });
    begun.join().unwrap();
}
