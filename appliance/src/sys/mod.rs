//! The kernel's doors: the only room with `unsafe`, and no room for domain types.

pub(crate) mod clock;
pub(crate) mod epoll;
pub(crate) mod ethtool;
pub(crate) mod interruption;
pub(crate) mod lane_socket;
pub(crate) mod memfd;
pub(crate) mod netlink;
pub(crate) mod netns;
pub(crate) mod packet_socket;
pub(crate) mod process;
pub(crate) mod seqpacket;
pub(crate) mod signal;
pub(crate) mod tun;
