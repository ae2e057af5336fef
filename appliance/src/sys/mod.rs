//! What the kernel offers, behind small safe doors: the only room of this crate that may use `unsafe`.
//!
//! Nothing here knows a domain type: names, indices, addresses and descriptors come in, `io::Result` goes out.

pub(crate) mod ethtool;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod packet_socket;
pub(crate) mod process;
