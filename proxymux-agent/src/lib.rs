//! The proxymux agent: the daemon on each node.
//!
//! It keeps sessions with the masters, dials this node's kubelet when a master asks, and relays.
//! Start with `app` for the wiring, `session` for the life of a session.

mod admin;
mod agent;
pub mod app;
mod board;
mod certificates;
pub mod check;
mod closing;
pub mod config;
pub mod discovery;
mod far_end;
mod flows;
mod link;
mod masters;
mod metrics;
mod netlink;
mod outbound;
mod rest;
mod session;
pub mod status;
pub mod steering;
mod target;
