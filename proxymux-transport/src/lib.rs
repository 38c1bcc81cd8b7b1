//! The IO that both ends of proxymux share.
//!
//! Owns TLS and certificates, the multiplexer's driver and its streams, the relay, and the
//! reading of configuration files.
//! Leaves the wire format to `proxymux-proto` and every decision to the two daemons.
//! Read `mux` and `relay` first: they are the path of every byte.

pub mod admin;
pub mod beginning;
mod carrier;
pub mod certificate;
pub mod clock;
pub mod command;
pub mod config_file;
pub mod control;
pub mod credentials;
pub mod flow;
pub mod half_open;
pub mod limits;
pub mod liveness;
pub mod measure;
pub mod memory;
pub mod metrics;
pub mod mux;
pub mod pair;
pub mod program_pages;
pub mod relay;
pub mod reload;
pub mod segments;
pub mod session;
pub mod shutdown;
pub mod socket;
pub mod splice;
pub mod stream;
mod stream_state;
pub mod telemetry;
pub mod tls;
pub mod tls_stream;
pub mod trust;
pub mod unix_socket;
pub mod unrouted;
