//! The service: asks all parts, judges what they say, and tells what has changed.

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::policy::{self, Found};
use super::report::{CheckReport, HealthChange, HealthReason, HealthReport};
use super::thresholds::Thresholds;
use super::window::Window;
use crate::backend::health::{Probed, StoreMode};
use crate::core::telemetry::{error, gauge, warn};
use crate::core::{Clock, SystemClock, monotonic};
use crate::data::check::Check;

const PATIENCE: Duration = Duration::from_millis(500);
const REUSED_MICROS: u64 = 1_000_000;
const TOLD_AGAIN_MICROS: u64 = 3_600_000_000;

type Hook = Arc<dyn Fn(HealthChange<'_>) + Send + Sync>;

/// One report of all parts. Clones share it.
#[derive(Clone)]
#[must_use]
pub struct Health {
    parts: Vec<Part>,
    thresholds: Thresholds,
    expected: Option<StoreMode>,
    hook: Option<Hook>,
    clock: Arc<dyn Clock>,
    state: Arc<Mutex<State>>,
}

#[derive(Clone)]
struct Part {
    name: Arc<str>,
    is_required: bool,
    check: Arc<dyn Check>,
}

#[derive(Default)]
struct State {
    last: Option<(u64, Arc<HealthReport>)>,
    windows: HashMap<Arc<str>, Window>,
    /// Whether each reason held when it was last told, and when that was.
    told: HashMap<(Arc<str>, HealthReason), (bool, u64)>,
}

/// What a part answered, and how long that took.
type Answered = (Option<Probed>, Duration);

impl Health {
    /// Makes a service that asks nobody yet.
    pub fn new() -> Self {
        Self {
            parts: Vec::new(),
            thresholds: Thresholds::default(),
            expected: None,
            hook: None,
            clock: Arc::new(SystemClock),
            state: Arc::default(),
        }
    }

    /// Adds a part without which nothing works: while it is down, so is the whole.
    pub fn required(self, name: &str, check: impl Check) -> Self {
        self.with(name, true, check)
    }

    /// Adds a part; while it is down the whole is degraded. Of two with one name the later stays.
    pub fn check(self, name: &str, check: impl Check) -> Self {
        self.with(name, false, check)
    }

    fn with(mut self, name: &str, is_required: bool, check: impl Check) -> Self {
        self.parts.retain(|part| &*part.name != name);
        self.parts.push(Part {
            name: Arc::from(name),
            is_required,
            check: Arc::new(check),
        });
        self.anew()
    }

    /// A setter starts with nothing measured: set up first, clone later.
    fn anew(mut self) -> Self {
        let (now, span) = (self.clock.now_micros(), self.thresholds.window);
        let window = |part: &Part| {
            let mut window = Window::default();
            window.push(part.check.vitals(), now, span);
            (Arc::clone(&part.name), window)
        };
        self.state = Arc::new(Mutex::new(State {
            windows: self.parts.iter().map(window).collect(),
            ..State::default()
        }));
        self
    }

    /// Sets from where on a part counts as degraded.
    pub fn thresholds(self, thresholds: Thresholds) -> Self {
        Self { thresholds, ..self }.anew()
    }

    /// Says where state should be kept: a store that keeps it elsewhere is degraded, also by choice.
    pub fn expect(self, mode: StoreMode) -> Self {
        let expected = Some(mode);
        Self { expected, ..self }.anew()
    }

    /// Calls `hook` when a part gets a reason to be degraded or down, and when it loses one: at most once per hour and
    /// reason. It must not block.
    pub fn on_change(self, hook: impl Fn(HealthChange<'_>) + Send + Sync + 'static) -> Self {
        let hook: Option<Hook> = Some(Arc::new(hook));
        Self { hook, ..self }.anew()
    }

    /// Goes by `clock` for how long a report is reused and how often changes are told.
    pub fn clock(self, clock: impl Clock) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(clock);
        Self { clock, ..self }.anew()
    }

    /// Asks all parts, unless that was done within the last second. Dropping the future ends the checks.
    pub async fn report(&self) -> Arc<HealthReport> {
        // Whoever comes meanwhile waits here, and gets the same report.
        let mut state = self.state.lock().await;
        let now = self.clock.now_micros();
        if let Some((at, report)) = &state.last
            && now.saturating_sub(*at) < REUSED_MICROS
        {
            return Arc::clone(report);
        }
        let report = Arc::new(self.ask(&mut state).await);
        state.last = Some((self.clock.now_micros(), Arc::clone(&report)));
        report
    }

    async fn ask(&self, state: &mut State) -> HealthReport {
        let began = monotonic();
        let answers = self.answers().await;
        let (now, span) = (self.clock.now_micros(), self.thresholds.window);
        let (mut checks, mut mode) = (Vec::with_capacity(self.parts.len()), None);
        for (part, (probed, response_time)) in self.parts.iter().zip(answers) {
            let vitals = part.check.vitals();
            mode = mode.or(vitals.mode);
            let window = state.windows.entry(Arc::clone(&part.name)).or_default();
            window.forget(now, span);
            let found = Found {
                probed,
                vitals: &vitals,
                window,
            };
            let reasons = policy::reasons(&found, &self.thresholds, self.expected);
            window.push(vitals, now, span);
            self.tell(state, part, &reasons);
            let status = policy::status(&reasons);
            // 0 healthy, 1 degraded, 2 down.
            gauge!("keep_health_status", f64::from(status as u8), "check" => part.name.to_string());
            checks.push(CheckReport {
                name: part.name.to_string(),
                status,
                response_time,
                reasons,
            });
        }
        let parts = self.parts.iter().zip(&checks);
        HealthReport {
            status: policy::whole(parts.map(|(part, check)| (part.is_required, check.status))),
            mode,
            response_time: began.elapsed(),
            checks,
        }
    }

    /// Asks all at once, each in a task of its own: one that panics leaves the others alone.
    async fn answers(&self) -> Vec<Answered> {
        let mut asked = JoinSet::new();
        for (index, part) in self.parts.iter().enumerate() {
            let check = Arc::clone(&part.check);
            asked.spawn(async move {
                let began = monotonic();
                let answer = tokio::time::timeout(PATIENCE, async { check.check().await }).await;
                let probed = answer.ok().and_then(Result::ok);
                (index, (probed, began.elapsed()))
            });
        }
        let mut answers = vec![(None, Duration::ZERO); self.parts.len()];
        while let Some(answer) = asked.join_next().await {
            if let Ok((index, answer)) = answer {
                answers[index] = answer;
            }
        }
        answers
    }

    /// Tells what has come or gone since it was last told, a reason at most once an hour.
    fn tell(&self, state: &mut State, part: &Part, reasons: &[HealthReason]) {
        let now = self.clock.now_micros();
        for reason in HealthReason::ALL {
            let is_wrong = reasons.contains(&reason);
            let key = (Arc::clone(&part.name), reason);
            let last = state.told.get(&key);
            let (was_wrong, may) = last.map_or((false, true), |(was, at)| {
                (*was, now.saturating_sub(*at) >= TOLD_AGAIN_MICROS)
            });
            if is_wrong == was_wrong || !may {
                continue;
            }
            state.told.insert(key, (is_wrong, now));
            warn!(part = &*part.name, ?reason, is_wrong, "health has changed");
            if let Some(hook) = &self.hook {
                let change = HealthChange {
                    part: &part.name,
                    reason,
                    is_wrong,
                };
                // Its panic is not that of whoever asks for the report.
                let told = catch_unwind(AssertUnwindSafe(|| hook(change)));
                if told.is_err() {
                    error!(
                        part = &*part.name,
                        "a hook for changes of health has panicked"
                    );
                }
            }
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.parts.iter().map(|part| &part.name);
        f.debug_struct("Health")
            .field("parts", &names.collect::<Vec<_>>())
            .field("thresholds", &self.thresholds)
            .finish_non_exhaustive()
    }
}
