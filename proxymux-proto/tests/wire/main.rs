//! Tests of the wire format through the crate's public face.
//!
//! Round trips, hostile bytes, arbitrary pieces, tolerance of what is newer, and the comparison
//! of `docs/protocol.md` with the code. Unit tests of single files stand beside their code.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in tests a panic is how a failure is told; helpers here are not test functions"
)]

mod arbitrary;
mod document;
mod golden;
mod hostile;
mod limits;
mod newer_peer;
mod pieces;
mod raw;
mod round_trip;
