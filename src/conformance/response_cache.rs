//! The response_cache suite.
