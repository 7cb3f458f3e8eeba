//! What a store in this process holds.

/// What is held, and how near that is to the bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Size {
    /// Entries, expired ones that nobody met yet included.
    pub entries: u64,
    /// Bytes.
    pub bytes: u64,
    /// Entries that were dropped for room before their end, so far.
    pub evicted: u64,
    /// How full the fullest table is of what is never evicted, 0 to 1: at 1 it refuses.
    pub fullest: f64,
}

impl std::ops::AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.evicted += other.evicted;
        self.fullest = self.fullest.max(other.fullest);
    }
}
