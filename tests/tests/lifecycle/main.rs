//! Starting, ending, dying and being cut off: what users notice, and what the logs say.
//!
//! A restart in order is to be unnoticed, a death is to be noticed soon and by the right ones,
//! and whatever was lost comes back without anybody's help.

mod clocks;
mod draining;
mod hanging;
mod outages;
mod restarts;
mod resting;
mod rolling;
mod starting;
mod takeover;
