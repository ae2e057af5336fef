//! Side-by-side runs of the same topology for tidegate and its peers.
fn main() {}
