//! Which networks an instance is in, and its indices there.
//!
//! A device has the addresses that it was made with. A network that its application joins later needs another device;
//! one that it leaves is out of the plan at once, whatever the device still has.

use super::reconcile::{self, ApplicationKey, Attachment, NetworkKey, name_in};
use super::{Agent, Refusal};
use crate::config::application::ApplicationDocument;
use std::collections::BTreeMap;
use tidegate_stack::plan::{InstanceIndex, Membership};

/// Names that got an index and weren't used yet, and in which network.
pub(super) type Fresh = Vec<(NetworkKey, String)>;

/// The indices that an instance was given.
pub(super) struct Given {
    /// In its application's own network.
    pub(super) own: InstanceIndex,
    /// In shared ones, by `tenant/name`.
    pub(super) shared: BTreeMap<String, InstanceIndex>,
}

impl Agent {
    /// Gives an instance an index in each network of its application. When one of them has no room, none is given.
    pub(super) fn allocate(
        &mut self,
        key: &ApplicationKey,
        document: &ApplicationDocument,
        instance: &str,
    ) -> Result<(Given, Fresh), Refusal> {
        let own = (
            NetworkKey::own(key),
            reconcile::network_numbers(&self.host, document),
        );
        let shared = document.shared.iter().map(|network| {
            let numbers = reconcile::shared_numbers(&self.host, network);
            (NetworkKey::shared(&network.name), numbers)
        });
        let networks: Vec<_> = std::iter::once(own).chain(shared).collect();
        let mut indices = Vec::new();
        let mut fresh = Fresh::new();
        let allocations = &mut self.intent.record.allocations;
        for (network, numbers) in networks {
            let name = name_in(&network, key, instance);
            let is_fresh = !allocations.contains(&network, &name);
            let last = u64::from(numbers.instances_per_block()) + 1;
            match allocations.allocate(&network, &name, last) {
                Ok(index) => indices.push((format!("{}/{}", network.tenant, network.name), index)),
                Err(full) => {
                    self.release(&fresh);
                    return Err(Refusal::because(full));
                }
            }
            if is_fresh {
                fresh.push((network, name));
            }
        }
        let mut indices = indices.into_iter();
        let Some((_, own)) = indices.next() else {
            return Err(Refusal::because(format!("{key} has no network")));
        };
        let shared = indices.collect();
        Ok((Given { own, shared }, fresh))
    }

    /// Takes back what was given to names that were never used.
    pub(super) fn release(&mut self, names: &Fresh) {
        for (network, name) in names {
            self.intent.record.allocations.release(network, name);
        }
    }

    /// Where an instance is a member now: in the networks that its device was made for, without those that its
    /// application has left.
    pub(super) fn memberships(&self, attachment: &Attachment) -> Vec<Membership> {
        let document = self.intent.applications.get(&attachment.application);
        document
            .and_then(|document| reconcile::memberships(&self.host, document, &attachment.indices()).ok())
            .unwrap_or_default()
    }

    /// Whether an instance's device is no longer what its application and the underlay say.
    pub(super) fn re_attach_needed(&self, attachment: &Attachment) -> bool {
        let document = self.intent.applications.get(&attachment.application);
        let joined = document.is_some_and(|document| {
            let mut shared = document.shared.iter();
            shared.any(|network| !attachment.shared.contains_key(&network.name.to_string()))
        });
        let in_order = |mut memberships: Vec<Membership>| {
            memberships.sort_by_key(|membership| membership.vni);
            memberships
        };
        joined
            || in_order(self.memberships(attachment)) != in_order(attachment.memberships.clone())
            || attachment.mtu != reconcile::instance_mtu(&self.host, self.underlay.mtu)
    }
}
