//! What the tests of faults and the soak are made of.
//!
//! A [`Stage`] is a cluster whose every process can be killed; a [`Load`] asks of it without
//! pause and remembers what each request came to; [`aborts`] is clients that give up, at each
//! stage of a connection; [`Holdings`] is what a process holds, to be compared with what it held
//! before. What must be true of them is for the tests to say, and for [`soak`], which is a program.

pub mod aborts;
mod load;
pub mod soak;
mod stage;
mod target;
mod usage;

pub use self::{
    load::{HANG, Load, Report, Request},
    stage::{Stage, Victim, Window},
    target::{Dispenser, dispenser},
    usage::{Holdings, Named, Slack, holdings, holdings_at_rest, settle},
};
