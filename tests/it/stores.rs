//! Every conformance suite on every engine.
