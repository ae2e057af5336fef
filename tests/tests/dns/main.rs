//! DNS at the service address, as programs of all kinds see it: the same on every host, nothing of strangers, and
//! nobody waits because somebody else is slow.
#![expect(clippy::print_stdout, reason = "a story tells what it measured")]

mod clients;
mod exchanges;
mod instances;
mod slow;
mod strangers;

use anyhow::Result;
use tidegate_fixtures as fixtures;
use tidegate_tests::Lab;

use crate::instances::Instances;

/// The service address of every application's own network.
const SERVICE_ADDRESS: &str = "172.19.0.1";

#[test]
fn names_are_answered_exactly_to_every_client_and_to_nobody_else() -> Result<()> {
    let Some(lab) = Lab::up_fixture("tgt-dns", &fixtures::topology("names"))? else {
        return Ok(());
    };
    let instances = Instances::of(&lab)?;
    exchanges::every_exchange_is_as_written(&lab, &instances)?;
    exchanges::answers_rotate_unless_they_are_fixed(&lab, &instances)?;
    exchanges::queries_on_one_connection_are_answered_in_turn(&lab, &instances)?;
    clients::every_client_finds_the_same(&lab, &instances)?;
    strangers::nothing_is_told_of_another_application(&lab, &instances)?;
    strangers::a_forged_source_is_told_nothing(&lab, &instances)?;
    slow::slow_clients_delay_nobody(&lab, &instances)?;
    lab.close()
}
