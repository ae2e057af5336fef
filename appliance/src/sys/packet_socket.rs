//! A receive-only tap on a network device: every frame that enters or leaves it, from the Ethernet header on
//! (packet(7)).

use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, Read};
use std::mem;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// The largest frame that can come: a super-packet of 64 KiB with its Ethernet header.
pub(crate) const LARGEST_FRAME: usize = 65_536 + 18;

/// What the socket may hold while nobody reads, in bytes.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A tap. Frames queue in the kernel from the moment it is opened.
pub(crate) struct PacketSocket {
    socket: Socket,
}

impl PacketSocket {
    /// Opens a tap on the device with this index in the calling thread's namespace.
    ///
    /// # Errors
    /// What the kernel said; it takes CAP_NET_RAW.
    pub(crate) fn open(index: u32) -> io::Result<Self> {
        // Protocol 0 receives nothing: what comes before the bind can't be another device's.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        // Beyond rmem_max it takes CAP_NET_ADMIN; whoever has less gets what the system allows.
        if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
            socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
        }
        // SAFETY: sockaddr_ll is plain data for which all zeroes is a value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index.cast_signed();
        // SAFETY: `address` is a whole sockaddr_ll, and its length is passed with it.
        let result = unsafe {
            libc::bind(
                socket.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(Self { socket })
        }
    }

    /// Receives the next frame into `buffer` and tells its length; `None` when none came within `limit`.
    ///
    /// # Errors
    /// What the kernel said, such as `ENETDOWN` when the device is gone.
    pub(crate) fn receive(&mut self, buffer: &mut [u8], limit: Duration) -> io::Result<Option<usize>> {
        self.socket.set_read_timeout(Some(limit))?;
        match self.socket.read(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// How many frames were lost since this was last asked, because nobody read in time.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn lost(&self) -> io::Result<u32> {
        let mut statistics = libc::tpacket_stats {
            tp_packets: 0,
            tp_drops: 0,
        };
        let mut length = mem::size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: `statistics` is a whole tpacket_stats, and `length` its size.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut statistics).cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(statistics.tp_drops)
        }
    }
}
