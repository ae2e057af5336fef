//! The options of an IPv4 header (RFC 791 §3.1), by an allow-list: what isn't on it is dropped, never skipped over.

use crate::drop::DropReason;

/// End of the list: what follows is padding.
const END: u8 = 0;
/// No operation: one byte.
const NO_OPERATION: u8 = 1;
/// Router alert (RFC 2113): it asks for a look, and leads nowhere.
const ROUTER_ALERT: u8 = 148;
const ROUTER_ALERT_LENGTH: u8 = 4;

/// Whether all options in an IPv4 header are carried. Source routes, recorded routes and timestamps aren't (RFC 7126).
pub(super) fn check(mut options: &[u8]) -> Result<(), DropReason> {
    loop {
        options = match options {
            [] | [END, ..] => return Ok(()),
            [NO_OPERATION, rest @ ..] | [ROUTER_ALERT, ROUTER_ALERT_LENGTH, _, _, rest @ ..] => rest,
            [ROUTER_ALERT, ..] => return Err(DropReason::Malformed),
            [_, ..] => return Err(DropReason::IpOptions),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_router_alert_are_carried() {
        for options in [
            &[0, 0, 0, 0][..],
            &[1, 1, 1, 0],
            &[148, 4, 0, 0],
            &[1, 148, 4, 0, 0, 0, 0, 0],
            // What stands behind the end of the list is padding (RFC 791 §3.1).
            &[0, 131, 7, 4],
        ] {
            assert_eq!(check(options), Ok(()), "{options:?}");
        }
    }

    #[test]
    fn source_routes_records_timestamps_and_unknown_options_are_not_carried_rfc_7126() {
        for kind in [131, 137, 7, 68, 130, 134, 82, 30, 94, 222, 255] {
            assert_eq!(check(&[kind, 4, 0, 0]), Err(DropReason::IpOptions), "{kind}");
            assert_eq!(check(&[1, 1, 1, kind]), Err(DropReason::IpOptions), "{kind}");
        }
    }

    #[test]
    fn a_router_alert_of_another_length_is_malformed_rfc_2113() {
        for options in [
            &[148, 3, 0, 0][..],
            &[148, 0, 0, 0],
            &[148, 8, 0, 0, 0, 0, 0, 0],
            &[1, 148, 4, 0],
            &[1, 1, 1, 148],
        ] {
            assert_eq!(check(options), Err(DropReason::Malformed), "{options:?}");
        }
    }
}
