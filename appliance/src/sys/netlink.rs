//! Links, addresses and routes over rtnetlink (RFC 3549), asked one after the other.
//!
//! Every call is one request and its answer on a blocking socket of the thread's namespace at [`Netlink::open`]; the
//! socket stays in that namespace wherever the thread goes afterwards. There is no runtime inside, so a call may be
//! made from anywhere that may wait some microseconds.

use ipnet::IpNet;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A link of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    /// Its index, the kernel's own name for it.
    pub(crate) index: u32,
    /// Its name.
    pub(crate) name: String,
    /// Its MTU, in bytes.
    pub(crate) mtu: u32,
    /// Whether it is administratively up.
    pub(crate) up: bool,
}

/// How the kernel would send to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// The link it leaves by.
    pub(crate) index: u32,
    /// The source address it would take.
    pub(crate) source: Option<IpAddr>,
    /// The route's own MTU, in bytes, when it has one.
    pub(crate) mtu: Option<u32>,
}

/// A conversation with the kernel about one namespace.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens the conversation in the calling thread's namespace.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Opens the conversation in `namespace`.
    ///
    /// # Errors
    /// When the namespace can't be entered, or what the kernel said.
    pub(crate) fn open_within(namespace: BorrowedFd<'_>) -> io::Result<Self> {
        super::netns::within(namespace, Self::open)?
    }

    /// The links of the namespace.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.ask(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)?;
        Ok(answers.iter().filter_map(link).collect())
    }

    /// The link of that name.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Link> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        let answers = self
            .ask(RouteNetlinkMessage::GetLink(message), 0)
            .map_err(|error| {
                if error.raw_os_error() == Some(libc::ENODEV) {
                    no_such_link(name)
                } else {
                    error
                }
            })?;
        answers.iter().find_map(link).ok_or_else(|| no_such_link(name))
    }

    /// The index of the link of that name.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub(crate) fn link_index(&mut self, name: &str) -> io::Result<u32> {
        Ok(self.link(name)?.index)
    }

    /// Makes a veth pair: `name` here, `peer_name` in `peer_namespace`.
    ///
    /// # Errors
    /// What the kernel said, `AlreadyExists` for a name that is taken.
    pub(crate) fn add_veth(
        &mut self,
        name: &str,
        peer_name: &str,
        peer_namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let mut peer = LinkMessage::default();
        peer.attributes.push(LinkAttribute::IfName(peer_name.to_owned()));
        peer.attributes
            .push(LinkAttribute::NetNsFd(peer_namespace.as_raw_fd()));
        let data = InfoData::Veth(InfoVeth::Peer(peer));
        self.add_link(name, vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(data)])
    }

    /// Makes a bridge.
    ///
    /// # Errors
    /// What the kernel said, `AlreadyExists` for a name that is taken.
    pub(crate) fn add_bridge(&mut self, name: &str) -> io::Result<()> {
        self.add_link(name, vec![LinkInfo::Kind(InfoKind::Bridge)])
    }

    /// Makes a link a port of a bridge.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn set_master(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        self.set_link(index, vec![LinkAttribute::Controller(bridge)])
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.tell(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Sets a link's MTU, in bytes.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u32) -> io::Result<()> {
        self.set_link(index, vec![LinkAttribute::Mtu(mtu)])
    }

    /// Moves a link into another namespace under another name and with an MTU (in bytes), in one step.
    ///
    /// # Errors
    /// What the kernel said, `AlreadyExists` when the name is taken there.
    pub(crate) fn move_link(
        &mut self,
        index: u32,
        namespace: BorrowedFd<'_>,
        new_name: &str,
        mtu: u32,
    ) -> io::Result<()> {
        let attributes = vec![
            LinkAttribute::NetNsFd(namespace.as_raw_fd()),
            LinkAttribute::IfName(new_name.to_owned()),
            LinkAttribute::Mtu(mtu),
        ];
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        self.tell(RouteNetlinkMessage::NewLink(message), 0)
    }

    /// Keeps the kernel from giving a link an IPv6 link-local address.
    ///
    /// # Errors
    /// What the kernel said; `AddrNotAvailable` or similar where IPv6 is switched off.
    pub(crate) fn set_addr_gen_mode_none(&mut self, index: u32) -> io::Result<()> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        self.set_link(
            index,
            vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])],
        )
    }

    /// Limits the super-packets that the kernel hands to a link, IPv6 and IPv4, in bytes.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn set_gso_max_size(&mut self, index: u32, bytes: u32) -> io::Result<()> {
        self.set_link(index, vec![LinkAttribute::GsoMaxSize(bytes)])?;
        // Since Linux 6.3 IPv4 has a limit of its own; an older kernel ignores or refuses it and goes by the first.
        match self.set_link(index, vec![LinkAttribute::GsoIpv4MaxSize(bytes)]) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => Ok(()),
            result => result,
        }
    }

    /// Removes a link.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn delete_link(&mut self, index: u32) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.tell(RouteNetlinkMessage::DelLink(message), 0)
    }

    /// Gives a link an address, usable at once: without duplicate address detection (RFC 4862 §5.4). An address that
    /// is there already is left as it is.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn add_address(&mut self, index: u32, address: IpAddr, prefix_len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        message.header.prefix_len = prefix_len;
        message.header.scope = AddressScope::Universe;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
        ];
        match address {
            IpAddr::V4(address) => {
                message.header.family = AddressFamily::Inet;
                if prefix_len < 31 {
                    let hosts = u32::MAX.checked_shr(u32::from(prefix_len)).unwrap_or(0);
                    let broadcast = Ipv4Addr::from_bits(address.to_bits() | hosts);
                    message.attributes.push(AddressAttribute::Broadcast(broadcast));
                }
            }
            IpAddr::V6(_) => {
                message.header.family = AddressFamily::Inet6;
                message.header.flags = AddressHeaderFlags::Nodad;
                message
                    .attributes
                    .push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
        }
        self.tell(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// The addresses of a link, each with its prefix.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn addresses(&mut self, index: u32) -> io::Result<Vec<IpNet>> {
        let answers = self.ask(
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
            NLM_F_DUMP,
        )?;
        Ok(answers
            .iter()
            .filter_map(|answer| address_of(answer, index))
            .collect())
    }

    /// Adds a route, or replaces the one to the same destination.
    ///
    /// # Errors
    /// What the kernel said; `InvalidInput` when the addresses are of different families.
    pub(crate) fn add_route(
        &mut self,
        destination: IpNet,
        index: u32,
        gateway: Option<IpAddr>,
        source: Option<IpAddr>,
    ) -> io::Result<()> {
        let destination = destination.trunc();
        if [gateway, source]
            .iter()
            .flatten()
            .any(|other| other.is_ipv4() != destination.addr().is_ipv4())
        {
            let text = format!("a route to {destination} can't go by an address of the other family");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination.addr());
        message.header.destination_prefix_length = destination.prefix_len();
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        // Linux takes IPv4 scopes literally: without a gateway the destination is on the link.
        message.header.scope = if gateway.is_none() && destination.addr().is_ipv4() {
            RouteScope::Link
        } else {
            RouteScope::Universe
        };
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Oif(index));
        if destination.prefix_len() > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(destination.addr().into()));
        }
        message
            .attributes
            .extend(gateway.map(|address| RouteAttribute::Gateway(address.into())));
        message
            .attributes
            .extend(source.map(|address| RouteAttribute::PrefSource(address.into())));
        self.tell(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
    }

    /// Asks how the kernel would send to `destination`.
    ///
    /// # Errors
    /// `NetworkUnreachable` when there is no route.
    pub(crate) fn path_to(&mut self, destination: IpAddr) -> io::Result<Path> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = if destination.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(destination.into()));
        let answers = self.ask(RouteNetlinkMessage::GetRoute(message), 0)?;
        answers
            .iter()
            .find_map(path)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENETUNREACH))
    }

    fn add_link(&mut self, name: &str, information: Vec<LinkInfo>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(information));
        self.tell(RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    fn set_link(&mut self, index: u32, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes;
        self.tell(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// A request that changes something; its answer is an acknowledgement.
    fn tell(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, flags | NLM_F_ACK).map(|_| ())
    }

    /// A request whose answer is one message, or with NLM_F_DUMP any number of them.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, flags)
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let answer =
                    NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                // Messages are padded to four bytes inside a datagram (RFC 3549 §2.3.2).
                let length = (answer.header.length as usize)
                    .next_multiple_of(4)
                    .min(rest.len());
                if length == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        "an empty netlink message",
                    ));
                }
                rest = rest.get(length..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(inner) => {
                        answers.push(inner);
                        if flags & (NLM_F_DUMP | NLM_F_ACK) == 0 {
                            return Ok(answers);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

fn no_such_link(name: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("there is no network device {name}"),
    )
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn link(answer: &RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(message) = answer else {
        return None;
    };
    let mut name = None;
    let mut mtu = 0;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::Mtu(value) => mtu = *value,
            _ => {}
        }
    }
    Some(Link {
        index: message.header.index,
        name: name?,
        mtu,
        up: message.header.flags.contains(LinkFlags::Up),
    })
}

fn address_of(answer: &RouteNetlinkMessage, index: u32) -> Option<IpNet> {
    let RouteNetlinkMessage::NewAddress(message) = answer else {
        return None;
    };
    if message.header.index != index {
        return None;
    }
    // IFA_ADDRESS is the other end on a point-to-point link; IFA_LOCAL, when there, is the address itself.
    let mut found = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => found = Some(*address),
            AddressAttribute::Address(address) if found.is_none() => found = Some(*address),
            _ => {}
        }
    }
    IpNet::new(found?, message.header.prefix_len).ok()
}

fn path(answer: &RouteNetlinkMessage) -> Option<Path> {
    let RouteNetlinkMessage::NewRoute(message) = answer else {
        return None;
    };
    let mut path = Path {
        index: 0,
        source: None,
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => path.index = *index,
            RouteAttribute::PrefSource(RouteAddress::Inet(address)) => {
                path.source = Some(IpAddr::V4(*address))
            }
            RouteAttribute::PrefSource(RouteAddress::Inet6(address)) => {
                path.source = Some(IpAddr::V6(*address))
            }
            RouteAttribute::Metrics(metrics) => {
                path.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(path)
}

/// The route to everything of an address's family.
pub(crate) fn default_route(family_of: IpAddr) -> IpNet {
    match family_of {
        IpAddr::V4(_) => IpNet::new_assert(Ipv4Addr::UNSPECIFIED.into(), 0),
        IpAddr::V6(_) => IpNet::new_assert(Ipv6Addr::UNSPECIFIED.into(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::netns;
    use std::os::fd::AsFd;

    #[test]
    fn veth_pair_carries_addresses_and_routes_between_two_namespaces() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making namespaces needs root");
            return;
        }
        let (left, right) = (
            format!("tgx-lab-l-{}", std::process::id()),
            format!("tgx-lab-r-{}", std::process::id()),
        );
        netns::create(&left).unwrap();
        netns::create(&right).unwrap();
        let outcome = std::panic::catch_unwind(|| {
            let (left, right) = (netns::open(&left).unwrap(), netns::open(&right).unwrap());
            let mut netlink = Netlink::open_within(left.as_fd()).unwrap();
            let mut other = Netlink::open_within(right.as_fd()).unwrap();
            netlink.add_veth("eth0", "tmp", right.as_fd()).unwrap();
            assert_eq!(
                netlink
                    .add_veth("eth0", "tmp2", right.as_fd())
                    .unwrap_err()
                    .kind(),
                io::ErrorKind::AlreadyExists
            );
            let index = netlink.link_index("eth0").unwrap();
            netlink.set_mtu(index, 1400).unwrap();
            netlink.set_addr_gen_mode_none(index).unwrap();
            netlink.set_gso_max_size(index, 59300).unwrap();
            netlink.set_up(index).unwrap();
            let peer = other.link_index("tmp").unwrap();
            other.set_up(peer).unwrap();
            assert_eq!(
                netlink.link("eth0").unwrap(),
                Link {
                    index,
                    name: "eth0".into(),
                    mtu: 1400,
                    up: true
                }
            );
            netlink
                .add_address(index, "192.0.2.1".parse().unwrap(), 24)
                .unwrap();
            netlink
                .add_address(index, "2001:db8::1".parse().unwrap(), 64)
                .unwrap();
            let addresses = netlink.addresses(index).unwrap();
            assert!(
                addresses.contains(&"192.0.2.1/24".parse().unwrap()),
                "{addresses:?}"
            );
            assert!(
                addresses.contains(&"2001:db8::1/64".parse().unwrap()),
                "{addresses:?}"
            );
            assert_eq!(addresses.len(), 2, "no link-local address: {addresses:?}");
            let gateway = "192.0.2.9".parse().unwrap();
            netlink
                .add_route(default_route(gateway), index, Some(gateway), None)
                .unwrap();
            netlink
                .add_route(
                    "198.51.100.0/24".parse().unwrap(),
                    index,
                    None,
                    Some("192.0.2.1".parse().unwrap()),
                )
                .unwrap();
            let path = netlink.path_to("198.51.100.7".parse().unwrap()).unwrap();
            assert_eq!(
                path,
                Path {
                    index,
                    source: Some("192.0.2.1".parse().unwrap()),
                    mtu: None
                }
            );
            assert_eq!(
                netlink.link("nothing").unwrap_err().kind(),
                io::ErrorKind::NotFound
            );
            other.add_bridge("br0").unwrap();
            let bridge = other.link_index("br0").unwrap();
            other.set_master(peer, bridge).unwrap();
            netlink.move_link(index, right.as_fd(), "moved", 1390).unwrap();
            assert_eq!(other.link("moved").unwrap().mtu, 1390);
            let moved = other.link_index("moved").unwrap();
            other.delete_link(moved).unwrap();
            assert!(other.link("tmp").is_err(), "the pair dies together");
        });
        netns::delete(&left).unwrap();
        netns::delete(&right).unwrap();
        outcome.unwrap();
    }
}
