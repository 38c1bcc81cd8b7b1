//! What needs another kernel than this machine's, or devices that this machine's has not.
//!
//! Runs in the guests of `cargo xtask vm` only, which say which kernel they are, beside those of
//! the other tests whose result depends on it. `auto` is what the agent chooses by itself and what
//! follows from it, `devices` are VLANs and bonds, `guard` is the guard.

mod auto;
mod devices;
mod guard;
mod stage;
