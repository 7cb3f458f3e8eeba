//! Rung by a notice; one ring is remembered for whoever listens next.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::core::{Notice, NoticeCallback};

/// One listener's bell. A lost link does not ring it, its return does.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    notify: Notify,
}

impl Bell {
    /// Returns the callback that rings it.
    pub(crate) fn callback(self: &Arc<Self>) -> NoticeCallback {
        let bell = Arc::clone(self);
        Arc::new(move |notice| {
            if notice != Notice::Lost {
                bell.ring();
            }
        })
    }

    pub(crate) fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        self.notify.notify_one();
    }

    /// Forgets what rang so far: whoever calls this looks right after it.
    pub(crate) fn hush(&self) {
        self.rung.store(false, Ordering::SeqCst);
    }

    /// Waits until it was rung since it was hushed.
    pub(crate) async fn rung(&self) {
        while !self.rung.load(Ordering::SeqCst) {
            self.notify.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_ring_before_the_wait_is_heard_and_one_before_the_hush_is_not() {
        let bell = Arc::new(Bell::default());
        bell.callback()(Notice::Payload(bytes::Bytes::new()));
        bell.rung().await;
        bell.hush();
        bell.callback()(Notice::Lost);
        let silent = tokio::time::timeout(std::time::Duration::from_millis(1), bell.rung()).await;
        assert!(silent.is_err());
    }
}
