//! tidegate: a userspace network stack appliance for edge sites.

pub mod config;

fn main() {}
