//! Events and measurements behind one API: real with the features `tracing` and `metrics`, nothing without.

#[cfg(feature = "tracing")]
#[allow(unused_imports)]
pub(crate) use tracing::{debug, error, info, warn};

#[cfg(not(feature = "tracing"))]
#[allow(unused_macros)]
macro_rules! silent_event {
    ($($rest:tt)*) => {{}};
}
#[cfg(not(feature = "tracing"))]
#[allow(unused_imports)]
pub(crate) use {
    silent_event as debug, silent_event as error, silent_event as info, silent_event as warn,
};

/// Adds `n` to a counter; labels are pairs of a static name and an owned or static value.
#[allow(unused_macros)]
macro_rules! count {
    ($name:literal, $n:expr $(, $label:literal => $value:expr)* $(,)?) => {{
        #[cfg(feature = "metrics")]
        ::metrics::counter!($name $(, $label => $value)*).increment($n);
        #[cfg(not(feature = "metrics"))]
        if false { let _ = (&$n, $(&$value,)*); }
    }};
}

/// Sets a gauge.
#[allow(unused_macros)]
macro_rules! gauge {
    ($name:literal, $n:expr $(, $label:literal => $value:expr)* $(,)?) => {{
        #[cfg(feature = "metrics")]
        ::metrics::gauge!($name $(, $label => $value)*).set($n);
        #[cfg(not(feature = "metrics"))]
        if false { let _ = (&$n, $(&$value,)*); }
    }};
}

/// Moves a gauge up or down: what several layers count is one sum.
#[allow(unused_macros)]
macro_rules! shift {
    ($name:literal, $by:expr $(,)?) => {{
        #[cfg(feature = "metrics")]
        ::metrics::gauge!($name).increment($by);
        #[cfg(not(feature = "metrics"))]
        if false {
            let _ = &$by;
        }
    }};
}

/// Records a duration in seconds.
#[allow(unused_macros)]
macro_rules! seconds {
    ($name:literal, $duration:expr $(, $label:literal => $value:expr)* $(,)?) => {{
        #[cfg(feature = "metrics")]
        ::metrics::histogram!($name $(, $label => $value)*).record($duration);
        #[cfg(not(feature = "metrics"))]
        if false { let _ = (&$duration, $(&$value,)*); }
    }};
}

/// Measures a [`StoreFuture`](crate::core::StoreFuture) that leaves the process: a histogram of its seconds with the
/// labels `group` and `op`, inside a span of that name. A future that is already known is given back as it is.
#[allow(unused_macros)]
macro_rules! measured {
    ($future:expr, $seconds:literal, $span:literal, $group:expr, $op:expr) => {{
        let (future, group, op) = ($future, $group, $op);
        #[cfg(not(any(feature = "metrics", feature = "tracing")))]
        {
            let _ = (group, op);
            future
        }
        #[cfg(any(feature = "metrics", feature = "tracing"))]
        {
            #[cfg(feature = "tracing")]
            let future = {
                let span = ::tracing::debug_span!($span, group, op);
                if span.is_disabled() {
                    future
                } else {
                    crate::core::StoreFuture::boxed(::tracing::Instrument::instrument(future, span))
                }
            };
            #[cfg(feature = "metrics")]
            let future = {
                let (group, started) = (group.to_owned(), crate::core::monotonic());
                crate::core::StoreFuture::boxed(async move {
                    let answer = future.await;
                    let took = started.elapsed();
                    ::metrics::histogram!($seconds, "group" => group, "op" => op).record(took);
                    answer
                })
            };
            future
        }
    }};
}

#[allow(unused_imports)]
/// Says whether anybody hears an event of level info from here: before something is gathered for it.
#[allow(unused_macros)]
macro_rules! is_heard {
    () => {{
        #[cfg(feature = "tracing")]
        let heard = ::tracing::enabled!(::tracing::Level::INFO);
        #[cfg(not(feature = "tracing"))]
        let heard = false;
        heard
    }};
}

#[allow(unused_imports)]
pub(crate) use is_heard;
#[allow(unused_imports)]
pub(crate) use measured;
pub(crate) use {count, gauge, seconds, shift};

/// Lets something be said once per process or per layer, however many requests meet it.
#[derive(Debug, Default)]
pub(crate) struct Once(std::sync::atomic::AtomicBool);

#[allow(dead_code)]
impl Once {
    /// Makes one that has not spoken.
    pub(crate) const fn new() -> Self {
        Self(std::sync::atomic::AtomicBool::new(false))
    }

    /// Returns `true` the first time only.
    pub(crate) fn first(&self) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        !self.0.load(Relaxed) && !self.0.swap(true, Relaxed)
    }
}

/// A counter that is looked up once, at its first use: for the hot path. Nothing without the feature `metrics`.
#[allow(dead_code)]
pub(crate) struct Counter {
    name: &'static str,
    labels: Vec<(&'static str, std::sync::Arc<str>)>,
    #[cfg(feature = "metrics")]
    handle: std::sync::OnceLock<metrics::Counter>,
}

#[allow(dead_code)]
impl Counter {
    /// Names a counter and its labels.
    pub(crate) fn new(name: &'static str, labels: &[(&'static str, &str)]) -> Self {
        Self {
            name,
            labels: labels
                .iter()
                .map(|(label, value)| (*label, std::sync::Arc::from(*value)))
                .collect(),
            #[cfg(feature = "metrics")]
            handle: std::sync::OnceLock::new(),
        }
    }

    /// Adds one.
    pub(crate) fn add_one(&self) {
        #[cfg(feature = "metrics")]
        self.handle
            .get_or_init(|| {
                let labels: Vec<metrics::Label> = self
                    .labels
                    .iter()
                    .map(|(label, value)| metrics::Label::new(*label, value.to_string()))
                    .collect();
                metrics::counter!(self.name, labels)
            })
            .increment(1);
    }
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Counter({})", self.name)
    }
}
