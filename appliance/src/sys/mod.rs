//! The kernel's doors: the only place of `unsafe`, and it knows no domain type.

pub(crate) mod memfd;
pub(crate) mod seqpacket;
