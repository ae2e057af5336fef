//! Named network namespaces, in the same place and form as `ip netns` keeps them: bind mounts of the namespace's
//! file at `/run/netns/NAME`.
//!
//! A namespace belongs to a thread. [`within`] therefore runs a closure on a fresh thread that enters the namespace
//! and ends with the closure: no thread of ours is ever left in a namespace that isn't its own.

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where `ip netns` keeps the names.
const FOLDER: &str = "/run/netns";

/// Where `ip netns` keeps files that stand in for those of `/etc` inside a namespace.
const FILES_FOLDER: &str = "/etc/netns";

/// The path under which a namespace's name is visible to `ip netns`.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// The folder whose files stand in for those of `/etc` inside a namespace, as with `ip netns exec`.
pub(crate) fn files_folder(name: &str) -> PathBuf {
    Path::new(FILES_FOLDER).join(name)
}

/// Makes a network namespace and binds it to `name`; its `lo` is down.
///
/// # Errors
/// `AlreadyExists` when the name is taken; otherwise what the kernel said (without root: `PermissionDenied`).
pub(crate) fn create(name: &str) -> io::Result<()> {
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} can't name a namespace"),
        ));
    }
    prepare_folder()?;
    let path = path(name);
    fs::OpenOptions::new().write(true).create_new(true).open(&path)?;
    let bound = on_fresh_thread(|| {
        // SAFETY: only the network namespace of this thread changes; no file descriptor table is unshared, and the
        // thread ends right after the bind mount.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
        rustix::mount::mount_bind("/proc/thread-self/ns/net", &path)?;
        Ok(())
    });
    if bound.is_err() {
        fs::remove_file(&path)?;
    }
    bound
}

/// Unbinds `name`. The namespace itself dies with its last process, descriptor and device queue.
///
/// # Errors
/// `NotFound` when there is no such name; otherwise what the kernel said.
pub(crate) fn delete(name: &str) -> io::Result<()> {
    let path = path(name);
    // A name may have been bound more than once; EINVAL says that nothing is mounted any more.
    loop {
        match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    fs::remove_file(&path)
}

/// Opens a namespace by its name, or by the path of a namespace file when there is a slash in it.
///
/// # Errors
/// What `open` said.
pub(crate) fn open(name_or_path: &str) -> io::Result<OwnedFd> {
    let path = if name_or_path.contains('/') {
        PathBuf::from(name_or_path)
    } else {
        path(name_or_path)
    };
    Ok(rustix::fs::open(
        &path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

/// The names that `ip netns` would list, sorted.
///
/// # Errors
/// What reading the folder said; a folder that doesn't exist is an empty list.
pub(crate) fn list() -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Runs `work` on a fresh thread that has entered `namespace`, and waits for it.
///
/// # Errors
/// When the thread can't be made or the namespace not be entered (it takes CAP_SYS_ADMIN).
pub(crate) fn within<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_fresh_thread(|| {
        enter(namespace)?;
        Ok(work())
    })
}

/// Moves the calling thread into `namespace` for good: for what follows with `exec`, or with a thread of its own.
///
/// # Errors
/// What `setns` said.
pub(crate) fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(
        namespace,
        Some(LinkNameSpaceType::Network),
    )?)
}

/// Gives the calling thread a mount namespace of its own in which every file of `/etc/netns/NAME` stands in for the
/// one of that name in `/etc`, and `/sys` shows the devices of the network namespace it is in: what `ip netns exec`
/// does before it runs a command. To be followed by `exec`.
///
/// # Errors
/// What the kernel said to `unshare` or `mount`.
pub(crate) fn mount_files(name: &str) -> io::Result<()> {
    // SAFETY: the mount namespace (and with it root and working folder) is unshared for the calling thread only;
    // descriptors are untouched.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )?;
    // In a container /sys may be locked: a command then sees the outer one, which only misleads listings.
    if rustix::mount::unmount("/sys", UnmountFlags::DETACH).is_ok() {
        rustix::mount::mount("sysfs", "/sys", "sysfs", rustix::mount::MountFlags::empty(), None)?;
    }
    let folder = files_folder(name);
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let target = Path::new("/etc").join(entry.file_name());
        if target.exists() {
            rustix::mount::mount_bind(entry.path(), &target)?;
        }
    }
    Ok(())
}

/// What makes a namespace the same as another, whatever its names: the inode of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of the namespace that a path of the form `/run/netns/NAME` or `/proc/PID/ns/net` leads to.
    ///
    /// # Errors
    /// What `stat` said.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Of an open namespace.
    ///
    /// # Errors
    /// What `fstat` said.
    pub(crate) fn of(namespace: impl AsFd) -> io::Result<Self> {
        let stat = rustix::fs::fstat(namespace)?;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
        })
    }
}

/// Makes the folder a shared mount point, as `ip netns` does: without it a name made here could not be unlinked
/// after `ip netns add` has bound the folder over itself.
fn prepare_folder() -> io::Result<()> {
    fs::create_dir_all(FOLDER)?;
    let share =
        || rustix::mount::mount_change(FOLDER, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
    match share() {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL) => {
            rustix::mount::mount_bind_recursive(FOLDER, FOLDER)?;
            Ok(share()?)
        }
        Err(error) => Err(error.into()),
    }
}

fn on_fresh_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)?;
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_namespace_is_listed_entered_and_removed() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: making namespaces needs root");
            return;
        }
        let name = format!("tgx-lab-netns-{}", std::process::id());
        create(&name).unwrap();
        assert_eq!(create(&name).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(list().unwrap().contains(&name));
        let namespace = open(&name).unwrap();
        let inside = within(namespace.as_fd(), || {
            Identity::at(Path::new("/proc/thread-self/ns/net"))
        })
        .unwrap()
        .unwrap();
        assert_eq!(inside, Identity::of(&namespace).unwrap());
        assert_ne!(
            inside,
            Identity::at(Path::new("/proc/thread-self/ns/net")).unwrap()
        );
        delete(&name).unwrap();
        assert!(!list().unwrap().contains(&name));
        assert_eq!(delete(&name).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_path_is_no_name() {
        assert_eq!(create("a/b").unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(create("..").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
