//! Faults on purpose: links that go away, processes that are killed, clients that give up.
//!
//! What is shown each time: whoever is affected is told within a limit, nobody else notices, what
//! was lost comes back by itself, and nothing is left behind. A group of its own of
//! `cargo xtask test`, because it takes minutes.

mod aborts;
mod gaps;
mod kills;
mod links;
mod soak;

use std::env;

use anyhow::{Context, Result};

/// What the random choices of a test follow from: `PROXYMUX_SEED`, or something new each time.
fn seed() -> Result<u64> {
    let seed = match env::var("PROXYMUX_SEED") {
        Ok(seed) => seed.parse().context("PROXYMUX_SEED: expected a number")?,
        Err(_) => fastrand::u64(..u64::from(u32::MAX)),
    };
    eprintln!("PROXYMUX_SEED={seed}");
    Ok(seed)
}

/// The kubelet stand-in as a process.
const KUBELET: &str = env!("CARGO_BIN_EXE_proxymux-kubelet-stand-in");
