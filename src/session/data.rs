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

    pub(super) fn put(&mut self, entry: DataEntry) {
        let entries = Arc::make_mut(self.entries.get_or_insert_default());
        match entries.binary_search_by(|own| own.name.cmp(&entry.name)) {
            Ok(at) => entries[at] = entry,
            Err(at) => entries.insert(at, entry),
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

/// Applies all of `patch` to `data`, written entries getting `version`, or nothing.
pub(super) fn apply(data: &mut Data, patch: &Patch, version: u64) -> Result<(), Unapplied> {
    check_versions(data, patch)?;
    let (keys, size) = (data.entries().len(), data.size());
    let mut next = if patch.clear {
        Data::default()
    } else {
        data.clone()
    };
    for (name, operation) in &patch.operations {
        let value = match operation {
            Operation::Set(value) | Operation::SetIf(_, value) => value.clone(),
            Operation::Remove | Operation::RemoveIf(_) => {
                next.remove(name);
                continue;
            }
            Operation::Increment(by) => {
                let before = next.get(name).map(|entry| &entry.value);
                incremented(before, *by).ok_or(Unapplied::NotANumber)?
            }
        };
        next.put(DataEntry {
            name: Arc::clone(name),
            version,
            value,
        });
    }
    // A patch that shrinks is taken even where a limit was lowered meanwhile.
    let too_many = next.entries().len() > MOST_KEYS.max(keys);
    if too_many || next.size() > patch.limit.max(size) {
        return Err(Unapplied::TooLarge);
    }
    *data = next;
    Ok(())
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
    (value.format == 0 && plain && number.abs() <= LARGEST_INTEGER).then_some(number)
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
                let patch = Patch { clear, limit, operations: operations.iter().map(|(k, op)| (Arc::from(format!("k{k}")), op.clone())).collect(), ..Patch::default() };
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
                prop_assert_eq!(apply(&mut data, &patch, version).is_ok(), fits);
                if fits { oracle = next; }
                let found: Vec<_> = data.entries().iter().map(|e| (e.name.to_string(), e.version, e.value.json.to_vec())).collect();
                let expected: Vec<_> = oracle.iter().map(|(k, (v, t))| (k.clone(), *v, t.clone().into_bytes())).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
