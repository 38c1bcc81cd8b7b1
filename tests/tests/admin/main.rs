//! The admin addresses of real daemons: metrics, readiness, status, and the commands.
//!
//! What HTTP clients can do wrong there is tested in `proxymux_transport::admin`; here is what
//! the answers say about traffic, and that they say it soon.

mod commands;
mod metrics;
mod perf;
mod readiness;
