//! One cheap-to-clone handle per engine; knows nothing of layers.

#[cfg(any(feature = "redis", feature = "conformance"))]
mod beside;
mod channels;
pub mod fallback;
#[cfg(feature = "conformance")]
pub mod fault;
pub mod health;
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub mod sql;
