//! Numbers that are given once and kept: the indices of instances and the ids of peers.

use super::{ApplicationKey, NetworkKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tidegate_stack::plan::{InstanceIndex, NetworkKind, PeerId, PublicKey};

/// The indices of instances in this host's blocks, by network and name: in an application's own network that of the
/// instance, in a shared one `tenant/application/instance`. A name keeps its index for as long as its application is
/// there, attached or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Allocations(BTreeMap<String, BTreeMap<String, InstanceIndex>>);

/// All indices of a block belong to other names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host's block of {network} is full: {names} instance names have had an address here, and each keeps its own; \
     `tidegate delete` of an application frees those of its instances"
)]
pub(crate) struct NoRoom {
    network: NetworkKey,
    names: usize,
}

/// What an instance is called in a network.
pub(crate) fn name_in(network: &NetworkKey, application: &ApplicationKey, instance: &str) -> String {
    match network.kind {
        NetworkKind::Application => instance.to_owned(),
        NetworkKind::Shared => format!("{application}/{instance}"),
    }
}

/// What a network is called here. Names have no spaces in them.
fn block(network: &NetworkKey) -> String {
    let NetworkKey { kind, tenant, name } = network;
    match kind {
        NetworkKind::Application => format!("{tenant}/{name}"),
        NetworkKind::Shared => format!("shared {tenant}/{name}"),
    }
}

impl Allocations {
    /// The index of an instance: its own, or the lowest one that no other name has had, up to `last`.
    pub(crate) fn allocate(
        &mut self,
        network: &NetworkKey,
        name: &str,
        last: u64,
    ) -> Result<InstanceIndex, NoRoom> {
        let names = self.0.entry(block(network)).or_default();
        if let Some(index) = names.get(name) {
            return Ok(*index);
        }
        let free = (InstanceIndex::MIN.into()..=last)
            .filter_map(|number: u64| InstanceIndex::try_from(number).ok())
            .find(|index| !names.values().any(|used| used == index));
        let Some(index) = free else {
            return Err(NoRoom {
                network: network.clone(),
                names: names.len(),
            });
        };
        names.insert(name.to_owned(), index);
        Ok(index)
    }

    /// Takes back what [`Allocations::allocate`] gave to a name that was never used.
    pub(crate) fn release(&mut self, network: &NetworkKey, name: &str) {
        if let Some(names) = self.0.get_mut(&block(network)) {
            names.remove(name);
        }
    }

    /// Whether a name has an index.
    pub(crate) fn contains(&self, network: &NetworkKey, name: &str) -> bool {
        self.0
            .get(&block(network))
            .is_some_and(|names| names.contains_key(name))
    }

    /// Frees all indices of an application that is deleted.
    pub(crate) fn forget(&mut self, application: &ApplicationKey) {
        self.0.remove(&block(&NetworkKey::own(application)));
        let names_begin = format!("{application}/");
        for names in self.0.values_mut() {
            names.retain(|name, _| !name.starts_with(&names_begin));
        }
        self.0.retain(|_, names| !names.is_empty());
    }
}

/// The ids of peers: foreign ones by public key (another key is another peer), hosts of the site by name. An id is never
/// given twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PeerNumbers {
    next: u32,
    by_key: BTreeMap<String, PeerId>,
    #[serde(default)]
    by_host: BTreeMap<String, PeerId>,
}

impl PeerNumbers {
    /// Gives every key that has none a number, and forgets keys that are gone.
    pub(crate) fn number(&mut self, keys: impl Iterator<Item = PublicKey>) {
        let keys = keys.map(|key| key.to_base64());
        self.by_key = renumber(&self.by_key, keys, &mut self.next);
    }

    /// Gives every host that has none a number, and forgets hosts that are gone.
    pub(crate) fn number_hosts<'a>(&mut self, names: impl Iterator<Item = &'a String>) {
        self.by_host = renumber(&self.by_host, names.cloned(), &mut self.next);
    }

    /// The number of a key.
    pub(crate) fn get(&self, key: &PublicKey) -> Option<PeerId> {
        self.by_key.get(&key.to_base64()).copied()
    }

    /// The number of a host.
    pub(crate) fn get_host(&self, name: &str) -> Option<PeerId> {
        self.by_host.get(name).copied()
    }
}

fn renumber(
    numbers: &BTreeMap<String, PeerId>,
    names: impl Iterator<Item = String>,
    last: &mut u32,
) -> BTreeMap<String, PeerId> {
    let number = |name: String| {
        let id = numbers.get(&name).copied().unwrap_or_else(|| {
            *last += 1;
            PeerId(*last)
        });
        (name, id)
    };
    names.map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ApplicationKey {
        ApplicationKey {
            tenant: "acme".to_owned(),
            name: "shop".to_owned(),
        }
    }

    fn shop() -> NetworkKey {
        NetworkKey::own(&key())
    }

    #[test]
    fn a_name_keeps_its_index_and_no_other_name_gets_it() {
        let mut allocations = Allocations::default();
        let index = |allocations: &mut Allocations, name: &str| {
            allocations.allocate(&shop(), name, 254).unwrap().get()
        };
        assert_eq!(index(&mut allocations, "web-1"), 2);
        assert_eq!(index(&mut allocations, "db-1"), 3);
        assert_eq!(index(&mut allocations, "web-1"), 2);
        allocations.release(&shop(), "web-1");
        assert_eq!(index(&mut allocations, "api-1"), 2);
        allocations.forget(&key());
        assert_eq!(index(&mut allocations, "web-1"), 2);
    }

    #[test]
    fn a_full_block_is_refused_with_what_to_do() {
        let mut allocations = Allocations::default();
        for number in 1..=253 {
            allocations
                .allocate(&shop(), &format!("web-{number}"), 254)
                .unwrap();
        }
        let error = allocations.allocate(&shop(), "web-254", 254).unwrap_err();
        assert!(error.to_string().contains("253 instance names"), "{error}");
        assert!(allocations.allocate(&shop(), "web-17", 254).is_ok());
    }

    #[test]
    fn a_shared_block_is_one_row_of_numbers_for_all_applications_and_a_deleted_one_frees_its_own() {
        let floor = NetworkKey {
            kind: NetworkKind::Shared,
            ..shop()
        };
        let other = ApplicationKey {
            tenant: "acme".to_owned(),
            name: "shop-two".to_owned(),
        };
        let mut allocations = Allocations::default();
        let mut index = |application: &ApplicationKey| {
            let name = name_in(&floor, application, "web-1");
            allocations.allocate(&floor, &name, 62).unwrap().get()
        };
        assert_eq!((index(&key()), index(&other), index(&key())), (2, 3, 2));
        assert!(
            !allocations.contains(&shop(), "web-1"),
            "its name is one thing, the network another"
        );
        allocations.forget(&key());
        assert!(!allocations.contains(&floor, "acme/shop/web-1"));
        assert!(allocations.contains(&floor, "acme/shop-two/web-1"));
        for number in 1..=60 {
            allocations
                .allocate(&floor, &format!("acme/till/web-{number}"), 62)
                .unwrap();
        }
        let error = allocations.allocate(&floor, "acme/shop/web-1", 62).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("block of the shared network acme/shop is full: 61"),
            "{error}"
        );
    }

    #[test]
    fn a_peers_number_stays_with_its_key_and_is_never_given_twice() {
        let keys = [1, 2, 3].map(|byte| PublicKey::from_bytes([byte; 32]));
        let mut peers = PeerNumbers::default();
        peers.number(keys[..2].iter().copied());
        assert_eq!(peers.get(&keys[1]), Some(PeerId(2)));
        peers.number([keys[0], keys[2]].into_iter());
        assert_eq!(peers.get(&keys[0]), Some(PeerId(1)));
        assert_eq!(peers.get(&keys[1]), None);
        assert_eq!(peers.get(&keys[2]), Some(PeerId(3)));
        let hosts = ["edge-2", "edge-3"].map(str::to_owned);
        peers.number_hosts(hosts.iter());
        peers.number_hosts(hosts[1..].iter());
        assert_eq!(peers.get_host("edge-2"), None);
        assert_eq!(peers.get_host("edge-3"), Some(PeerId(5)));
        assert_eq!(
            peers.get(&keys[0]),
            Some(PeerId(1)),
            "hosts and keys have one row of numbers"
        );
    }
}
