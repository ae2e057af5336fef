//! Messages with descriptors between processes of one host: `SOCK_SEQPACKET` Unix sockets (unix(7)).
//!
//! A message arrives whole or not at all: at most [`MAX_BYTES`] and [`MAX_DESCRIPTORS`]. One that was cut, in bytes
//! or in descriptors, ends the connection with an error, because what is left of it can't be understood.
//!
//! [`Listener`] and [`Connection`] block unless told otherwise; [`AsyncListener`] and [`AsyncConnection`] are the same
//! under tokio.

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// Most bytes of a message.
pub(crate) const MAX_BYTES: usize = 64 << 10;
/// Most descriptors of a message: the lanes of as many shards as there can be, and the foreign one.
pub(crate) const MAX_DESCRIPTORS: usize = 65;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// A message as it arrived.
#[derive(Debug)]
pub(crate) struct Message {
    /// Its bytes, never none.
    pub(crate) bytes: Vec<u8>,
    /// The descriptors beside it, closed on exec.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// A socket that waits for connections at a path.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
}

impl Listener {
    /// Listens at `path` with file mode `mode`. What a dead process left there is replaced; where somebody still
    /// listens the error is `AddrInUse`. Nobody can connect before the mode is set.
    pub(crate) fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        if Connection::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("{} is in use: another process listens there", path.display()),
            ));
        }
        Self::replace(path, mode)
    }

    /// As [`Listener::bind`], but takes the name from whoever listens there: who connects from now on comes here, and
    /// connections of before live on.
    pub(crate) fn replace(path: &Path, mode: u32) -> io::Result<Self> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = Path::new(&temporary);
        let socket = socket()?;
        match std::fs::remove_file(temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        rustix::net::bind(&socket, &SocketAddrUnix::new(temporary)?)?;
        rustix::fs::chmod(temporary, rustix::fs::Mode::from_raw_mode(mode))?;
        rustix::net::listen(&socket, BACKLOG)?;
        std::fs::rename(temporary, path)?;
        Ok(Self { socket })
    }

    /// The next connection.
    pub(crate) fn accept(&self) -> io::Result<Connection> {
        let socket =
            rustix::io::retry_on_intr(|| rustix::net::accept_with(&self.socket, SocketFlags::CLOEXEC))?;
        Ok(Connection { socket })
    }

    /// Whether [`Listener::accept`] says `WouldBlock` instead of waiting.
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.socket, nonblocking)?)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
}

impl Connection {
    /// Connects to the listener at `path`.
    pub(crate) fn connect(path: &Path) -> io::Result<Self> {
        let socket = socket()?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { socket })
    }

    /// Two ends that are connected with each other.
    #[cfg(test)]
    pub(crate) fn pair() -> io::Result<(Self, Self)> {
        let (near, far) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self { socket: near }, Self { socket: far }))
    }

    /// Sends one message. An empty one can't be told from the end of the connection and is refused.
    pub(crate) fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.is_empty() || bytes.len() > MAX_BYTES || descriptors.len() > MAX_DESCRIPTORS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a message of {} bytes and {} descriptors: 1 to {MAX_BYTES} bytes and at most \
                     {MAX_DESCRIPTORS} descriptors can be sent",
                    bytes.len(),
                    descriptors.len()
                ),
            ));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        // A message is sent whole or not at all, so the count of bytes says nothing new.
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(
                &self.socket,
                &[IoSlice::new(bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        })?;
        Ok(())
    }

    /// The next message, or `None` when the other end closed.
    pub(crate) fn receive(&self) -> io::Result<Option<Message>> {
        let mut bytes = vec![0; MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = match rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        }) {
            Ok(received) => received,
            Err(Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut descriptors = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "a message exceeds {MAX_BYTES} bytes or {MAX_DESCRIPTORS} descriptors and arrived cut"
                ),
            ));
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        bytes.truncate(received.bytes);
        bytes.shrink_to_fit();
        Ok(Some(Message { bytes, descriptors }))
    }

    /// How long a blocking [`Connection::receive`] waits before it says `WouldBlock`; `None` for ever.
    pub(crate) fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_timeout(
            &self.socket,
            rustix::net::sockopt::Timeout::Recv,
            timeout,
        )?)
    }

    /// Whether the verbs say `WouldBlock` instead of waiting.
    pub(crate) fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        Ok(rustix::io::ioctl_fionbio(&self.socket, nonblocking)?)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Connection {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A [`Listener`] under tokio.
#[derive(Debug)]
pub(crate) struct AsyncListener(AsyncFd<Listener>);

impl AsyncListener {
    /// Hands `listener` to the runtime of the calling task.
    pub(crate) fn new(listener: Listener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        // SAFETY: the listener owns its socket, never changes it, and closes it when it is dropped.
        Ok(Self(unsafe { AsyncFd::register(listener) }?))
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> io::Result<AsyncConnection> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(accepted) = ready.try_io(|listener| listener.get_ref().accept()) {
                return AsyncConnection::new(accepted?);
            }
        }
    }
}

/// A [`Connection`] under tokio.
#[derive(Debug)]
pub(crate) struct AsyncConnection(AsyncFd<Connection>);

impl AsyncConnection {
    /// Hands `connection` to the runtime of the calling task.
    pub(crate) fn new(connection: Connection) -> io::Result<Self> {
        connection.set_nonblocking(true)?;
        // SAFETY: the connection owns its socket, never changes it, and closes it when it is dropped.
        Ok(Self(unsafe { AsyncFd::register(connection) }?))
    }

    /// As [`Connection::send`].
    pub(crate) async fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(sent) = ready.try_io(|connection| connection.get_ref().send(bytes, descriptors)) {
                return sent;
            }
        }
    }

    /// As [`Connection::receive`]; dropping the future loses no message.
    pub(crate) async fn receive(&self) -> io::Result<Option<Message>> {
        loop {
            let mut ready = self.0.readable().await?;
            if let Ok(received) = ready.try_io(|connection| connection.get_ref().receive()) {
                return received;
            }
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::PermissionsExt as _;

    fn scratch(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("tidegate-seqpacket-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn descriptors_arrive_beside_their_message() {
        let (near, far) = Connection::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        near.send(b"two ends", &[writer.as_fd(), writer.as_fd()]).unwrap();
        near.send(b"none", &[]).unwrap();
        drop((near, writer));

        let message = far.receive().unwrap().unwrap();
        assert_eq!(message.bytes, b"two ends");
        assert_eq!(message.descriptors.len(), 2);
        let mut descriptors = message.descriptors.into_iter();
        File::from(descriptors.next().unwrap())
            .write_all(b"through")
            .unwrap();
        drop(descriptors);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");

        assert_eq!(far.receive().unwrap().unwrap().bytes, b"none");
        assert!(far.receive().unwrap().is_none());
    }

    #[test]
    fn as_many_descriptors_as_stated_pass_and_more_are_refused() {
        let (near, far) = Connection::pair().unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        near.send(&vec![7; MAX_BYTES], &[reader.as_fd(); MAX_DESCRIPTORS])
            .unwrap();
        let message = far.receive().unwrap().unwrap();
        assert_eq!(
            (message.bytes.len(), message.descriptors.len()),
            (MAX_BYTES, MAX_DESCRIPTORS)
        );
        assert!(near.send(b"x", &[reader.as_fd(); MAX_DESCRIPTORS + 1]).is_err());
        assert!(near.send(&vec![7; MAX_BYTES + 1], &[]).is_err());
        assert!(near.send(b"", &[]).is_err());
    }

    #[test]
    fn a_listener_replaces_what_a_dead_process_left_and_nothing_else() {
        let folder = scratch("bind");
        let path = folder.join("test.sock");
        drop(Listener::bind(&path, 0o600).unwrap());
        let listener = Listener::bind(&path, 0o660).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o660
        );
        assert_eq!(
            Listener::bind(&path, 0o600).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        // The attempt above connected and went away.
        assert!(listener.accept().unwrap().receive().unwrap().is_none());
        let before = Connection::connect(&path).unwrap();
        let successor = Listener::replace(&path, 0o600).unwrap();
        let after = Connection::connect(&path).unwrap();
        for (near, far) in [(before, listener), (after, successor)] {
            near.send(b"to whom?", &[]).unwrap();
            assert_eq!(
                far.accept().unwrap().receive().unwrap().unwrap().bytes,
                b"to whom?"
            );
        }
        assert_eq!(
            std::fs::read_dir(&folder).unwrap().count(),
            1,
            "no temporary name is left"
        );
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_asynchronous_ends_carry_the_same() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let folder = scratch("async");
        runtime.block_on(async {
            let path = folder.join("test.sock");
            let listener = AsyncListener::new(Listener::bind(&path, 0o600).unwrap()).unwrap();
            let near = AsyncConnection::new(Connection::connect(&path).unwrap()).unwrap();
            let far = listener.accept().await.unwrap();
            near.send(b"hello", &[std::io::stderr().as_fd()]).await.unwrap();
            let message = far.receive().await.unwrap().unwrap();
            assert_eq!(
                (message.bytes.as_slice(), message.descriptors.len()),
                (b"hello".as_slice(), 1)
            );
            drop(far);
            assert!(near.receive().await.unwrap().is_none());
        });
        std::fs::remove_dir_all(folder).unwrap();
    }
}
