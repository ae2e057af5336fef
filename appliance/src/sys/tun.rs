//! TUN devices: made here, read and written raw (a virtio network header and an IP packet, whole super-packets).
//!
//! A queue belongs to the namespace in which `/dev/net/tun` was opened and goes on working when its device is moved
//! into another one. All queues must be made before that move: afterwards `TUNSETIFF` would silently make a new
//! device of the same name here.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Where queues come from.
const CONTROL: &str = "/dev/net/tun";
/// Length of the virtio network header without `num_buffers` (Virtual I/O Device 1.2 §5.1.6).
const VIRTIO_HEADER_LENGTH: libc::c_int = 10;
/// TCP super-packets, both families, ECN included; every kernel in use has them.
const TCP_SEGMENTATION: libc::c_uint =
    libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
/// UDP super-packets (Linux 6.2).
const UDP_SEGMENTATION: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;

/// What a TUN device does for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TunFeatures {
    /// Every packet has a virtio network header in front: unfinished checksums and super-packets can pass.
    pub(crate) vnet_header: bool,
    /// The kernel hands out super-packets (TSO and, where it has it, USO). Needs `vnet_header`.
    pub(crate) segmentation: bool,
    /// The device may have several queues.
    pub(crate) multi_queue: bool,
}

/// The kernel's `struct ifreq`, as far as TUN devices use it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    unused: [u8; 22],
}

/// Makes a device in the calling thread's namespace, down and without addresses, and gives its queues: nonblocking,
/// closed on exec. The device lives as long as any of them, or a duplicate. An existing device of that name is never
/// joined. Segmentation that the kernel doesn't have is done without.
pub(crate) fn create(name: &str, queues: usize, wanted: TunFeatures) -> io::Result<Vec<OwnedFd>> {
    if queues == 0 || (queues > 1 && !wanted.multi_queue) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a device without multi-queue has exactly one queue, not {queues}"),
        ));
    }
    let mut flags = libc::IFF_TUN | libc::IFF_NO_PI;
    if wanted.vnet_header {
        flags |= libc::IFF_VNET_HDR;
    }
    if wanted.multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut made = Vec::with_capacity(queues);
    for queue in 0..queues {
        // Only the first queue makes the device; the others must find it.
        let exclusive = if queue == 0 { libc::IFF_TUN_EXCL } else { 0 };
        made.push(open_queue(name, flags | exclusive, wanted)?);
    }
    Ok(made)
}

/// What a queue is like, asked of the descriptor itself; it may come from another process. Fails for a descriptor
/// that isn't a TUN device's. `segmentation` isn't told by the kernel: true where it is possible.
pub(crate) fn features(queue: BorrowedFd<'_>) -> io::Result<TunFeatures> {
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: 0,
        unused: [0; 22],
    };
    // SAFETY: TUNGETIFF writes a struct ifreq, for which InterfaceRequest has the room and the layout.
    control(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let flags = libc::c_int::from(request.flags);
    if flags & libc::IFF_TUN == 0 || flags & libc::IFF_NO_PI == 0 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the descriptor is of a TAP device or has a packet information header; a TUN device with IFF_NO_PI is needed",
        ));
    }
    let vnet_header = flags & libc::IFF_VNET_HDR != 0;
    Ok(TunFeatures {
        vnet_header,
        segmentation: vnet_header,
        multi_queue: flags & libc::IFF_MULTI_QUEUE != 0,
    })
}

fn open_queue(name: &str, flags: libc::c_int, wanted: TunFeatures) -> io::Result<OwnedFd> {
    let queue = rustix::fs::open(
        CONTROL,
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map_err(|error| in_context(error.into(), "opening /dev/net/tun (is the module `tun` loaded?)"))?;
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?,
        unused: [0; 22],
    };
    // The last byte stays zero: the kernel reads the name as a C string.
    match request.name.get_mut(..name.len()) {
        Some(room) if name.len() < libc::IFNAMSIZ && !name.is_empty() => {
            room.copy_from_slice(name.as_bytes());
        }
        Some(_) | None => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "`{name}` is no name of a device: 1 to {} bytes",
                    libc::IFNAMSIZ - 1
                ),
            ));
        }
    }
    // SAFETY: TUNSETIFF reads and writes a struct ifreq, for which InterfaceRequest has the room and the layout.
    control(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
        .map_err(|error| in_context(error, &format!("making the TUN device `{name}`")))?;
    if wanted.vnet_header {
        set_virtio_header(queue.as_fd())?;
        if wanted.segmentation {
            set_segmentation(queue.as_fd())?;
        }
    }
    Ok(queue)
}

fn set_virtio_header(queue: BorrowedFd<'_>) -> io::Result<()> {
    let (length, little_endian) = (VIRTIO_HEADER_LENGTH, 1 as libc::c_int);
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    control(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })?;
    // SAFETY: TUNSETVNETLE reads an int.
    control(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETLE, &raw const little_endian) })
}

/// Asks for everything, then for less: an older kernel refuses a mask with an unknown bit in it whole.
fn set_segmentation(queue: BorrowedFd<'_>) -> io::Result<()> {
    let mut last = Ok(());
    for offloads in [TCP_SEGMENTATION | UDP_SEGMENTATION, TCP_SEGMENTATION] {
        // SAFETY: TUNSETOFFLOAD takes its mask by value.
        last = control(unsafe {
            libc::ioctl(
                queue.as_raw_fd(),
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            )
        });
        match &last {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Ok(()) | Err(_) => return last,
        }
    }
    match last {
        // A kernel with neither hands out single packets: slower, and just as right.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

fn control(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn in_context(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_queues_need_multi_queue() {
        let wanted = TunFeatures {
            vnet_header: true,
            segmentation: true,
            multi_queue: false,
        };
        assert_eq!(
            create("tgx-never", 2, wanted).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn a_descriptor_of_another_kind_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(features(file.as_fd()).is_err());
    }

    #[test]
    fn a_queue_tells_its_own_features() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making a TUN device needs root");
            return;
        }
        for vnet_header in [true, false] {
            let wanted = TunFeatures {
                vnet_header,
                segmentation: vnet_header,
                multi_queue: true,
            };
            let name = format!("tgxq{}v{}", std::process::id() % 100_000, u8::from(vnet_header));
            let queues = create(&name, 2, wanted).unwrap();
            assert_eq!(queues.len(), 2);
            assert_eq!(features(queues[1].as_fd()).unwrap(), wanted);
            assert!(
                create(&name, 1, wanted).is_err(),
                "an existing device is never joined"
            );
        }
    }
}
