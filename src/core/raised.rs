//! A flag for what goes on once at a time, or once at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Keeps a flag up for as long as it lives: a task that holds it lowers the flag when it ends, also where it panics or its
/// runtime drops it.
#[derive(Debug)]
pub(crate) struct Raised(Option<Arc<AtomicBool>>);

impl Raised {
    /// Raises the flag; `None` where it is up.
    pub(crate) fn raise(flag: &Arc<AtomicBool>) -> Option<Self> {
        let was_up = flag.load(Ordering::SeqCst) || flag.swap(true, Ordering::SeqCst);
        (!was_up).then(|| Self(Some(Arc::clone(flag))))
    }

    /// Leaves it up for good.
    pub(crate) fn stay(mut self) {
        self.0 = None;
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        if let Some(flag) = self.0.take() {
            flag.store(false, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_up_once_and_down_after_its_holder_unless_it_stays() {
        let flag = Arc::default();
        let first = Raised::raise(&flag);
        assert!(first.is_some() && Raised::raise(&flag).is_none());
        drop(first);
        Raised::raise(&flag).unwrap().stay();
        assert!(Raised::raise(&flag).is_none());
    }
}
