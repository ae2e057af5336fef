//! Every WireGuard that isn't ours finds in our host one of its own kind, and strangers find nothing.
//!
//! One host of ours, and foreign peers on its segment (`fixtures/topologies/conformance.yaml`). Without `TIDEGATE_LONG=1`
//! the same stories are shorter.

mod flood;
mod malformed;
mod peers;
mod replay;
mod sessions;
