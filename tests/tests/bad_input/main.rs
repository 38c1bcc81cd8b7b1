//! What the daemons do with bad input, from the command line to the multiplexer's frames.
//!
//! Every test asks three things: is the message right, in the words of an operator and on the
//! side that can act on it; is the outcome right (an exit code, a refusal, another try); and does
//! everybody who has nothing to do with it go on undisturbed.
//! Certificates are in `certificates.rs`, targets and CONNECT requests elsewhere.

mod agents_files;
mod arguments;
mod configuration;
mod kubelets;
mod places;
mod refused_starts;
mod rogue_agents;
mod rogue_frames;
mod rogue_masters;
mod stage;
mod strangers;
mod wrong_masters;
