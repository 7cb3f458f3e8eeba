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

/// Adds `n` to a counter; labels are pairs of a static name and an owned or static value. Where all values are literals
/// the name with its labels is a constant; else it is put together at each call.
#[allow(unused_macros)]
macro_rules! count {
    ($name:literal, $n:expr $(, $label:literal => $value:literal)* $(,)?) => {{
        #[cfg(feature = "metrics")]
        ::metrics::counter!($name $(, $label => $value)*).increment($n);
        #[cfg(not(feature = "metrics"))]
        if false { let _ = &$n; }
    }};
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

/// Says something once a minute at this place, and how often it was `silent` since: for what a client may bring about as
/// often as it likes, so that no flood of requests is one of lines.
#[allow(unused_macros)]
macro_rules! seldom {
    ($level:ident, $($event:tt)+) => {{
        static TOLD: $crate::core::telemetry::Seldom = $crate::core::telemetry::Seldom::new();
        if let Some(silent) = TOLD.turn() {
            $crate::core::telemetry::$level!(silent, $($event)+);
            let _ = silent;
        } else {
            $crate::core::telemetry::debug!($($event)+);
        }
    }};
}
#[allow(unused_imports)]
pub(crate) use seldom;

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

/// Lets something be said once a minute, for what anybody may bring about as often as he likes.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    /// Not before; 0 at the beginning.
    next: std::sync::atomic::AtomicU64,
    silent: std::sync::atomic::AtomicU64,
}

#[allow(dead_code)]
impl Seldom {
    const PAUSE: u64 = 60_000_000;

    /// Makes one that has not spoken.
    pub(crate) const fn new() -> Self {
        Self {
            next: std::sync::atomic::AtomicU64::new(0),
            silent: std::sync::atomic::AtomicU64::new(0),
        }
    }

    /// Returns how often it was not said since the last time, where it is time to say it again.
    pub(crate) fn turn(&self) -> Option<u64> {
        use crate::core::Clock as _;
        self.turn_at(crate::core::SystemClock.now_micros())
    }

    fn turn_at(&self, now: u64) -> Option<u64> {
        use std::sync::atomic::Ordering::Relaxed;
        let next = self.next.load(Relaxed);
        let after = now.saturating_add(Self::PAUSE);
        let is_time = now >= next
            && self
                .next
                .compare_exchange(next, after, Relaxed, Relaxed)
                .is_ok();
        if is_time {
            return Some(self.silent.swap(0, Relaxed));
        }
        self.silent.fetch_add(1, Relaxed);
        None
    }
}

/// A counter that is looked up once for a recorder: for the hot path. Nothing without the feature `metrics`.
#[allow(dead_code)]
pub(crate) struct Counter {
    name: &'static str,
    #[cfg(feature = "metrics")]
    key: metrics::Key,
    /// By the recorder's address: of the one that records nothing, where it came first, and of the one that is installed.
    #[cfg(feature = "metrics")]
    handles: [std::sync::OnceLock<(usize, metrics::Counter)>; 2],
}

#[cfg(feature = "metrics")]
static METADATA: metrics::Metadata<'static> =
    metrics::Metadata::new("tower_keep", metrics::Level::INFO, Some("tower_keep"));

#[allow(dead_code)]
impl Counter {
    /// Names a counter and its labels.
    pub(crate) fn new(name: &'static str, labels: &[(&'static str, &str)]) -> Self {
        #[cfg(feature = "metrics")]
        let label = |(label, value): &(&'static str, &str)| {
            let value = std::sync::Arc::<str>::from(*value);
            metrics::Label::new(*label, metrics::SharedString::from_shared(value))
        };
        #[cfg(not(feature = "metrics"))]
        let _ = labels;
        Self {
            name,
            #[cfg(feature = "metrics")]
            key: metrics::Key::from_parts(name, labels.iter().map(label).collect::<Vec<_>>()),
            #[cfg(feature = "metrics")]
            handles: Default::default(),
        }
    }

    /// Adds one.
    pub(crate) fn add_one(&self) {
        self.add(1);
    }

    /// Adds, where the recorder of this moment counts: it may come later than the first use. (A thread's own, as tests
    /// have them, is told from others by where it lies: it has to outlive its use with this counter.)
    pub(crate) fn add(&self, count: u64) {
        #[cfg(not(feature = "metrics"))]
        let _ = count;
        #[cfg(feature = "metrics")]
        metrics::with_recorder(|recorder| {
            let found = || recorder.register_counter(&self.key, &METADATA);
            let own = std::ptr::from_ref(recorder).cast::<()>().addr();
            for handle in &self.handles {
                let (of, counter) = handle.get_or_init(|| (own, found()));
                if *of == own {
                    return counter.increment(count);
                }
            }
            found().increment(count);
        });
    }
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Counter({})", self.name)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    use super::{Counter, Seldom};

    #[test]
    fn it_is_said_once_a_minute_and_with_how_often_it_was_not() {
        let seldom = Seldom::new();
        let minute = Seldom::PAUSE;
        let said = [5, 6, minute, minute + 5, minute + 6, 3 * minute];
        let said = said.map(|now| seldom.turn_at(now));
        assert_eq!(said, [Some(0), None, None, Some(2), None, Some(1)]);
    }

    /// Counts, and counts how often it was asked for a counter.
    #[derive(Default)]
    struct Sheet {
        count: Arc<AtomicU64>,
        asked: AtomicU64,
    }

    impl Sheet {
        fn read(&self) -> (u64, u64) {
            let read = |number: &AtomicU64| number.load(Ordering::SeqCst);
            (read(&self.count), read(&self.asked))
        }
    }

    impl Recorder for Sheet {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> metrics::Counter {
            if key.name() != "keep_n" {
                return metrics::Counter::noop();
            }
            assert_eq!(key.labels().count(), 1);
            self.asked.fetch_add(1, Ordering::SeqCst);
            metrics::Counter::from_arc(Arc::clone(&self.count))
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    /// The only test of this binary that installs a recorder for all threads; it minds no other counter.
    #[test]
    fn it_counts_where_the_recorder_of_the_moment_does_and_looks_it_up_once() {
        let counter = Counter::new("keep_n", &[("a", "b")]);
        let add = |times| (0..times).for_each(|_| counter.add_one());
        add(3);
        let all: &'static Sheet = Box::leak(Box::default());
        assert!(metrics::set_global_recorder(all).is_ok());
        add(100);
        assert_eq!(all.read(), (100, 1));
        let sheets = [Sheet::default(), Sheet::default()];
        for sheet in &sheets {
            metrics::with_local_recorder(sheet, || add(2));
            assert_eq!(sheet.read().0, 2);
        }
        add(1);
        std::thread::scope(|threads| threads.spawn(|| add(1)).join()).unwrap();
        assert_eq!(all.read(), (102, 1));
    }
}
