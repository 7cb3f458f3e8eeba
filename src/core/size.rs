//! Sizes in bytes, for bounds that are written in code.

/// A kibibyte: 1,024 bytes.
pub const KIB: usize = 1_024;
/// A mebibyte: 1,024 kibibytes.
pub const MIB: usize = 1_024 * KIB;
