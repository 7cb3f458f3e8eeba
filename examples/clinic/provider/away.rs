//! A provider that does not answer: 502, and nothing was done.
//!
//! Try it: `curl -i localhost:8080/_test/fault -H 'content-type: application/json' -d '{"fail":{"payment":1}}'`, with `--test-hooks`, and book
//!
//! Proof: `a_provider_that_fails_frees_the_slot_and_the_same_key_works_then`

use std::fmt;

use crate::fault::Fault;

/// The provider does not answer.
#[derive(Clone, Copy, Debug)]
pub struct Away;

impl fmt::Display for Away {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the payment provider does not answer")
    }
}

impl std::error::Error for Away {}

impl From<Away> for Fault {
    fn from(_: Away) -> Self {
        Self::PAYMENT_PROVIDER
    }
}

/// Its tables are ours for want of a real one.
impl From<Fault> for Away {
    fn from(_: Fault) -> Self {
        Self
    }
}
