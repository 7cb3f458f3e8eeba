//! The response_cache layer, driven in process.
