//! How many jobs a call would add: told before anything is added, since a call adds all or none.

use std::collections::HashMap;

use super::{Again, DIGEST_BYTES, NewJob};
use crate::core::Key;

/// Bytes that an item of a digest takes beside its own.
pub(super) const ITEM: usize = 32;

/// Recipient and key of a digest.
type Name = (Key, Key);

/// A digest that collects: the number of its items, and their bytes.
#[derive(Clone, Copy)]
pub(super) struct Collecting {
    pub(super) items: usize,
    pub(super) bytes: usize,
}

/// Goes through the jobs of a call in order, as the call will, and counts those that are none yet. Jobs whose id the
/// store knows are left out, but for [`Tally::closes`].
#[derive(Default)]
pub(super) struct Tally<'j> {
    new: HashMap<&'j Key, u64>,
    /// Each digest of this call: its place in `digests`, or nothing where it does not collect.
    collects: HashMap<Name, Option<usize>>,
    digests: Vec<Collecting>,
    /// Ids of this call → the digest that its job opened.
    ids: HashMap<&'j [u8; 32], Option<(Name, usize)>>,
}

impl<'j> Tally<'j> {
    /// Says whether an earlier job of this call has the same id, and so adds no other.
    pub(super) fn repeats(&mut self, job: &'j NewJob) -> bool {
        let Some(opened) = job.once.as_ref().and_then(|id| self.ids.get(id)) else {
            return false;
        };
        if let Some((name, digest)) = opened
            && (job.again, &job.recipient) == (Again::Replace, &name.0)
            && self.digests[*digest].items == 1
            && self.collects.get(name) == Some(&Some(*digest))
        {
            self.collects.insert(name.clone(), None);
        }
        true
    }

    /// A job of the store that this one will replace collected under `key`.
    pub(super) fn closes(&mut self, job: &NewJob, key: Key) {
        self.collects.insert((job.recipient.clone(), key), None);
    }

    /// Returns the digest that has to be looked for in the store before the job is added.
    pub(super) fn wants(&self, job: &'j NewJob) -> Option<&'j Key> {
        let key = &job.digest.as_ref()?.key;
        let name = (job.recipient.clone(), key.clone());
        (!self.collects.contains_key(&name)).then_some(key)
    }

    /// Adds a job; `found` is the digest that was looked for in the store.
    pub(super) fn add(&mut self, job: &'j NewJob, found: Option<Collecting>) {
        let mut opened = None;
        if !self.joins(job, found) {
            *self.new.entry(&job.recipient).or_default() += 1;
            opened = self.open(job);
        }
        if let Some(id) = &job.once {
            self.ids.insert(id, opened);
        }
    }

    /// Joins an open digest with room. One without is closed.
    fn joins(&mut self, job: &NewJob, found: Option<Collecting>) -> bool {
        let Some(wish) = &job.digest else {
            return false;
        };
        let name = (job.recipient.clone(), wish.key.clone());
        let known = self.collects.get(&name).copied();
        let place = known.unwrap_or_else(|| {
            self.digests.extend(found);
            found.map(|_| self.digests.len() - 1)
        });
        let Some((place, digest)) = place.and_then(|at| Some((at, self.digests.get_mut(at)?)))
        else {
            return false;
        };
        let size = job.item.len() + ITEM;
        let has_space = digest.bytes + size <= DIGEST_BYTES;
        if has_space {
            digest.items += 1;
            digest.bytes += size;
        }
        let is_full = !has_space || digest.items >= wish.max as usize;
        self.collects.insert(name, (!is_full).then_some(place));
        has_space
    }

    /// A new job opens a digest, where it wishes for one of more than one item.
    fn open(&mut self, job: &NewJob) -> Option<(Name, usize)> {
        let wish = job.digest.as_ref().filter(|wish| wish.max > 1)?;
        self.digests.push(Collecting {
            items: 1,
            bytes: job.item.len() + ITEM,
        });
        let (name, place) = (
            (job.recipient.clone(), wish.key.clone()),
            self.digests.len() - 1,
        );
        self.collects.insert(name.clone(), Some(place));
        Some((name, place))
    }

    /// Returns how many jobs would be new, by recipient.
    pub(super) fn new_ones(&self) -> &HashMap<&'j Key, u64> {
        &self.new
    }
}
