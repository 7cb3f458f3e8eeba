//! What each name of a handle stands for: one name for two kinds of things is told once.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::backend::memory::{Part, PartSetup};
use crate::core::telemetry::{count, error};

/// Names remembered; an application has fewer.
const MOST: usize = 10_000;

/// Tells that a service of this name was made for two kinds of things.
pub(crate) fn tell_contradiction(service: &'static str, name: &str) {
    let _ = name;
    error!(
        service,
        name,
        "a service of this name keeps other values, or for another time: name one of them otherwise"
    );
    count!("keep_name_conflicts_total", 1, "service" => service, "name" => name.to_owned());
}

/// The names in use on one handle.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<String, Meant>>);

#[derive(Debug)]
struct Meant {
    what: String,
    is_told: bool,
}

impl Names {
    /// Says that `name` stands for `what`; returns `true` the first time that it stood for something else.
    pub(crate) fn contradicts(&self, name: &str, what: &str) -> bool {
        let mut names = self.0.lock();
        if let Some(meant) = names.get_mut(name) {
            let is_news = meant.what != what && !meant.is_told;
            meant.is_told |= is_news;
            return is_news;
        }
        if names.len() < MOST {
            let meant = Meant {
                what: what.to_owned(),
                is_told: false,
            };
            names.insert(name.to_owned(), meant);
        }
        false
    }
}

impl Part for Names {
    fn build(_: &PartSetup) -> Self {
        Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contradiction_is_told_once() {
        let names = Names::default();
        assert!(!names.contradicts("user", "u32"));
        assert!(!names.contradicts("user", "u32"));
        assert!(names.contradicts("user", "u64"));
        assert!(!names.contradicts("user", "u64"));
        assert!(!names.contradicts("other", "u64"));
    }
}
