//! Where an address of a plan is, looked up the long way.

use ipnet::IpNet;
use std::net::IpAddr;
use tidegate_stack::drop::DropReason;
use tidegate_stack::flow::{Answer, Arrival, Hop, Verdict};
use tidegate_stack::plan::{HostOrdinal, Membership, Network, NetworkKind, Plan, ServiceId, Vni};
use tidegate_stack::snapshot::PortSlot;
use tidegate_stack::wire::Endpoints;

/// Whether an address lies in a network.
pub(crate) fn prefix_holds(network: &Network, address: IpAddr) -> bool {
    let numbers = &network.numbers;
    IpNet::V4(numbers.ipv4_prefix).contains(&address) || IpNet::V6(numbers.ipv6_prefix).contains(&address)
}

/// Whether an address lies in a host's block of a network.
pub(crate) fn block_holds(network: &Network, ordinal: HostOrdinal, address: IpAddr) -> bool {
    let numbers = &network.numbers;
    IpNet::V4(numbers.block_ipv4(ordinal)).contains(&address)
        || IpNet::V6(numbers.block_ipv6(ordinal)).contains(&address)
}

/// The instance of this host that has an address.
pub(crate) fn instance_at(plan: &Plan, vni: Vni, address: IpAddr) -> Option<usize> {
    let has = |membership: &Membership| membership.vni == vni && membership.addresses().contains(&address);
    let mut instances = plan.instances.iter();
    instances.position(|instance| instance.memberships.iter().any(has))
}

/// The service behind an address.
pub(crate) fn service_at(plan: &Plan, vni: Vni, address: IpAddr) -> Option<ServiceId> {
    if let Some(index) = instance_at(plan, vni, address) {
        return Some(plan.instances[index].service_id());
    }
    let mut members = plan.members.iter();
    let member = members.find(|member| member.vni == vni && member.addresses().contains(&address))?;
    Some(member.service.clone())
}

/// Where replies go, if the source belongs to where its packet came from.
pub(crate) fn reply(
    plan: &Plan,
    network: &Network,
    source: IpAddr,
    arrival: Arrival,
) -> Result<Hop, DropReason> {
    match arrival {
        Arrival::Port(port) => {
            let attached = plan.instances.iter().position(|instance| instance.port == port);
            let index = attached.ok_or(DropReason::UnknownPort)?;
            if instance_at(plan, network.vni, source) != Some(index) {
                return Err(DropReason::SourceNotOwn);
            }
            Ok(Hop::Port(PortSlot(u32::try_from(index).unwrap())))
        }
        Arrival::Tunnel(id) => {
            let peer = plan.peers.iter().find(|peer| peer.id == id);
            let peer = peer.ok_or(DropReason::NoPeer)?;
            if !peer.networks.contains(network.vni) {
                return Err(DropReason::NotMember);
            }
            if !block_holds(network, peer.ordinal, source) {
                return Err(DropReason::ForeignSource);
            }
            Ok(Hop::Tunnel(id))
        }
    }
}

/// Where a flow goes, or what ends it before any rule is asked.
pub(crate) fn original(
    plan: &Plan,
    network: &Network,
    endpoints: &Endpoints,
    arrival: Arrival,
) -> Result<Hop, Verdict> {
    let destination = endpoints.destination;
    if [network.service_ipv4().into(), network.service_ipv6().into()].contains(&destination) {
        return Err(
            answer(endpoints, arrival).map_or(Verdict::Deny(DropReason::ServiceAddress), Verdict::Answer)
        );
    }
    if let Some(index) = instance_at(plan, network.vni, destination) {
        return Ok(Hop::Port(PortSlot(u32::try_from(index).unwrap())));
    }
    let ordinals = (1..=254).map(|number| HostOrdinal::try_from(number).unwrap());
    let owner = ordinals
        .filter(|ordinal| *ordinal != plan.ordinal)
        .find(|ordinal| block_holds(network, *ordinal, destination));
    let (Some(owner), Arrival::Port(_)) = (owner, arrival) else {
        return Err(Verdict::Deny(DropReason::NoInstance));
    };
    let mut peers = plan.peers.iter();
    let peer = peers.find(|peer| peer.ordinal == owner && peer.networks.contains(network.vni));
    peer.map(|peer| Hop::Tunnel(peer.id))
        .ok_or(Verdict::Deny(DropReason::NoPeer))
}

/// What the service address says to an instance.
fn answer(endpoints: &Endpoints, arrival: Arrival) -> Option<Answer> {
    match (arrival, endpoints.protocol, endpoints.destination_port) {
        (Arrival::Port(_), 1 | 58, _) => Some(Answer::Echo),
        (Arrival::Port(_), 17, 53) => Some(Answer::DnsDatagram),
        (Arrival::Port(_), 6, 53) => Some(Answer::DnsSegment),
        _ => None,
    }
}

/// Whether a network is that of the service's own application.
pub(crate) fn is_own_network(network: &Network, service: &Option<ServiceId>) -> bool {
    let application = service.as_ref().map(|id| (&id.tenant, &id.application));
    network.kind == NetworkKind::Application && application == Some((&network.tenant, &network.name))
}
