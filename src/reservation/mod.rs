//! The reservation layer.
