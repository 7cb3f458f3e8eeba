//! Which groups the layers on one handle use, and under which tag: the same name under two tags is a trap.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::Tag;
use crate::backend::memory::{Part, PartSetup};

/// The most names remembered; groups come from configuration, never from requests.
const MOST_GROUPS: usize = 4_096;

/// The groups of one handle.
#[derive(Default)]
pub(super) struct Groups(Mutex<HashMap<Box<str>, Tag>>);

impl Groups {
    /// Remembers the tag of a group that is new, and says whether one that is known has another.
    pub(super) fn splits(&self, group: &str, tag: Tag) -> bool {
        let mut groups = self.0.lock();
        match groups.get(group) {
            Some(known) => *known != tag,
            None => {
                if groups.len() < MOST_GROUPS {
                    groups.insert(group.into(), tag);
                }
                false
            }
        }
    }
}

impl Part for Groups {
    fn build(_: &PartSetup) -> Self {
        Self::default()
    }
}
