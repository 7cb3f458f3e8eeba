//! Reads what the code under test measures, on this thread.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, LocalRecorderGuard,
    Metadata, Recorder, SharedString, Unit,
};

/// Records until it is dropped.
pub struct Metered {
    sheet: Sheet,
    _guard: LocalRecorderGuard<'static>,
}

#[derive(Clone, Debug, Default)]
struct Sheet(Arc<Mutex<BTreeMap<String, f64>>>);

#[derive(Debug)]
struct Cell(Sheet, String);

impl Metered {
    pub fn start() -> Self {
        let sheet = Sheet::default();
        // The recorder has to outlive its guard: a test process is short.
        let recorder: &'static Sheet = Box::leak(Box::new(sheet.clone()));
        Self {
            sheet,
            _guard: metrics::set_default_local_recorder(recorder),
        }
    }

    /// Returns a counter, a gauge, or how often a histogram was written, by `name{label=value,…}`, labels in order.
    pub fn value(&self, name: &str) -> Option<f64> {
        self.sheet.0.lock().unwrap().get(name).copied()
    }

    pub fn counter(&self, name: &str) -> u64 {
        self.value(name).unwrap_or(0.0) as u64
    }

    /// All counters of these names that are above zero, in order.
    pub fn counters(&self, of: impl Fn(&str) -> bool) -> Vec<(String, u64)> {
        let sheet = self.sheet.0.lock().unwrap();
        let counted = sheet
            .iter()
            .filter(|(name, count)| of(name) && **count > 0.0);
        counted
            .map(|(name, count)| (name.clone(), *count as u64))
            .collect()
    }

    /// Everything, as a scrape would show it.
    pub fn scrape(&self) -> String {
        format!("{:?}", self.sheet.0.lock().unwrap())
    }
}

impl Sheet {
    fn cell(&self, key: &Key) -> Arc<Cell> {
        let mut labels: Vec<String> = key
            .labels()
            .map(|label| format!("{}={}", label.key(), label.value()))
            .collect();
        labels.sort();
        let name = if labels.is_empty() {
            key.name().to_owned()
        } else {
            format!("{}{{{}}}", key.name(), labels.join(","))
        };
        Arc::new(Cell(self.clone(), name))
    }
}

impl Cell {
    fn change(&self, change: impl FnOnce(&mut f64)) {
        change(self.0.0.lock().unwrap().entry(self.1.clone()).or_default());
    }
}

impl CounterFn for Cell {
    fn increment(&self, value: u64) {
        self.change(|sum| *sum += value as f64);
    }

    fn absolute(&self, value: u64) {
        self.change(|sum| *sum = value as f64);
    }
}

impl GaugeFn for Cell {
    fn increment(&self, value: f64) {
        self.change(|sum| *sum += value);
    }

    fn decrement(&self, value: f64) {
        self.change(|sum| *sum -= value);
    }

    fn set(&self, value: f64) {
        self.change(|sum| *sum = value);
    }
}

impl HistogramFn for Cell {
    fn record(&self, _: f64) {
        self.change(|count| *count += 1.0);
    }
}

impl Recorder for Sheet {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.cell(key))
    }
}
