//! Faults on purpose: links that go away, processes that are killed, clients that give up.
//!
//! What is shown each time: whoever is affected is told within a limit, nobody else notices, what
//! was lost comes back by itself, and nothing is left behind. A group of its own of
//! `cargo xtask test`, because it takes minutes.

mod links;
