//! The reservation suite.
