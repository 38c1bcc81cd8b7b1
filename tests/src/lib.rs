//! What the end-to-end tests share, the demo, and the bench.
//!
//! The tests themselves are in `tests/`, a file or a directory for each subject; here are the
//! helpers that several of them use. Machines, certificates and stand-ins are the testkit's.

pub mod access;
pub mod admin;
pub mod asking;
pub mod bench;
pub mod bystander;
pub mod demo;
pub mod doors;
pub mod endless;
pub mod etc_hosts;
pub mod events;
pub mod far_target;
pub mod fast_paths;
pub mod faults;
pub mod fleet;
pub mod following;
pub mod interrupts;
pub mod latency;
pub mod limits;
pub mod programs;
pub mod random_chunks;
pub mod refusals;
pub mod rogue;
pub mod splice_hop;
pub mod steered;
pub mod visitors;
