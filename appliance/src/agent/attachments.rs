//! `attach` and `detach`, the agent's part: numbers and addresses, queues to the datapath, and devices that died.
//!
//! Attaching is two requests on one connection. Preparing reserves a name, an index and a port; committing brings the
//! queues of the device that was made meanwhile. A connection that ends in between gives back what was reserved.

use super::api::{Attached, ConnectionId, Detached, InstanceQuery, Prepared, PreparedNetwork};
use super::memberships::Fresh;
use super::reconcile::{self, ApplicationKey, Attachment, Namespace, instance_name};
use super::{Agent, Refusal, Response};
use crate::config::application::ApplicationDocument;
use crate::config::host::Switch;
use crate::sys::tun;
use rustix::event::{PollFd, PollFlags, Timespec};
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use tidegate_stack::plan::{Membership, PortId};

/// What one connection prepared.
pub(super) struct Reservation {
    attachment: Attachment,
    queues: u32,
    /// The names that got an index by this reservation.
    fresh: Fresh,
}

impl Reservation {
    /// The application that the instance is of.
    pub(super) fn application(&self) -> &ApplicationKey {
        &self.attachment.application
    }

    /// The instance's name.
    pub(super) fn name(&self) -> String {
        self.attachment.name()
    }

    /// As if it had been committed.
    #[cfg(test)]
    pub(super) fn into_attachment(self) -> Attachment {
        self.attachment
    }
}

impl Agent {
    /// Reserves what an instance's device has to be made with.
    pub(super) async fn prepare_attach(
        &mut self,
        connection: ConnectionId,
        query: &InstanceQuery,
    ) -> Result<Response, Refusal> {
        let Some(namespace) = query.namespace else {
            return Err(Refusal::because("attaching needs the instance's namespace"));
        };
        self.forget_reservation(connection);
        // Also finds out whether the devices of the journal live.
        self.wait_for_datapath().await?;
        // The kernel gives the number of a namespace that died to a new one at once: a restarted container must not
        // be told that it is attached already.
        self.look_at_devices().await;
        let key = ApplicationKey {
            tenant: query.tenant.clone(),
            name: query.application.clone(),
        };
        self.check_service(&key, &query.service)?;
        let existing = self.find_attachment(query).cloned();
        if let Some(existing) = &existing {
            if existing.namespace != namespace || existing.interface != query.interface {
                return Err(Refusal::because(format!(
                    "{} of {key} is attached already, as {} in another namespace or under another name: detach it first",
                    existing.name(),
                    existing.interface
                )));
            }
            if !self.re_attach_needed(existing) {
                return Ok(Response::Attached(attached(existing, true)));
            }
            // Its application has other addresses by now: the device is made anew.
            self.take_away(existing.port).await?;
        }
        self.check_interface(namespace, query)?;

        let number = existing
            .as_ref()
            .map(|existing| existing.number)
            .or(query.number)
            .unwrap_or_else(|| self.lowest_number(&key, &query.service));
        let name = instance_name(&query.service, number);
        if let (None, Some(host)) = (existing, self.host_of(&key, &query.service, number)) {
            return Err(Refusal::because(format!(
                "{name} of {key} is attached on host {host}: detach it there, or take another number"
            )));
        }
        if self.reservations.values().any(|reservation| {
            reservation.attachment.application == key && reservation.attachment.name() == name
        }) {
            return Err(Refusal::because(format!(
                "{name} of {key} is being attached by another process right now"
            )));
        }
        let Some(document) = self.intent.applications.get(&key).cloned() else {
            return Err(self.no_such_application(&key));
        };
        let (indices, fresh) = self.allocate(&key, &document, &name)?;
        let mut attachment = Attachment {
            application: key,
            service: query.service.clone(),
            number,
            port: self.intent.record.next_port(),
            index: indices.own,
            shared: indices.shared,
            namespace,
            interface: query.interface.clone(),
            mtu: reconcile::instance_mtu(&self.host, self.underlay.mtu),
            offloads: self.host.datapath.features.vnet_header != Switch::Off,
            memberships: Vec::new(),
        };
        match reconcile::memberships(&self.host, &document, &attachment.indices()) {
            Ok(memberships) => attachment.memberships = memberships,
            Err(index) => {
                self.release(&fresh);
                return Err(Refusal::because(format!(
                    "{name} of {}: this host's block has no index {index}",
                    attachment.application
                )));
            }
        }
        let queues = match self.host.datapath.features.multi_queue {
            Switch::Off => 1,
            Switch::Auto | Switch::On => self.greeting.as_ref().map_or(1, |greeting| greeting.shards),
        };
        let prepared = self.prepared(&attachment, &document, queues);
        self.reservations.insert(
            connection,
            Reservation {
                attachment,
                queues,
                fresh,
            },
        );
        Ok(Response::Prepared(prepared))
    }

    /// Takes the queues of the device that was prepared, and puts the instance in force.
    pub(super) async fn commit_attach(
        &mut self,
        connection: ConnectionId,
        queues: Vec<OwnedFd>,
    ) -> Result<Response, Refusal> {
        let Some(reservation) = self.reservations.get(&connection) else {
            return Err(Refusal::because("nothing was prepared on this connection"));
        };
        if u32::try_from(queues.len()) != Ok(reservation.queues) {
            return Err(Refusal::because(format!(
                "{} queues were prepared, and {} came",
                reservation.queues,
                queues.len()
            )));
        }
        let features: Result<Vec<_>, _> = queues.iter().map(|queue| tun::features(queue.as_fd())).collect();
        let features = features
            .map_err(|error| Refusal::because(format!("what came isn't a queue of a TUN device: {error}")))?;
        let mut attachment = reservation.attachment.clone();
        // What the device is, not what was wished for.
        attachment.offloads = features.iter().all(|features| features.vnet_header);
        self.wait_for_datapath().await?;
        self.datapath
            .add_port(attachment.port, &attachment.interface, &queues)
            .await
            .map_err(Refusal::because)?;
        let mut intent = self.intent.clone();
        intent.record.attachments.push(attachment.clone());
        if let Err(refusal) = self.put_in_force(intent).await {
            // Whatever the reason: the port must not stay where nobody names it.
            if let Err(error) = self.datapath.remove_port(attachment.port).await {
                tracing::warn!(port = %attachment.port, %error, "a port that was refused can't be closed now");
            }
            return Err(refusal);
        }
        self.queues.insert(attachment.port, queues);
        self.reservations.remove(&connection);
        tracing::info!(
            application = %attachment.application, instance = attachment.name(), port = %attachment.port, "attached"
        );
        Ok(Response::Attached(attached(&attachment, false)))
    }

    /// Takes an instance's device away; its name keeps its index.
    pub(super) async fn detach(&mut self, query: &InstanceQuery) -> Result<Response, Refusal> {
        let Some(attachment) = self.find_attachment(query).cloned() else {
            let which = query.number.map_or_else(
                || {
                    format!(
                        "no instance of {}/{} service {} in this namespace",
                        query.tenant, query.application, query.service
                    )
                },
                |number| {
                    format!(
                        "no instance {} of {}/{}",
                        instance_name(&query.service, number),
                        query.tenant,
                        query.application
                    )
                },
            );
            return Err(Refusal::not_found(format!(
                "{which} is attached here: `tidegate show instances` lists those that are"
            )));
        };
        self.wait_for_datapath().await?;
        self.take_away(attachment.port).await?;
        let name = attachment.name();
        tracing::info!(application = %attachment.application, instance = name, "detached");
        Ok(Response::Detached(Detached {
            tenant: attachment.application.tenant,
            application: attachment.application.name,
            instance: name,
        }))
    }

    /// A namespace died and its device with it.
    pub(super) async fn handle_port_gone(&mut self, port: PortId) {
        let Some(attachment) = self
            .intent
            .record
            .attachments
            .iter()
            .find(|attachment| attachment.port == port)
            .cloned()
        else {
            return;
        };
        tracing::info!(
            application = %attachment.application, instance = attachment.name(),
            "the instance's namespace is gone: detached; its name keeps its addresses"
        );
        if self.datapath.is_connected() && self.take_away(port).await.is_ok() {
            return;
        }
        // The next plan is without it.
        self.queues.remove(&port);
        if self.datapath.is_connected()
            && let Err(error) = self.datapath.remove_port(port).await
        {
            tracing::warn!(%port, %error, "a port whose device is gone can't be closed now");
        }
        self.intent
            .record
            .attachments
            .retain(|attachment| attachment.port != port);
        if let Err(error) = self.save() {
            self.tell_problem(format!("{error:#}"));
        }
        self.publish();
    }

    /// Looks for devices that died unnoticed: the datapath's event is only a hint.
    pub(super) async fn look_at_devices(&mut self) {
        let dead: Vec<_> = self
            .queues
            .iter()
            .filter(|(_, queues)| queues.iter().any(is_dead))
            .map(|(port, _)| *port)
            .collect();
        for port in dead {
            self.handle_port_gone(port).await;
        }
    }

    /// Gives back what a connection prepared and didn't commit.
    pub(super) fn forget_reservation(&mut self, connection: ConnectionId) {
        if let Some(reservation) = self.reservations.remove(&connection) {
            self.release(&reservation.fresh);
        }
    }

    /// Removes a port from the plan, then from the datapath, then closes its queues: with the last one the device
    /// goes.
    async fn take_away(&mut self, port: PortId) -> Result<(), Refusal> {
        let mut intent = self.intent.clone();
        intent
            .record
            .attachments
            .retain(|attachment| attachment.port != port);
        self.put_in_force(intent).await?;
        self.queues.remove(&port);
        self.datapath.remove_port(port).await.map_err(Refusal::because)
    }

    fn find_attachment(&self, query: &InstanceQuery) -> Option<&Attachment> {
        self.intent.record.attachments.iter().find(|attachment| {
            attachment.application.tenant == query.tenant
                && attachment.application.name == query.application
                && attachment.service == query.service
                && match query.number {
                    Some(number) => attachment.number == number,
                    None => {
                        query.namespace == Some(attachment.namespace)
                            && attachment.interface == query.interface
                    }
                }
        })
    }

    fn check_service(&self, key: &ApplicationKey, service: &str) -> Result<(), Refusal> {
        let Some(document) = self.intent.applications.get(key) else {
            return Err(self.no_such_application(key));
        };
        if document.services.iter().any(|known| known.name == service) {
            return Ok(());
        }
        let known: Vec<_> = document
            .services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        Err(Refusal::not_found(format!(
            "{key} has no service {service}; it has {}",
            known.join(", ")
        )))
    }

    fn check_interface(&self, namespace: Namespace, query: &InstanceQuery) -> Result<(), Refusal> {
        let taken =
            self.intent.record.attachments.iter().find(|attachment| {
                attachment.namespace == namespace && attachment.interface == query.interface
            });
        let reserved = self
            .reservations
            .values()
            .map(|reservation| &reservation.attachment)
            .find(|attachment| attachment.namespace == namespace && attachment.interface == query.interface);
        if let Some(attachment) = reserved {
            return Err(Refusal::because(format!(
                "{} in this namespace is being attached as {} of {} by another process right now: try again when it \
                 is done",
                attachment.interface,
                attachment.name(),
                attachment.application
            )));
        }
        taken.map_or(Ok(()), |attachment| {
            Err(Refusal::because(format!(
                "{} in this namespace belongs to {} of {}: detach that first, or name another `--interface`",
                attachment.interface,
                attachment.name(),
                attachment.application
            )))
        })
    }

    fn lowest_number(&self, key: &ApplicationKey, service: &str) -> u32 {
        let reserved = self
            .reservations
            .values()
            .map(|reservation| &reservation.attachment);
        let mut used = self.numbers_elsewhere(key, service);
        let attachments = self.intent.record.attachments.iter().chain(reserved);
        used.extend(
            attachments
                .filter(|attachment| attachment.application == *key && attachment.service == service)
                .map(|attachment| attachment.number),
        );
        (1..).find(|number| !used.contains(number)).unwrap_or(1)
    }

    fn prepared(&self, attachment: &Attachment, document: &ApplicationDocument, queues: u32) -> Prepared {
        let features = &self.host.datapath.features;
        let vnet_header = attachment.offloads;
        let shared = document.shared.iter();
        let numbers = std::iter::once(reconcile::network_numbers(&self.host, document))
            .chain(shared.map(|network| reconcile::shared_numbers(&self.host, network)));
        let networks = attachment
            .memberships
            .iter()
            .zip(numbers)
            .map(|(membership, numbers)| PreparedNetwork {
                ipv4: membership.ipv4,
                ipv6: membership.ipv6,
                ipv4_prefix: numbers.ipv4_prefix,
                ipv6_prefix: numbers.ipv6_prefix,
                service_ipv4: numbers.service_ipv4(),
            });
        Prepared {
            instance: attachment.name(),
            // Hosts of a lab share no namespace, but two agents of one machine may: the process tells them apart.
            temporary_name: format!(
                "tg{}x{}",
                std::process::id() % 1_000_000,
                attachment.port.0 % 100_000
            ),
            queues,
            mtu: attachment.mtu.get(),
            vnet_header,
            segmentation: vnet_header,
            multi_queue: features.multi_queue != Switch::Off,
            networks: networks.collect(),
            search: vec![format!("{}.internal", document.name), "internal".to_owned()],
        }
    }
}

fn attached(attachment: &Attachment, already: bool) -> Attached {
    Attached {
        tenant: attachment.application.tenant.clone(),
        application: attachment.application.name.clone(),
        instance: attachment.name(),
        interface: attachment.interface.clone(),
        mtu: attachment.mtu.get(),
        addresses: addresses(&attachment.memberships),
        already,
    }
}

/// All addresses, network by network.
pub(super) fn addresses(memberships: &[Membership]) -> Vec<IpAddr> {
    memberships.iter().flat_map(Membership::addresses).collect()
}

/// A queue whose device is gone says so to poll, without being asked for anything.
fn is_dead(queue: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(queue, PollFlags::empty())];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let answered = rustix::event::poll(&mut polled, Some(&now)).is_ok();
    answered
        && polled
            .iter()
            .any(|queue| queue.revents().contains(PollFlags::ERR))
}
