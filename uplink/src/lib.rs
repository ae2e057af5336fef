//! The one outbound, encrypted, proxy-friendly line of a site to its central tower.
//!
//! The room is drawn, nothing lives in it yet. What will: a pure protocol state (`session`), a durable queue
//! (`outbox`), the transports that get through (`transport`), images moved as differences (`images`), and the
//! other end (`tower`). It dials out only, and knows nothing of `tidegate-stack`.
#![forbid(unsafe_code)]
