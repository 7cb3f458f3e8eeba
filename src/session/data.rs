//! Keyed values of a session, and how a patch changes them: pure.

use std::sync::Arc;

use bytes::Bytes;

use super::store::{Operation, Patch};

/// The most keys of one session.
pub(super) const MOST_KEYS: usize = 64;
/// The largest integer that every reader of JSON agrees on.
pub(super) const LARGEST_INTEGER: i64 = (1 << 53) - 1;

/// A value: JSON, and the number of its key's format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// 0 without [`SessionKey::versioned`](super::SessionKey::versioned).
    pub format: u8,
    /// The JSON text.
    pub json: Bytes,
}

/// A value with its name and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataEntry {
    /// The name of the key.
    pub name: Arc<str>,
    /// The number of the write that left it.
    pub version: u64,
    /// The value.
    pub value: Value,
}

impl DataEntry {
    pub(super) fn size(&self) -> usize {
        self.name.len() + self.value.json.len()
    }
}

/// All values of a session; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Data {
    entries: Option<Arc<Vec<DataEntry>>>,
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        self.entries() == other.entries()
    }
}

impl Eq for Data {}

impl Data {
    /// Returns the entries, sorted by name.
    #[must_use]
    pub fn entries(&self) -> &[DataEntry] {
        self.entries.as_deref().map_or(&[], Vec::as_slice)
    }

    /// Finds a key.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&DataEntry> {
        let entries = self.entries();
        let at = entries.binary_search_by(|entry| (*entry.name).cmp(name));
        entries.get(at.ok()?)
    }

    /// Returns the bytes of all names and values.
    #[must_use]
    pub fn size(&self) -> usize {
        self.entries().iter().map(DataEntry::size).sum()
    }

    /// Says whether there is no value.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries().is_empty()
    }

    pub(super) fn put(&mut self, name: &str, version: u64, value: Value) {
        let entries = Arc::make_mut(self.entries.get_or_insert_default());
        match entries.binary_search_by(|own| (*own.name).cmp(name)) {
            Ok(at) => (entries[at].version, entries[at].value) = (version, value),
            Err(at) => {
                let name = Arc::from(name);
                entries.insert(
                    at,
                    DataEntry {
                        name,
                        version,
                        value,
                    },
                );
            }
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if self.get(name).is_some() {
            let entries = Arc::make_mut(self.entries.get_or_insert_default());
            entries.retain(|entry| &*entry.name != name);
        }
    }
}

impl FromIterator<DataEntry> for Data {
    fn from_iter<I: IntoIterator<Item = DataEntry>>(entries: I) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Self {
            entries: (!entries.is_empty()).then(|| Arc::new(entries)),
        }
    }
}

/// Why a patch was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unapplied {
    Conflict(Vec<DataEntry>),
    TooLarge,
    NotANumber,
}

/// What a patch will do: worked out before anything is changed.
#[derive(Debug)]
pub(super) struct Plan {
    /// The sums of increments, in the order of their operations.
    sums: Vec<Value>,
    keys: usize,
    bytes: usize,
}

impl Plan {
    /// Works out `patch` on `data`, or says why it cannot be applied. Each operation is about a key of its own.
    pub(super) fn of(data: &Data, patch: &Patch) -> Result<Self, Unapplied> {
        check_versions(data, patch)?;
        let (keys_before, bytes_before) = (data.entries().len(), data.size());
        let mut plan = Self {
            sums: Vec::new(),
            keys: if patch.clear { 0 } else { keys_before },
            bytes: if patch.clear { 0 } else { bytes_before },
        };
        for (name, operation) in &patch.operations {
            let old = data.get(name).filter(|_| !patch.clear);
            if let Some(old) = old {
                plan.keys = plan.keys.saturating_sub(1);
                plan.bytes = plan.bytes.saturating_sub(old.size());
            }
            let length = match operation {
                Operation::Remove | Operation::RemoveIf(_) => continue,
                Operation::Set(value) | Operation::SetIf(_, value) => value.json.len(),
                Operation::Increment(by) => {
                    let sum = incremented(old.map(|entry| &entry.value), *by);
                    let sum = sum.ok_or(Unapplied::NotANumber)?;
                    let length = sum.json.len();
                    plan.sums.push(sum);
                    length
                }
            };
            plan.keys += 1;
            plan.bytes += name.len() + length;
        }
        // A patch that shrinks is taken even where a limit was lowered meanwhile.
        if plan.keys > MOST_KEYS.max(keys_before) || plan.bytes > patch.limit.max(bytes_before) {
            return Err(Unapplied::TooLarge);
        }
        Ok(plan)
    }

    /// Returns the bytes of all names and values afterwards, and the number of keys.
    pub(super) const fn size(&self) -> (usize, usize) {
        (self.bytes, self.keys)
    }

    /// Applies the patch it was made of to the same data; written entries get `version`.
    pub(super) fn apply(self, data: &mut Data, patch: &Patch, version: u64) {
        if patch.clear {
            *data = Data::default();
        }
        let mut sums = self.sums.into_iter();
        for (name, operation) in &patch.operations {
            let value = match operation {
                Operation::Remove | Operation::RemoveIf(_) => {
                    data.remove(name);
                    continue;
                }
                // A copy of its own: the caller's may be part of something larger.
                Operation::Set(value) | Operation::SetIf(_, value) => Some(Value {
                    format: value.format,
                    json: Bytes::copy_from_slice(&value.json),
                }),
                Operation::Increment(_) => sums.next(),
            };
            if let Some(value) = value {
                data.put(name, version, value);
            }
        }
    }
}

fn check_versions(data: &Data, patch: &Patch) -> Result<(), Unapplied> {
    let conditional = || {
        patch
            .operations
            .iter()
            .filter_map(|(name, operation)| match operation {
                Operation::SetIf(version, _) | Operation::RemoveIf(version) => {
                    Some((name, *version))
                }
                _ => None,
            })
    };
    let found = |name: &str| data.get(name).map_or(0, |entry| entry.version);
    if conditional().all(|(name, version)| found(name) == version) {
        return Ok(());
    }
    Err(Unapplied::Conflict(
        conditional()
            .filter_map(|(name, _)| data.get(name).cloned())
            .collect(),
    ))
}

/// Adds to an integer; `None` if there is something else.
pub(super) fn incremented(before: Option<&Value>, by: i64) -> Option<Value> {
    let before = match before {
        Some(value) => integer(value)?,
        None => 0,
    };
    let by = by.clamp(-LARGEST_INTEGER, LARGEST_INTEGER);
    let sum = (before + by).clamp(-LARGEST_INTEGER, LARGEST_INTEGER);
    Some(Value {
        format: 0,
        json: Bytes::from(sum.to_string()),
    })
}

/// Reads an integer within ±(2^53 − 1), written as JSON writes one.
fn integer(value: &Value) -> Option<i64> {
    let text = std::str::from_utf8(&value.json).ok()?;
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = !digits.is_empty()
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    let number: i64 = text.parse().ok()?;
    // The smallest number of all has no absolute value of its own type.
    let fits = number.unsigned_abs() <= LARGEST_INTEGER.unsigned_abs();
    (value.format == 0 && plain && fits).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn value(json: &str) -> Value {
        Value {
            format: 0,
            json: Bytes::copy_from_slice(json.as_bytes()),
        }
    }

    #[test]
    fn integers_are_exact_and_saturate_and_nothing_else_counts() {
        let add = |before: &str, by| {
            incremented(Some(&value(before)), by)
                .map(|sum| String::from_utf8(sum.json.to_vec()).unwrap())
        };
        assert_eq!(
            add("9007199254740990", 1).as_deref(),
            Some("9007199254740991")
        );
        assert_eq!(
            add("9007199254740991", i64::MAX).as_deref(),
            Some("9007199254740991")
        );
        assert_eq!(add("-5", i64::MIN).as_deref(), Some("-9007199254740991"));
        for no_integer in [
            "1.0",
            "\"1\"",
            "01",
            "",
            "-",
            "+1",
            "1e3",
            "9007199254740992",
            "-9007199254740992",
            "-9223372036854775808",
            "9223372036854775808",
            "null",
        ] {
            assert_eq!(add(no_integer, 1), None, "{no_integer}");
        }
        assert_eq!(
            incremented(
                Some(&Value {
                    format: 1,
                    json: Bytes::from_static(b"1")
                }),
                1
            ),
            None
        );
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0..200i64).prop_map(|n| Operation::Set(value(&n.to_string()))),
            Just(Operation::Set(value("\"x\""))),
            Just(Operation::Remove),
            (-9..9i64).prop_map(Operation::Increment),
            (0..4u64).prop_map(|version| Operation::SetIf(version, value("7"))),
            (0..4u64).prop_map(Operation::RemoveIf),
        ]
    }

    proptest! {
        /// The oracle is a plain map of numbers and texts.
        #[test]
        fn a_patch_is_applied_whole_or_not_at_all(patches in prop::collection::vec((any::<bool>(), prop::collection::btree_map(0..4u8, operation(), 0..4)), 1..12)) {
            let (mut data, mut oracle) = (Data::default(), BTreeMap::<String, (u64, String)>::new());
            for (version, (clear, operations)) in (1u64..).zip(patches) {
                let limit = 20;
                let patch = Patch { clear, limit, operations: operations.iter().map(|(k, op)| (format!("k{k}").into(), op.clone())).collect(), ..Patch::default() };
                let mut next = if clear { BTreeMap::new() } else { oracle.clone() };
                let mut fits = true;
                for (k, op) in operations {
                    let k = format!("k{k}");
                    let text = |value: &Value| String::from_utf8(value.json.to_vec()).unwrap();
                    match op {
                        Operation::Set(value) => { next.insert(k, (version, text(&value))); }
                        Operation::Remove => { next.remove(&k); }
                        Operation::Increment(by) => match next.get(&k).map_or(Ok(0), |(_, text)| text.parse::<i64>()) {
                            Ok(n) => { next.insert(k, (version, (n + by).to_string())); }
                            Err(_) => fits = false,
                        },
                        Operation::SetIf(wanted, value) => {
                            fits &= oracle.get(&k).map_or(0, |own| own.0) == wanted;
                            next.insert(k, (version, text(&value)));
                        }
                        Operation::RemoveIf(wanted) => {
                            fits &= oracle.get(&k).map_or(0, |own| own.0) == wanted;
                            next.remove(&k);
                        }
                    }
                }
                let size = |map: &BTreeMap<String, (u64, String)>| map.iter().map(|(k, v)| k.len() + v.1.len()).sum::<usize>();
                fits &= size(&next) <= limit.max(size(&oracle));
                let plan = Plan::of(&data, &patch);
                prop_assert_eq!(plan.is_ok(), fits);
                if let Ok(plan) = plan { plan.apply(&mut data, &patch, version); }
                if fits { oracle = next; }
                let found: Vec<_> = data.entries().iter().map(|e| (e.name.to_string(), e.version, e.value.json.to_vec())).collect();
                let expected: Vec<_> = oracle.iter().map(|(k, (v, t))| (k.clone(), *v, t.clone().into_bytes())).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
