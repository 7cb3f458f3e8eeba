//! Two levels: local copies in front of a shared store.
