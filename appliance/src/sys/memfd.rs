//! Sealed memory files: bytes handed to another process that nobody can change any more (memfd_create(2)).
//!
//! The reader checks the seals, so that what it parsed is what the sender meant, and a stated maximum, so that a
//! sender can't make it swallow everything.

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;

/// Most bytes that [`read_sealed`] accepts: a plan with thousands of instances is a tenth of it.
pub(crate) const MAX_BYTES: u64 = 16 << 20;

const SEALS: SealFlags = SealFlags::SEAL
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::WRITE);

/// A sealed memory file that holds `bytes`; `name` shows up in `/proc/PID/fd`.
pub(crate) fn seal(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let descriptor = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = File::from(descriptor);
    file.write_all(bytes)?;
    file.rewind()?;
    fcntl_add_seals(&file, SEALS)?;
    Ok(file.into())
}

/// The bytes of a sealed memory file. One that could still change, or is larger than [`MAX_BYTES`], is refused.
pub(crate) fn read_sealed(descriptor: OwnedFd) -> io::Result<Vec<u8>> {
    if !fcntl_get_seals(&descriptor)?.contains(SEALS) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the memory file isn't sealed against changes: its sender doesn't speak this protocol",
        ));
    }
    let size = u64::try_from(fstat(&descriptor)?.st_size).unwrap_or(u64::MAX);
    if size > MAX_BYTES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("the memory file holds {size} bytes, more than the {MAX_BYTES} that are accepted"),
        ));
    }
    let mut file = File::from(descriptor);
    file.rewind()?;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(MAX_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_come_back_and_cannot_be_changed() {
        let descriptor = seal("test", b"the plan").unwrap();
        let mut writer = File::from(descriptor.try_clone().unwrap());
        assert!(writer.write_all(b"another").is_err());
        assert_eq!(read_sealed(descriptor).unwrap(), b"the plan");
    }

    #[test]
    fn an_unsealed_file_is_refused() {
        let descriptor = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let error = read_sealed(descriptor).unwrap_err();
        assert!(error.to_string().contains("isn't sealed"), "{error}");
    }

    #[test]
    fn a_file_over_the_maximum_is_refused() {
        let descriptor = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&descriptor, MAX_BYTES + 1).unwrap();
        fcntl_add_seals(&descriptor, SEALS).unwrap();
        let error = read_sealed(descriptor).unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }
}
