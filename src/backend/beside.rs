//! What parts keep beside a handle: one value of each type, made at first use.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

/// One value of each type.
#[derive(Default)]
pub(super) struct Beside(Mutex<Vec<Arc<dyn Any + Send + Sync>>>);

impl Beside {
    /// Returns the one `T` that there is.
    pub(super) fn one<T: Send + Sync + 'static>(&self, make: impl FnOnce() -> T) -> Arc<T> {
        let mut all = self.0.lock();
        let found = all
            .iter()
            .find_map(|kept| Arc::clone(kept).downcast::<T>().ok());
        found.unwrap_or_else(|| {
            let made = Arc::new(make());
            all.push(Arc::clone(&made) as Arc<dyn Any + Send + Sync>);
            made
        })
    }
}

impl fmt::Debug for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Beside").finish_non_exhaustive()
    }
}
