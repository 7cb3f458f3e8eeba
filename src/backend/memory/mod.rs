//! State inside this process.
