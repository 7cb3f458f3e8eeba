//! The reservation layer, driven in process.
