//! The host document: who this host is, how it reaches the others, how its datapath runs.

use super::Problems;
use super::decode::{Keys, Unique, Value};
use super::report::Report;
use super::values::{
    chosen, device, domain, endpoint, ipv4_prefix, label, name_server, number16, ordinal, path, public_key,
    station_address, switch, vni,
};
use ipnet::Ipv4Net;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU8;
use std::path::{Path, PathBuf};
use tidegate_stack::plan::{HostOrdinal, PublicKey, Vni};

pub(crate) use super::values::{DNS_PORT, DomainName, Switch};

/// The tenant of what names none.
pub(crate) const DEFAULT_TENANT: &str = "default";
/// The foreign lane's port where the document sets none.
pub(crate) const DEFAULT_WIREGUARD_PORT: u16 = 51820;
/// The control port where the document sets none.
pub(crate) const DEFAULT_CONTROL_PORT: u16 = 4668;
/// Lanes listen on the 128 ports behind the foreign lane's.
const MAX_WIREGUARD_PORT: u16 = u16::MAX - 128;
/// How many shards a datapath can run: each has a port of its own, and two generations of them share the 128.
pub(crate) const MAX_SHARDS: NonZeroU8 = NonZeroU8::MIN.saturating_add(63);
/// As many hosts as there are ordinals.
const MAX_HOSTS: usize = 254;
/// What a host's 254 blocks of /24 need.
const APPLICATION_PREFIX_LENGTH: u8 = 16;
/// What 128 shared networks of /18 need, with blocks of /26.
const SHARED_PREFIX_LENGTH: u8 = 11;
/// Where application networks are unless the document says otherwise.
const DEFAULT_APPLICATION_PREFIX: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 19, 0, 0), 16);
/// Where shared networks are unless the document says otherwise.
const DEFAULT_SHARED_PREFIX: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 96, 0, 0), 11);
/// Name servers that can be asked.
pub(crate) const MAX_UPSTREAMS: usize = 8;
/// Domains whose names may have private addresses.
const MAX_PRIVATE_DOMAINS: usize = 64;
/// Where the machine's own name servers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Prefixes that an instance's stack or a router treats in a way of its own: unspecified (RFC 1122), loopback,
/// link-local (RFC 3927; VTEPs are there), multicast and reserved.
const UNUSABLE: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// A host document.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostDocument {
    /// The host's name in its site.
    pub(crate) host_id: String,
    /// The site's name.
    pub(crate) site: String,
    /// The host's number in its site.
    pub(crate) ordinal: HostOrdinal,
    /// The other hosts, and the way to them.
    pub(crate) cluster: ClusterDocument,
    /// How packets are carried.
    pub(crate) datapath: DatapathDocument,
    /// The site's address plan.
    pub(crate) network: NetworkDocument,
    /// Who is asked for names of the world outside.
    pub(crate) dns: DnsDocument,
}

/// The underlay and its peers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClusterDocument {
    /// The device towards the other hosts.
    pub(crate) interface: Option<String>,
    /// UDP port of the foreign lane.
    pub(crate) wireguard_port: u16,
    /// UDP port of the link between the hosts of the site; the same on all of them.
    pub(crate) control_port: u16,
    /// What that link takes; `None`: this host has none.
    pub(crate) link: Option<LinkDocument>,
    /// File of the foreign lane's private key; `None`: `foreign.key` in the state folder.
    pub(crate) foreign_private_key_file: Option<PathBuf>,
    /// Peers with fixed keys.
    pub(crate) peers: Vec<PeerDocument>,
}

impl ClusterDocument {
    /// The other hosts that the document names.
    pub(crate) fn hosts(&self) -> impl Iterator<Item = &LinkHostDocument> {
        self.link.iter().flat_map(|link| &link.hosts)
    }
}

impl Default for ClusterDocument {
    fn default() -> Self {
        Self {
            interface: None,
            wireguard_port: DEFAULT_WIREGUARD_PORT,
            control_port: DEFAULT_CONTROL_PORT,
            link: None,
            foreign_private_key_file: None,
            peers: Vec::new(),
        }
    }
}

/// The link between the hosts of a site: who may take part is proven by certificates.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LinkDocument {
    /// File of the site's authority, as PEM.
    pub(crate) ca_file: PathBuf,
    /// File of this host's certificate, as PEM.
    pub(crate) certificate_file: PathBuf,
    /// File of its private key, as PEM.
    pub(crate) private_key_file: PathBuf,
    /// The hosts that this one connects to.
    pub(crate) hosts: Vec<LinkHostDocument>,
}

/// Another host, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkHostDocument {
    /// Its name.
    pub(crate) host_id: String,
    /// Its address.
    pub(crate) address: IpAddr,
}

/// A peer with a fixed key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PeerDocument {
    /// Its name.
    pub(crate) name: String,
    /// Its number in the site: which blocks are behind it.
    pub(crate) ordinal: HostOrdinal,
    /// Where it listens; `None` when only it can begin.
    pub(crate) endpoint: Option<SocketAddr>,
    /// Its WireGuard key.
    pub(crate) public_key: PublicKey,
    /// File of a key that both ends share.
    pub(crate) preshared_key_file: Option<PathBuf>,
    /// Seconds between keepalives.
    pub(crate) keepalive: Option<u16>,
    /// The networks it is a member of.
    pub(crate) networks: PeerNetworksDocument,
}

/// The networks that a peer is a member of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PeerNetworksDocument {
    /// All of this host's.
    All,
    /// These.
    Only(Vec<PeerNetworkDocument>),
}

/// An application network, as a peer's entry names it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PeerNetworkDocument {
    /// The application's tenant.
    pub(crate) tenant: String,
    /// The application.
    pub(crate) application: String,
    /// The network's number, where it isn't the one that follows from the names.
    pub(crate) vni: Option<Vni>,
}

/// How packets are carried.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DatapathDocument {
    /// How many threads; `None`: as many as suit the machine.
    pub(crate) shards: Option<NonZeroU8>,
    /// Whether the underlay device's settings are changed while the datapath runs.
    pub(crate) tune_nic: Switch,
    /// What of the kernel's is used.
    pub(crate) features: FeaturesDocument,
}

/// Features of the kernel that make packets cheaper.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct FeaturesDocument {
    /// Many datagrams in one send.
    pub(crate) gso: Switch,
    /// Many datagrams in one receive.
    pub(crate) gro: Switch,
    /// Super-packets from and to instances.
    pub(crate) vnet_header: Switch,
    /// A queue per shard.
    pub(crate) multi_queue: Switch,
}

/// What is done about a network's prefix that a LAN has, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OnOverlap {
    /// It is told.
    #[default]
    Report,
    /// The prefix is moved.
    Renumber,
}

/// The site's address plan; the same on all of its hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetworkDocument {
    /// Every application network's prefix, a /16.
    pub(crate) application_prefix: Ipv4Net,
    /// What shared networks are cut from, a /11.
    pub(crate) shared_prefix: Ipv4Net,
    /// What is done when a LAN has addresses of theirs.
    pub(crate) on_overlap: OnOverlap,
}

impl Default for NetworkDocument {
    fn default() -> Self {
        Self {
            application_prefix: DEFAULT_APPLICATION_PREFIX,
            shared_prefix: DEFAULT_SHARED_PREFIX,
            on_overlap: OnOverlap::default(),
        }
    }
}

/// Who is asked for names of the world outside, and what may be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DnsDocument {
    /// Whom to ask.
    pub(crate) upstream: UpstreamDocument,
    /// Domains of which names may have private addresses.
    pub(crate) private_domains: Vec<DomainName>,
}

impl Default for DnsDocument {
    fn default() -> Self {
        Self {
            upstream: UpstreamDocument::ResolvConf(PathBuf::from(RESOLV_CONF)),
            private_domains: Vec::new(),
        }
    }
}

/// Whom to ask for names of the world outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum UpstreamDocument {
    /// These; none of them: nobody is asked, and such names are refused.
    Servers(Vec<SocketAddr>),
    /// Whom this file names.
    ResolvConf(PathBuf),
}

/// Reads a host document.
///
/// # Errors
/// All problems of the file.
pub(crate) fn read(file: &Path) -> Result<HostDocument, Problems> {
    let report = Report::new(file);
    let text = report.read();
    decode(report, text)
}

/// Decodes the text of a host document; `file` names it, and relative paths start from its folder.
///
/// # Errors
/// All problems of the text.
#[cfg(test)]
pub(crate) fn parse(file: &Path, text: &str) -> Result<HostDocument, Problems> {
    decode(Report::new(file), Some(text.to_owned()))
}

fn decode(report: Report, text: Option<String>) -> Result<HostDocument, Problems> {
    let root = text.and_then(|text| report.only_document(&text));
    let decoded = root.and_then(|root| host(&Value::root(&root, &report)));
    report.finish(decoded)
}

/// Decodes a host document, or a part of one.
pub(super) fn host(value: &Value<'_>) -> Option<HostDocument> {
    value.group(|keys| {
        let host_id = keys.required("host-id", label);
        let site = keys.required("site", label);
        let mut ordinals = Unique::default();
        let ordinal = keys.required("ordinal", |value| ordinals.claim(value, ordinal(value)?));
        let cluster = keys
            .optional("cluster", |value| cluster(value, &mut ordinals))
            .unwrap_or_default();
        let datapath = keys.optional("datapath", datapath).unwrap_or_default();
        let network = keys.optional("network", network).unwrap_or_default();
        let dns = keys.optional("dns", dns).unwrap_or_default();
        Some(HostDocument {
            host_id: host_id?,
            site: site?,
            ordinal: ordinal?,
            cluster,
            datapath,
            network,
            dns,
        })
    })
}

fn cluster(value: &Value<'_>, ordinals: &mut Unique<HostOrdinal>) -> Option<ClusterDocument> {
    value.group(|keys| {
        let interface = keys.optional("interface", device);
        let wireguard_port = keys.optional("wireguard-port", number16(1..=MAX_WIREGUARD_PORT));
        let control_port = keys.optional("control-port", number16(1..=u16::MAX));
        let link = link(keys);
        let foreign_private_key_file = keys.optional("foreign-private-key-file", path);
        let peers = keys
            .optional("peers", |value| peers(value, ordinals))
            .unwrap_or_default();
        Some(ClusterDocument {
            interface,
            wireguard_port: wireguard_port.unwrap_or(DEFAULT_WIREGUARD_PORT),
            control_port: control_port.unwrap_or(DEFAULT_CONTROL_PORT),
            link,
            foreign_private_key_file,
            peers,
        })
    })
}

/// The three files belong together, and other hosts are of no use without them.
fn link(keys: &mut Keys<'_, '_>) -> Option<LinkDocument> {
    const FILES: [&str; 3] = ["ca-file", "certificate-file", "private-key-file"];
    let wanted = FILES.iter().chain(&["hosts"]).any(|key| keys.has(key));
    let [ca_file, certificate_file, private_key_file] = FILES.map(|key| {
        if wanted {
            keys.required(key, path)
        } else {
            keys.optional(key, path)
        }
    });
    let hosts = keys.optional("hosts", link_hosts).unwrap_or_default();
    Some(LinkDocument {
        ca_file: ca_file?,
        certificate_file: certificate_file?,
        private_key_file: private_key_file?,
        hosts,
    })
}

fn link_hosts(value: &Value<'_>) -> Option<Vec<LinkHostDocument>> {
    let mut names = Unique::default();
    let host = |value: &Value<'_>| {
        value.group(|keys| {
            let host_id = keys.required("host-id", |value| names.claim(value, label(value)?));
            let address = keys.required("address", station_address);
            Some(LinkHostDocument {
                host_id: host_id?,
                address: address?,
            })
        })
    };
    let hosts = value.list(host)?;
    if hosts.len() > MAX_HOSTS {
        return value.refuse(format!(
            "has {} hosts, and a site has at most {MAX_HOSTS}",
            hosts.len()
        ));
    }
    Some(hosts)
}

/// Names and keys tell peers apart, and a block of addresses has one place: none of them may be there twice.
fn peers(value: &Value<'_>, ordinals: &mut Unique<HostOrdinal>) -> Option<Vec<PeerDocument>> {
    let mut names = Unique::default();
    let mut public_keys = Unique::default();
    let peer = |value: &Value<'_>| {
        value.group(|keys| {
            let name = keys.required("name", |value| names.claim(value, label(value)?));
            let ordinal = keys.required("ordinal", |value| ordinals.claim(value, ordinal(value)?));
            let endpoint = keys.optional("endpoint", endpoint);
            let public_key = keys.required("public-key", |value| {
                let key = public_key(value)?;
                public_keys.claim(value, *key.as_bytes())?;
                Some(key)
            });
            let preshared_key_file = keys.optional("preshared-key-file", path);
            let keepalive = keys.optional("keepalive", number16(1..=u16::MAX));
            let networks = keys.required("networks", peer_networks);
            Some(PeerDocument {
                name: name?,
                ordinal: ordinal?,
                endpoint,
                public_key: public_key?,
                preshared_key_file,
                keepalive,
                networks: networks?,
            })
        })
    };
    value.list(peer)
}

fn peer_networks(value: &Value<'_>) -> Option<PeerNetworksDocument> {
    if value.is_word("all") {
        return Some(PeerNetworksDocument::All);
    }
    if !value.is_list() {
        return value.refuse_with("must be `all` or a list", "such as `[ { application: shop } ]`");
    }
    let mut names = Unique::default();
    let networks = value.list(|item| {
        let network = peer_network(item)?;
        names.claim(item, (network.tenant.clone(), network.application.clone()))?;
        Some(network)
    });
    networks.map(PeerNetworksDocument::Only)
}

fn peer_network(value: &Value<'_>) -> Option<PeerNetworkDocument> {
    value.group(|keys| {
        let application = keys.required("application", label);
        let tenant = keys
            .optional("tenant", label)
            .unwrap_or_else(|| DEFAULT_TENANT.to_owned());
        let vni = keys.optional("vni", vni);
        Some(PeerNetworkDocument {
            tenant,
            application: application?,
            vni,
        })
    })
}

fn datapath(value: &Value<'_>) -> Option<DatapathDocument> {
    value.group(|keys| {
        let shards = keys.optional("shards", shards).flatten();
        let tune_nic = keys.optional("tune-nic", switch).unwrap_or_default();
        let features = keys.optional("features", features).unwrap_or_default();
        Some(DatapathDocument {
            shards,
            tune_nic,
            features,
        })
    })
}

fn shards(value: &Value<'_>) -> Option<Option<NonZeroU8>> {
    match value.word()? {
        "auto" => Some(None),
        text => match text.parse::<NonZeroU8>() {
            Ok(number) if number <= MAX_SHARDS => Some(Some(number)),
            Ok(_) | Err(_) => value.refuse(format!(
                "is `{text}`, and must be auto, or a number up to {MAX_SHARDS}"
            )),
        },
    }
}

fn features(value: &Value<'_>) -> Option<FeaturesDocument> {
    value.group(|keys| {
        Some(FeaturesDocument {
            gso: keys.optional("gso", switch).unwrap_or_default(),
            gro: keys.optional("gro", switch).unwrap_or_default(),
            vnet_header: keys.optional("vnet-header", switch).unwrap_or_default(),
            multi_queue: keys.optional("multi-queue", switch).unwrap_or_default(),
        })
    })
}

const ON_OVERLAP: [(&str, OnOverlap); 2] = [("report", OnOverlap::Report), ("renumber", OnOverlap::Renumber)];

fn network(value: &Value<'_>) -> Option<NetworkDocument> {
    value.group(|keys| {
        let application = keys
            .optional("application-prefix", |value| {
                sized_prefix(value, APPLICATION_PREFIX_LENGTH)
            })
            .unwrap_or(DEFAULT_APPLICATION_PREFIX);
        let shared = keys
            .optional("shared-prefix", |value| sized_prefix(value, SHARED_PREFIX_LENGTH))
            .unwrap_or(DEFAULT_SHARED_PREFIX);
        if overlap(application, shared) {
            return value.refuse_with(
                format!("application-prefix {application} and shared-prefix {shared} overlap"),
                "an instance tells its networks apart by their prefixes: move one of them",
            );
        }
        let on_overlap = keys.optional("on-overlap", |value| chosen(value, &ON_OVERLAP));
        Some(NetworkDocument {
            application_prefix: application,
            shared_prefix: shared,
            on_overlap: on_overlap.unwrap_or_default(),
        })
    })
}

fn dns(value: &Value<'_>) -> Option<DnsDocument> {
    value.group(|keys| {
        let both = keys.has("upstream") && keys.has("resolv-conf");
        let upstream = keys.optional("upstream", upstream);
        let resolv_conf = keys.optional("resolv-conf", |value| match both {
            true => value.refuse_with(
                "is never read, because `upstream` says who is asked",
                "remove one of the two",
            ),
            false => path(value),
        });
        let private_domains = keys.optional("private-domains", private_domains);
        let file = resolv_conf.unwrap_or_else(|| PathBuf::from(RESOLV_CONF));
        Some(DnsDocument {
            upstream: upstream.map_or(UpstreamDocument::ResolvConf(file), UpstreamDocument::Servers),
            private_domains: private_domains.unwrap_or_default(),
        })
    })
}

fn upstream(value: &Value<'_>) -> Option<Vec<SocketAddr>> {
    let mut servers = Unique::default();
    let list = value.list(|value| servers.claim(value, name_server(value)?))?;
    if list.len() > MAX_UPSTREAMS {
        return value.refuse_with(
            format!("has {} name servers, and may have {MAX_UPSTREAMS}", list.len()),
            "two or three that answer quickly are enough",
        );
    }
    Some(list)
}

fn private_domains(value: &Value<'_>) -> Option<Vec<DomainName>> {
    let mut domains = Unique::default();
    let list = value.list(|value| domains.claim(value, domain(value)?))?;
    if list.len() > MAX_PRIVATE_DOMAINS {
        return value.refuse(format!(
            "has {} domains, and may have {MAX_PRIVATE_DOMAINS}",
            list.len()
        ));
    }
    Some(list)
}

fn sized_prefix(value: &Value<'_>, length: u8) -> Option<Ipv4Net> {
    let prefix = ipv4_prefix(value)?;
    if prefix.prefix_len() != length {
        let sized = Ipv4Net::new(prefix.addr(), length).ok()?.trunc();
        let message = format!("is a /{}, and must be a /{length}", prefix.prefix_len());
        return value.refuse_with(message, format!("did you mean {sized}?"));
    }
    match UNUSABLE.iter().find(|unusable| overlap(**unusable, prefix)) {
        Some(unusable) => value.refuse(format!(
            "{prefix} lies in {unusable}, whose addresses instances can't have"
        )),
        None => Some(prefix),
    }
}

/// Whether two prefixes have an address in common.
pub(crate) fn overlap(left: Ipv4Net, right: Ipv4Net) -> bool {
    left.contains(&right) || right.contains(&left)
}
