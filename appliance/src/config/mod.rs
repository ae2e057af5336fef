//! Documents: what people write, decoded with its places into domain types, all errors at once.
//!
//! A document goes through three rooms, each of which proves something:
//!
//! 1. [`yaml`] reads text into a tree that remembers where every key and value stands, and keeps what a map would
//!    lose (keys set twice). It bounds size, depth and what aliases expand to.
//! 2. `decode` walks that tree: wrong kinds, missing keys, unknown keys with the nearest legal one.
//! 3. [`host`], [`application`] (with [`access`], [`naming`] and [`readiness`]) and [`topology`] turn leaves into domain types and check what spans several keys.
//!
//! No room stops at the first error: a [`problem::Problem`] is reported with its place and the walk goes on. A document either
//! comes out whole and legal, or not at all, as [`Problems`]. Nothing here knows what a host does with a document.

pub(crate) mod access;
pub(crate) mod application;
mod coverage;
mod decode;
pub(crate) mod host;
pub(crate) mod naming;
mod problem;
mod readiness;
mod report;
mod spelling;
pub(crate) mod topology;
mod values;
pub(crate) mod yaml;

pub(crate) use problem::Problems;
pub(crate) use values::label_fault;

#[cfg(test)]
mod tests;
