//! The eBPF programs, run by the kernel on frames of our own making (`BPF_PROG_TEST_RUN`).
//!
//! Nothing is attached to any device. Frames run this way can be read, looked up and refused, but
//! never assigned to a listener: that takes a device, and is tested with the agent.
//! Each test has a network namespace of its own, because the programs look sockets up.

mod cost;
mod guard;
mod object;
mod parsing;
mod program;
mod steering;
mod wire;
