//! Steering and guard: the eBPF programs on the node's NIC, and what serves them.
//!
//! Owns everything that is there with feature `ebpf` only. [`object`] has the programs.

pub mod object;
