//! Why a packet went no further: a closed list. A dropped packet is a value with a name and a counter, not an error.

use serde::{Deserialize, Serialize};

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $label:literal,)+) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        #[repr(u8)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The label of its metric, and what a user reads: kebab-case, stable.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// One line: what it means and what to do about it.
            pub fn explanation(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc,)+).trim_ascii_start(),)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame is shorter than its headers say, or a length or version field contradicts itself. Look at the sender.
    Malformed => "malformed",
    /// An IPv4 header checksum is wrong: the sender or the path damages packets.
    BadChecksum => "bad-checksum",
    /// An IPv4 option other than no-operation or router-alert: source routes, recorded routes and timestamps are never carried (RFC 7126).
    IpOptions => "ip-options",
    /// An IPv6 extension header that isn't carried, one in a wrong place, or a chain of them that is too long (more than 8, or 256 bytes).
    ExtensionHeader => "extension-header",
    /// The first fragment of a datagram hasn't all of its headers (RFC 7112, RFC 3128): nobody could tell what the rest is.
    FragmentHeader => "fragment-header",
    /// Fragments of one datagram overlap or contradict each other: all of it is dropped (RFC 5722).
    FragmentOverlap => "fragment-overlap",
    /// More datagrams in fragments are unfinished than a source, or the host, may have (64 a source, 1,024 and 4 MiB in all).
    FragmentLimit => "fragment-limit",
    /// Fragments whose rest didn't come in time: 30 s for IPv4, 60 s for IPv6.
    FragmentTimeout => "fragment-timeout",
    /// The source isn't an address of the port it came from: a spoofed packet, or an instance that changed its address.
    SourceNotOwn => "source-not-own",
    /// The source can't be a host's: multicast, broadcast, loopback or unspecified.
    SourceMartian => "source-martian",
    /// The packet goes to a multicast or broadcast address, which networks don't carry; kernels send such by themselves.
    Multicast => "multicast",
    /// The destination is in none of the instance's networks, and no rule lets the application out.
    OutboundDenied => "outbound-denied",
    /// No rule of the target's `inbound-access` lets this sender in.
    InboundDenied => "inbound-denied",
    /// The destination is in the network, but no instance has that address.
    NoInstance => "no-instance",
    /// The destination belongs to another host's block, and no peer has that ordinal or is a member of the network.
    NoPeer => "no-peer",
    /// The packet is for the service address, and nothing answers there for this protocol or port.
    ServiceAddress => "service-address",
    /// A message to DNS at the service address that is no query: an answer, or shorter than a header.
    NotAQuery => "not-a-query",
    /// More connections for DNS than one instance (4) or a host (64) may have at once; the sender was told.
    DnsConnections => "dns-connections",
    /// The hop limit reached zero; the sender was told (traceroute does this on purpose).
    HopLimitExceeded => "hop-limit-exceeded",
    /// Larger than the path takes, and not to be fragmented; the sender was told.
    PacketTooBig => "packet-too-big",
    /// A port that the plan doesn't know: an instance being attached or detached.
    UnknownPort => "unknown-port",
    /// A UDP datagram on the lane that isn't WireGuard, or one of a wrong length.
    NotWireguard => "not-wireguard",
    /// A WireGuard message for a receiver index of no peer: from before a restart, or forged.
    UnknownReceiver => "unknown-receiver",
    /// A handshake by a key that is no peer's. Check `cluster.peers` on both ends.
    UnknownKey => "unknown-key",
    /// A WireGuard message that didn't authenticate: damaged or forged, or from an older session.
    Unauthenticated => "unauthenticated",
    /// A WireGuard message seen before, or too old for the replay window.
    Replayed => "replayed",
    /// No session with the peer yet, and its queue is full or has waited too long. Is the peer up, and UDP
    /// open both ways?
    NoSession => "no-session",
    /// The peer's address isn't known, and it hasn't called yet.
    NoEndpoint => "no-endpoint",
    /// Inside the tunnel came something that isn't IPv4, UDP and VXLAN between the two VTEPs' addresses.
    NotVxlan => "not-vxlan",
    /// The VXLAN header lacks the I flag (RFC 7348 §5).
    VxlanFlags => "vxlan-flags",
    /// A VNI that this host has no network for.
    UnknownVni => "unknown-vni",
    /// The peer isn't a member of the network it named.
    NotMember => "not-member",
    /// The inner source isn't in the peer's own block of the network: spoofed at the peer.
    ForeignSource => "foreign-source",
    /// An Ethernet frame inside VXLAN that isn't for us (kernel VTEPs flood MLD, router solicitations and the like).
    NotOurs => "not-ours",
    /// The address was asked for over the tunnel (ARP, ND) and nobody answered.
    NoNeighbour => "no-neighbour",
    /// The queue of packets that wait for a neighbour's answer is full.
    NeighbourQueueFull => "neighbour-queue-full",
    /// The congestion mark of the outer packet can't be joined with the inner one (RFC 6040 §4.2).
    EcnMismatch => "ecn-mismatch",
    /// The flow table is full, and nothing in it may be evicted.
    FlowTableFull => "flow-table-full",
    /// The application has as many connections on this host as one may have: three quarters of what the host holds.
    ConnectionLimit => "connection-limit",
    /// A service has as many connections on this host as its `limits.connections` allows.
    ServiceConnections => "service-connections",
    /// A service begins connections faster than its `limits.new-connections` allows.
    ConnectionRate => "connection-rate",
    /// The source has as many connections that nobody has answered as one may have (1,024): a scan, a flood, or a target that is away.
    HalfOpenLimit => "half-open-limit",
    /// The packet's flow lives on another core, whose queue is full: that core has more than it can do.
    HandoverFull => "handover-full",
    /// The frame pool is empty: more is under way than the host's ceiling allows.
    NoBuffer => "no-buffer",
    /// The device or socket didn't take the packet (queue full, or link down).
    SendFailed => "send-failed",
    /// Packets waited here for too long behind bulk TCP, and a sender that doesn't take congestion marks was told by the
    /// loss of one segment: it slows down, and small packets pass quickly again.
    StandingQueue => "standing-queue",
    /// More answers of this kind were asked for than the rate limit allows (ICMP errors, RFC 4443 §2.4 f).
    RateLimited => "rate-limited",
    /// A WireGuard handshake beyond what its source may begin (20 a second, bursts of 5) or what a host answers: asked
    /// for a cookie, or left unanswered. Somebody floods, or very many hosts stand behind one address.
    HandshakeFlood => "handshake-flood",
    /// A reply, error or answer that belongs to no flow, or a message between neighbours on a link, such as a redirect.
    NoFlow => "no-flow",
    /// A TCP segment whose flags contradict each other (SYN with FIN, none at all, FIN with URG and PSH): nothing but a scan sends it.
    TcpFlags => "tcp-flags",
    /// A TCP segment in the middle of a connection that isn't known here: older than the filter's memory, or forged.
    MidStream => "mid-stream",
    /// A TCP segment outside of what the receiver may accept now (RFC 9293 §3.10.7.4), or a reset that doesn't fit (RFC 5961).
    TcpOutOfWindow => "tcp-out-of-window",
}

/// One counter per reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropCounters([u64; DropReason::ALL.len()]);

impl Default for DropCounters {
    fn default() -> Self {
        Self([0; DropReason::ALL.len()])
    }
}

impl DropCounters {
    /// Counts one packet.
    pub fn count(&mut self, reason: DropReason) {
        self.add(reason, 1);
    }

    /// Counts `packets` packets.
    pub fn add(&mut self, reason: DropReason, packets: u64) {
        if let Some(counter) = self.0.get_mut(reason as usize) {
            *counter += packets;
        }
    }

    /// How many were dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).copied().unwrap_or(0)
    }

    /// The reasons that have been seen, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL
            .iter()
            .map(|reason| (*reason, self.get(*reason)))
            .filter(|(_, count)| *count > 0)
    }

    /// All drops together.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }
}
