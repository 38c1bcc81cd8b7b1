//! Certificates, end to end: bad ones are refused with a reason that both sides log, good ones are
//! found where they are, and new ones are taken up.
//!
//! In most tests everything that can be wrong is wrong at once, on many agents or many masters,
//! beside one agent and one master whose user must not notice.

mod discovery;
mod of_agents;
mod of_masters;
mod replaced;
mod rotation;
mod unusable;
