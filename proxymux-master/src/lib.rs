//! The proxymux master: accepts agents' sessions, offers front doors to kube-apiserver, routes.
//!
//! Start with `app` for the wiring, `registry` for which node is reached by which session,
//! `gateway` for what happens to a request, `session` for the life of a session.

mod about;
mod admin;
mod admission;
mod agents;
pub mod app;
mod certificates;
pub mod check;
mod claims;
pub mod config;
mod direct;
mod flows;
pub mod front_door;
mod gateway;
mod half_open;
mod kubernetes;
mod master;
mod metrics;
pub mod nodes;
mod opening;
pub mod perf;
mod registry;
mod routes;
mod session;
mod takeover;
#[cfg(test)]
mod testing;
mod trouble;
