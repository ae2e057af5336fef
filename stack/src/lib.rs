//! tidegate's network stack: a function of bytes, time and plan. It has no socket, clock, thread or random source.
//!
//! # The walk of a packet
//!
//! A worker reads packets from an instance's device, up to 64 KiB each ([`frame::Frame`]), and gives them to
//! [`shard::Shard::handle_port`]:
//!
//! 1. [`wire::Headers`] is the one parse. The source must be the port's own address in the network that the
//!    destination names. A fragment waits for the others ([`wire::fragments`]): a datagram is judged whole, and cut
//!    again where a link doesn't take it.
//! 2. [`flow::FlowTable`] knows what was decided ([`flow::Verdict`]); for a first packet, and after the policy changed,
//!    [`snapshot::Policy::judge`] decides. What isn't allowed ends here, under a [`drop::DropReason`].
//! 3. The hop limit goes down by one; a packet that is too long, or at its last hop, is answered by [`responder`].
//! 4. To an instance of this host it goes as it is. Towards a peer, [`overlay::Neighbours`] knows the far end's MAC
//!    address (of a host of the site it follows from the IP address), [`wireguard::Peers`] chooses the tunnel by the
//!    flow's home, [`frame::Segments`] cuts, [`overlay::Encap`] wraps, and [`wireguard::Tunnel`] seals straight into
//!    the buffer that [`egress::Egress`] gave.
//!
//! A host of several cores has a shard for each. A flow lives on one of them, by its [`wire::home`]; what another one
//! reads of it is handed over before anything is done to it ([`egress::Handover`]).
//!
//! What a peer sends comes in by [`shard::Shard::handle_lane`]: the tunnel that its receiver index names opens it,
//! [`overlay::decap`] takes VXLAN off, the peer must be a member of the network and the source in the peer's own block,
//! the flow says which port; [`frame::Coalescer`] glues what belongs together until [`shard::Shard::flush`].
//!
//! What is in force comes from outside, as a [`plan::Plan`], compiled to a [`snapshot::Snapshot`].
#![forbid(unsafe_code)]

/// Whether this is a build for the simulation: never in a daemon.
pub const SIMULATED: bool = cfg!(feature = "simulation");

pub mod drop;
pub mod egress;
pub mod event;
pub mod flow;
pub mod frame;
pub mod overlay;
pub mod plan;
pub mod responder;
pub mod shard;
pub mod snapshot;
pub mod stats;
pub mod time;
pub mod wire;
pub mod wireguard;
