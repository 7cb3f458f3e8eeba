//! The session layer, driven in process.
