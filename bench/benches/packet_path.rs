//! Benches of the packet path.
fn main() {}
