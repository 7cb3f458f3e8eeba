//! The response_cache layer.
