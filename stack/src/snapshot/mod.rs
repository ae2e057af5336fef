//! A plan, compiled: immutable, shared by all shards, in parts that are compared alone.
//!
//! [`Policy`] says who may talk to whom and where packets go; it carries the epoch that flows remember. [`Lanes`] says
//! by which keys and endpoints peers are reached, [`Names`] who may ask for which names, [`Checks`] who is asked whether it
//! is ready; a change of them touches no flow.
//!
//! The files: `guard` says whether a port may send a packet at all; `policy` (who is where), `services` (who is who) and
//! `owners` (whom a flow counts for) are looked up; `judge` is the one walk that decides a flow, by lists of `rules`;
//! `explain` is the same walk, told in names; `edges` asks it about everybody. `names` has the ports' views of the names
//! in each network's [`zone`].

mod checks;
mod edges;
mod explain;
mod guard;
mod judge;
mod names;
mod owners;
mod policy;
mod rules;
mod services;
pub mod zone;

pub(crate) use guard::{is_group, is_martian};

pub use checks::{Check, Checks};
pub use edges::{Carrier, Change, Difference, Edge, Edges, End, Passage};
pub use explain::{Basis, Citation, Explanation, NetworkName, Place, Step};
pub use names::{Names, View};
pub use policy::{MemberEntry, NetworkEntry, PeerEntry, Policy, PortEntry, PortSlot};
pub use services::{ServiceEntry, ServiceSlot};

use crate::plan::{PeerId, Plan, PrivateKey, Reach};
use std::sync::Arc;

/// A compiled plan.
pub struct Snapshot {
    policy: Arc<Policy>,
    lanes: Arc<Lanes>,
    names: Arc<Names>,
    checks: Arc<Checks>,
}

/// The foreign lane's key, and how peers are reached.
#[derive(Clone, PartialEq, Eq)]
pub struct Lanes {
    /// The foreign lane's private key. A shard's own lane has a key that the plan doesn't know.
    pub foreign_key: PrivateKey,
    /// The peers' keys and places.
    pub peers: Vec<LanePeer>,
}

/// A peer, as lanes see it.
#[derive(Clone, PartialEq, Eq)]
pub struct LanePeer {
    /// Its number.
    pub id: PeerId,
    /// By which keys and endpoints it is reached.
    pub reach: Reach,
}

impl Snapshot {
    /// Compiles a plan. Parts that are equal to those of `previous` are the same objects, and an equal policy keeps
    /// its epoch.
    pub fn compile(plan: &Plan, previous: Option<&Arc<Self>>) -> Arc<Self> {
        let lanes = Lanes {
            foreign_key: plan.foreign_lane_key.clone(),
            peers: plan
                .peers
                .iter()
                .map(|peer| LanePeer {
                    id: peer.id,
                    reach: peer.reach.clone(),
                })
                .collect(),
        };
        let lanes = match previous {
            Some(previous) if *previous.lanes == lanes => Arc::clone(&previous.lanes),
            _ => Arc::new(lanes),
        };
        let policy = match previous {
            Some(previous) if previous.policy.is_compiled_from(plan) => Arc::clone(&previous.policy),
            _ => Arc::new(Policy::compile(
                plan,
                previous.map(|previous| previous.policy().as_ref()),
            )),
        };
        let names = match previous {
            Some(previous) if previous.names.is_compiled_from(plan) => Arc::clone(&previous.names),
            _ => Arc::new(Names::compile(
                plan,
                previous.map(|previous| previous.names().as_ref()),
            )),
        };
        let checks = Checks::compile(plan);
        let checks = match previous {
            Some(previous) if *previous.checks == checks => Arc::clone(&previous.checks),
            _ => Arc::new(checks),
        };
        Arc::new(Self {
            policy,
            lanes,
            names,
            checks,
        })
    }

    /// Who may talk to whom.
    pub fn policy(&self) -> &Arc<Policy> {
        &self.policy
    }

    /// How peers are reached.
    pub fn lanes(&self) -> &Arc<Lanes> {
        &self.lanes
    }

    /// Who may ask for which names.
    pub fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// Who is asked whether it is ready.
    pub fn checks(&self) -> &Arc<Checks> {
        &self.checks
    }

    /// The policy's epoch.
    pub fn epoch(&self) -> u64 {
        self.policy.epoch()
    }
}
