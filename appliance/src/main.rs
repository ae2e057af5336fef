//! tidegate: a userspace network stack appliance for edge sites.

mod datapath;
mod seam;
mod sys;

fn main() {}
