//! The UDP socket of a lane: one for both families, with room for bursts.
//!
//! It is never connected: a connected socket would not receive from kernel VTEPs, whose source ports vary.

use rustix::net::sockopt;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Room in the kernel for each direction: some 20 ms at 2.5 Gbit/s.
const BUFFER: usize = 7 << 20;

/// Binds the socket at `listen`; an unspecified IPv6 address takes IPv4, too, and falls back to IPv4 alone on a
/// machine without IPv6. With `dont_fragment`, datagrams leave with DF and the kernel's own idea of the path is not
/// asked (the MTU inside is chosen so that they fit); without it they may be fragmented outside, which the IPv6
/// inside needs where less than 1280 bytes would be left for it.
pub(crate) fn bind(listen: SocketAddr, dont_fragment: bool) -> io::Result<OwnedFd> {
    let socket = match open(listen) {
        Err(error) if listen.is_ipv6() && listen.ip().is_unspecified() && lacks_ipv6(&error) => {
            open(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), listen.port()))
        }
        other => other,
    }?;
    set_dont_fragment(socket.as_fd(), dont_fragment)?;
    Ok(socket)
}

/// Whether datagrams leave with DF.
pub(crate) fn dont_fragment(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let discovery = sockopt::ip_mtu_discover(socket)?;
    Ok(discovery != sockopt::Ipv4PathMtuDiscovery::DONT)
}

/// Says whether datagrams leave with DF.
pub(crate) fn set_dont_fragment(socket: BorrowedFd<'_>, dont_fragment: bool) -> io::Result<()> {
    let (ipv4, ipv6) = if dont_fragment {
        (
            sockopt::Ipv4PathMtuDiscovery::PROBE,
            sockopt::Ipv6PathMtuDiscovery::PROBE,
        )
    } else {
        (
            sockopt::Ipv4PathMtuDiscovery::DONT,
            sockopt::Ipv6PathMtuDiscovery::DONT,
        )
    };
    // Also on an IPv6 socket, for the IPv4 datagrams that leave by it.
    sockopt::set_ip_mtu_discover(socket, ipv4)?;
    if is_ipv6(socket)? {
        sockopt::set_ipv6_mtu_discover(socket, ipv6)?;
        set_option(
            socket,
            libc::IPPROTO_IPV6,
            libc::IPV6_DONTFRAG,
            libc::c_int::from(dont_fragment),
        )?;
    }
    Ok(())
}

/// Says whether runs of datagrams arrive glued (`UDP_GRO`).
pub(crate) fn set_gro(socket: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    set_option(socket, libc::SOL_UDP, libc::UDP_GRO, libc::c_int::from(on))
}

/// Whether the socket is of the IPv6 family: IPv4 addresses are then mapped on their way through it.
pub(crate) fn is_ipv6(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(sockopt::socket_domain(socket)? == rustix::net::AddressFamily::INET6)
}

fn open(listen: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::DGRAM.nonblocking().cloexec(),
        Some(Protocol::UDP),
    )?;
    if listen.is_ipv6() {
        socket.set_only_v6(!listen.ip().is_unspecified())?;
    }
    // Beyond the system's limit with CAP_NET_ADMIN, up to it without; both are only a matter of bursts.
    if sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
        socket.set_recv_buffer_size(BUFFER)?;
    }
    if sockopt::set_socket_send_buffer_size_force(&socket, BUFFER).is_err() {
        socket.set_send_buffer_size(BUFFER)?;
    }
    socket
        .bind(&listen.into())
        .map_err(|error| io::Error::new(error.kind(), format!("binding UDP {listen}: {error}")))?;
    Ok(socket.into())
}

fn lacks_ipv6(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::AddrNotAvailable | io::ErrorKind::Unsupported
    ) || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: the options that callers name read an int, and `value` is one that lives until the call returns.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv6Addr;

    #[test]
    fn fragmentation_is_a_property_of_the_socket_that_travels_with_it() {
        for wanted in [true, false] {
            let listen = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
            let socket = bind(listen, wanted).unwrap();
            let duplicate = socket.try_clone().unwrap();
            assert_eq!(dont_fragment(duplicate.as_fd()).unwrap(), wanted);
        }
    }
}
