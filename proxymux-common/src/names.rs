//! The names of programs and maps, as both sides and `bpftool` see them.
//!
//! Owns the names only. The kernel cuts names to 15 characters, so none is longer.

/// The program for the node's NIC: steers, counts, and guards if [`crate::Settings`] says so.
pub const STEER: &str = "proxymux_steer";
/// The program for the other devices of `guard-inf`: guards only.
pub const GUARD: &str = "proxymux_guard";

/// Array of one [`crate::Settings`].
pub const SETTINGS: &str = "SETTINGS";
/// Longest-prefix tries of the sources that are steered, `u8` values. IPv4 keys have 4 bytes.
pub const SOURCES_V4: &str = "SOURCES_V4";
/// As [`SOURCES_V4`], keys of 16 bytes.
pub const SOURCES_V6: &str = "SOURCES_V6";
/// As [`SOURCES_V4`]: who the guard lets in besides.
pub const ALLOWED_V4: &str = "ALLOWED_V4";
/// As [`SOURCES_V6`]: who the guard lets in besides.
pub const ALLOWED_V6: &str = "ALLOWED_V6";
/// Hash of the node's own addresses ([`crate::Address`]), `u8` values.
pub const ADDRESSES: &str = "ADDRESSES";
/// Socket map of two slots: the agent's listeners.
pub const LISTENERS: &str = "LISTENERS";
/// Per-CPU array of [`crate::Counter`], by [`crate::Verdict`].
pub const STATISTICS: &str = "STATISTICS";
/// Array of one `u64`: when the agent last lived, `CLOCK_MONOTONIC` in nanoseconds.
pub const HEARTBEAT: &str = "HEARTBEAT";
/// Hash of what the guard dropped or would have: [`crate::Address`] to the number of connections
/// (`u64`), the oldest forgotten first.
pub const AUDITED: &str = "AUDITED";

/// How many prefixes each trie holds.
pub const MAX_PREFIXES: u32 = 1024;
/// How many own addresses a node may have.
pub const MAX_ADDRESSES: u32 = 256;
/// How many sources the guard remembers.
pub const MAX_AUDITED: u32 = 1024;
