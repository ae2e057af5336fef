//! tidegate: a userspace network stack appliance for edge sites.
fn main() {}
