//! The datapath process.
