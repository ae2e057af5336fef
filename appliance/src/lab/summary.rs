//! What `lab up` prints: hosts, instances, and what their wires are made of.

use super::blueprint::Blueprint;
use super::build::Lab;
use super::state::HostFiles;
use crate::cli::output::table;
use serde::Serialize;
use std::net::IpAddr;
use std::path::PathBuf;

/// A lab that is up.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Summary {
    lab: String,
    segments: Vec<SegmentSummary>,
    hosts: Vec<HostSummary>,
    instances: Vec<InstanceSummary>,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct SegmentSummary {
    name: String,
    made_of: &'static str,
    members: usize,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct HostSummary {
    name: String,
    namespace: String,
    ordinal: u8,
    addresses: Vec<IpAddr>,
    run_dir: PathBuf,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct InstanceSummary {
    name: String,
    tenant: String,
    namespace: String,
    host: String,
    addresses: Vec<IpAddr>,
}

impl Summary {
    /// Of a lab that is up.
    pub(crate) fn of(lab: &Lab) -> Self {
        let Blueprint {
            lab: name,
            segments,
            hosts,
            ..
        } = &lab.blueprint;
        Self {
            lab: name.clone(),
            segments: segments
                .iter()
                .map(|segment| SegmentSummary {
                    name: segment.name.clone(),
                    made_of: if segment.bridge.is_some() {
                        "bridge"
                    } else {
                        "veth pair"
                    },
                    members: segment.ends.len(),
                })
                .collect(),
            hosts: hosts
                .iter()
                .map(|host| HostSummary {
                    name: host.name.clone(),
                    namespace: host.namespace.clone(),
                    ordinal: host.ordinal.get(),
                    addresses: host
                        .addresses
                        .iter()
                        .flat_map(|(_, addresses)| addresses)
                        .copied()
                        .collect(),
                    run_dir: HostFiles::of(name, &host.name).run(),
                })
                .collect(),
            instances: lab
                .instances
                .iter()
                .map(|attached| InstanceSummary {
                    name: attached.instance.title(),
                    tenant: attached.instance.tenant.clone(),
                    namespace: attached.instance.namespace.clone(),
                    host: attached.instance.host.clone(),
                    addresses: attached.addresses.clone(),
                })
                .collect(),
        }
    }

    /// For people.
    pub(crate) fn to_text(&self) -> String {
        let join = |addresses: &[IpAddr]| {
            addresses
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
                .join("  ")
        };
        let hosts = self
            .hosts
            .iter()
            .map(|host| [host.name.clone(), host.namespace.clone(), join(&host.addresses)]);
        let instances = self.instances.iter().map(|instance| {
            [
                instance.name.clone(),
                instance.host.clone(),
                instance.namespace.clone(),
                join(&instance.addresses),
            ]
        });
        let segments = self.segments.iter().map(|segment| {
            format!(
                "segment {} is a {} with {} members",
                segment.name, segment.made_of, segment.members
            )
        });
        let segments = segments.collect::<Vec<_>>().join("\n");
        format!(
            "{}\n{}\n{segments}\nlab {} is up: `tidegate lab exec {} -- sh` goes inside, `tidegate lab down {}` \
             removes it",
            table(["HOST", "NAMESPACE", "UNDERLAY"], hosts),
            table(["INSTANCE", "HOST", "NAMESPACE", "ADDRESSES"], instances),
            self.lab,
            self.instances
                .first()
                .map_or("NAME", |instance| instance.namespace.as_str()),
            self.lab,
        )
    }
}
