//! The lanes' sockets: which ports a start of the datapath gets, and who holds them meanwhile.
//!
//! A start of the datapath is a *generation* g, counted by the agent: the lane of its shard i listens on
//! `wireguard-port + 1 + 64·(g mod 2) + i`, so that two generations live side by side while peers move over. The
//! foreign lane on `wireguard-port` itself belongs to no generation: the agent holds its socket, and gives it to the
//! datapath that reads the ports.

use super::Agent;
use super::datapath::{DatapathClient, Greeting, SeamError};
use super::reconcile::{Family, fragments_outside};
use crate::config::host::Switch;
use crate::seam::{LaneFeatures, LaneSockets};
use crate::sys::lane_socket;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use tidegate_stack::plan::PublicKey;

/// Ports of one parity of generations, and so most lanes of one.
const LANES_PER_GENERATION: u16 = 64;

/// The lanes of one start of the datapath.
pub(super) struct Lanes {
    /// The start that they are of.
    pub(super) boot: u64,
    /// Its number.
    pub(super) generation: u64,
    /// Their UDP ports, in the order of the shards.
    pub(super) ports: Vec<u16>,
    /// Their keys, in the same order.
    pub(super) keys: Vec<PublicKey>,
    sockets: Vec<OwnedFd>,
}

/// The lane whose port and key are fixed.
pub(super) struct ForeignLane {
    /// Where it listens.
    pub(super) listen: SocketAddr,
    socket: OwnedFd,
}

/// Why lanes are missing.
#[derive(Default)]
pub(super) struct LaneProblems {
    own: Option<String>,
    foreign: Option<String>,
}

impl LaneProblems {
    /// One line each.
    pub(super) fn iter(&self) -> impl Iterator<Item = &String> {
        self.own.iter().chain(&self.foreign)
    }
}

impl Lanes {
    /// Gives the sockets to a datapath; the foreign lane's goes along where it is meant to be read.
    pub(super) async fn give(
        &self,
        datapath: &mut DatapathClient,
        foreign: Option<&ForeignLane>,
        features: LaneFeatures,
    ) -> Result<(), SeamError> {
        let named = LaneSockets {
            generation: self.generation,
            ports: self.ports.clone(),
            foreign: foreign.map(|lane| lane.listen),
        };
        let sockets: Vec<_> = self
            .sockets
            .iter()
            .chain(foreign.map(|lane| &lane.socket))
            .map(|socket| socket.as_fd())
            .collect();
        datapath.set_lanes(named, features, &sockets).await
    }
}

impl Agent {
    /// Makes the agent and a datapath that it just met agree on the lanes' sockets.
    pub(super) async fn agree_on_lanes(&mut self, greeting: &Greeting) -> Result<(), SeamError> {
        if self
            .lanes
            .as_ref()
            .is_some_and(|lanes| lanes.boot != greeting.boot)
        {
            // Their process is gone, and their keys with it.
            self.lanes = None;
        }
        let base = self.host.cluster.wireguard_port;
        let held = greeting.lanes.as_ref().filter(|held| are_of(held, base));
        if let (Some(held), None) = (held, &self.lanes) {
            let mut sockets = self.datapath.adopt(None).await?;
            if let Some(listen) = held.foreign {
                let socket = sockets.pop().ok_or(SeamError::Unexpected)?;
                self.foreign = Some(ForeignLane { listen, socket });
            }
            tracing::info!(generation = held.generation, "the datapath's lanes are adopted");
            self.intent.record.note_generation(held.generation);
            self.lanes = Some(Lanes {
                boot: greeting.boot,
                generation: held.generation,
                ports: held.ports.clone(),
                keys: greeting.lane_keys.clone(),
                sockets,
            });
        }
        self.bind_missing_lanes(greeting);
        let given = held.is_some_and(|held| held.foreign.is_some() == self.foreign.is_some());
        if !given {
            self.give_lanes().await?;
        }
        self.set_fragmentation();
        Ok(())
    }

    /// Tries again to bind lanes whose ports were in use.
    pub(super) async fn look_for_lanes(&mut self) {
        let Some(greeting) = self.greeting.clone().filter(|_| self.datapath.is_connected()) else {
            return;
        };
        if self.lanes.is_some() && self.foreign.is_some() {
            return;
        }
        let bound = |agent: &Self| (agent.lanes.is_some(), agent.foreign.is_some());
        let before = bound(self);
        self.bind_missing_lanes(&greeting);
        if bound(self) == before {
            return;
        }
        match self.give_lanes().await {
            Ok(()) => self.publish(),
            Err(error) => self.tell_problem(error.to_string()),
        }
    }

    /// What the lanes' sockets may ask of the kernel.
    pub(super) fn lane_features(&self) -> LaneFeatures {
        LaneFeatures {
            gso: self.host.datapath.features.gso != Switch::Off,
            gro: self.host.datapath.features.gro != Switch::Off,
        }
    }

    /// Binds the lanes of a datapath's start, as the next generation. `beside` is the generation that lives meanwhile.
    pub(super) fn bind_lanes(&mut self, greeting: &Greeting, beside: Option<u64>) -> Option<Lanes> {
        let generation = next_generation(self.intent.record.last_generation, beside);
        let base = self.host.cluster.wireguard_port;
        let ports: Vec<u16> = lane_ports(base, generation)
            .take(usize::try_from(greeting.shards).unwrap_or(usize::MAX))
            .collect();
        let dont_fragment = !self.fragments_outside();
        let sockets: io::Result<Vec<_>> = ports
            .iter()
            .map(|port| lane_socket::bind(everywhere(*port), dont_fragment))
            .collect();
        match sockets {
            Ok(sockets) => {
                self.lane_problems.own = None;
                self.intent.record.note_generation(generation);
                // So that no later start counts the same number, whatever becomes of this agent.
                if let Err(error) = self.save() {
                    self.tell_problem(format!("{error:#}"));
                }
                Some(Lanes {
                    boot: greeting.boot,
                    generation,
                    ports,
                    keys: greeting.lane_keys.clone(),
                    sockets,
                })
            }
            Err(error) => {
                let last = base + 2 * LANES_PER_GENERATION;
                let problem = format!(
                    "{error}: nothing passes to the other hosts of the site; free UDP ports {} to {last}, or set \
                     `cluster.wireguard-port` in the host document",
                    base + 1
                );
                tell_once(&mut self.lane_problems.own, problem);
                None
            }
        }
    }

    /// Lets the lanes' datagrams be fragmented where the underlay leaves less than 1280 bytes inside, and only there.
    pub(super) fn set_fragmentation(&self) {
        let dont_fragment = !self.fragments_outside();
        let own = self.lanes.iter().flat_map(|lanes| &lanes.sockets);
        for socket in own.chain(self.foreign.iter().map(|lane| &lane.socket)) {
            if let Err(error) = lane_socket::set_dont_fragment(socket.as_fd(), dont_fragment) {
                tracing::warn!(%error, "a lane's fragmentation can't be set");
            }
        }
    }

    fn bind_missing_lanes(&mut self, greeting: &Greeting) {
        if self.lanes.is_none() {
            self.lanes = self.bind_lanes(greeting, None);
        }
        if self.foreign.is_none() {
            let listen = everywhere(self.host.cluster.wireguard_port);
            match lane_socket::bind(listen, !self.fragments_outside()) {
                Ok(socket) => {
                    self.lane_problems.foreign = None;
                    self.foreign = Some(ForeignLane { listen, socket });
                }
                Err(error) => {
                    let problem = format!(
                        "{error}: nothing passes to foreign peers; free the port, or set `cluster.wireguard-port` in \
                         the host document"
                    );
                    tell_once(&mut self.lane_problems.foreign, problem);
                }
            }
        }
    }

    /// Gives the datapath the lanes that there are.
    pub(super) async fn give_lanes(&mut self) -> Result<(), SeamError> {
        let features = self.lane_features();
        match &self.lanes {
            Some(lanes) => {
                lanes
                    .give(&mut self.datapath, self.foreign.as_ref(), features)
                    .await
            }
            None => Ok(()),
        }
    }

    fn fragments_outside(&self) -> bool {
        let endpoints = self.host.cluster.peers.iter().filter_map(|peer| peer.endpoint);
        let hosts = self.host.cluster.hosts().map(|host| host.address);
        endpoints
            .map(|endpoint| endpoint.ip())
            .chain(hosts)
            .map(Family::of)
            .any(|family| fragments_outside(self.underlay.mtu, family))
    }
}

/// The ports of a generation's lanes, in the order of the shards.
fn lane_ports(base: u16, generation: u64) -> impl Iterator<Item = u16> {
    let first = base + 1 + LANES_PER_GENERATION * u16::from(generation % 2 == 1);
    first..first + LANES_PER_GENERATION
}

/// The generation after `last`, on other ports than the one that lives beside it.
fn next_generation(last: u64, beside: Option<u64>) -> u64 {
    let next = last + 1;
    if beside.is_some_and(|beside| beside % 2 == next % 2) {
        next + 1
    } else {
        next
    }
}

/// Whether lanes that a datapath holds are where the host document wants them.
fn are_of(held: &LaneSockets, base: u16) -> bool {
    held.ports
        .iter()
        .copied()
        .eq(lane_ports(base, held.generation).take(held.ports.len()))
        && held.foreign.is_none_or(|listen| listen.port() == base)
}

fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port)
}

fn tell_once(told: &mut Option<String>, problem: String) {
    if told.as_ref() != Some(&problem) {
        tracing::error!("{problem}");
        *told = Some(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_that_live_side_by_side_have_other_ports() {
        let ports = |generation| lane_ports(51820, generation).collect::<Vec<_>>();
        assert_eq!(ports(2).first(), Some(&51821));
        assert_eq!(ports(3).first(), Some(&51885));
        assert_eq!(
            ports(3).last(),
            Some(&51948),
            "the 128 ports behind the foreign lane's"
        );
        assert!(ports(2).iter().all(|port| !ports(3).contains(port)));
    }

    #[test]
    fn a_number_is_never_given_twice_nor_the_ports_of_the_one_beside() {
        assert_eq!(next_generation(0, None), 1);
        assert_eq!(next_generation(4, Some(4)), 5);
        // 5 was given to a successor that died.
        assert_eq!(next_generation(5, Some(4)), 7);
    }

    #[test]
    fn lanes_on_other_ports_than_the_document_says_are_not_kept() {
        let held = |base: u16, foreign: Option<u16>| LaneSockets {
            generation: 3,
            ports: lane_ports(base, 3).take(2).collect(),
            foreign: foreign.map(everywhere),
        };
        assert!(are_of(&held(51820, Some(51820)), 51820));
        assert!(are_of(&held(51820, None), 51820));
        assert!(!are_of(&held(51820, Some(51820)), 51900));
        assert!(!are_of(&held(51900, None), 51820));
    }
}
