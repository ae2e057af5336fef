//! tidegate: a userspace network stack appliance for edge sites.
mod sys;

fn main() {}
