//! The gateway as it runs: what it forwards, what its layers add, and the rules of HTTP caching through it.

mod conformance;
mod faithful;
mod http2;
mod killed;
mod layers;
mod silent;
mod wire;
