//! What a shard would have somebody else do, who has what it hasn't: sockets, or a say in the plan.

use crate::plan::PortId;
use crate::responder::dns::Question;
use serde::{Deserialize, Serialize};

/// Something that happened, taken by [`Shard::poll_event`](crate::shard::Shard::poll_event). One may get lost: what
/// matters is told again, or stands in the [`Report`](crate::stats::Report).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// Somebody asks about the world beyond, and the answer isn't known. It is repeated every second while somebody
    /// waits.
    Question(Question),
    /// An instance got ready, or no longer is.
    Readiness {
        /// Its port.
        port: PortId,
        /// Whether it is.
        ready: bool,
    },
}
