//! Test support for proxymux: a small cluster to run the daemons in, and the ends around them.
//!
//! [`netns`] makes the machines, [`process`] runs daemons on them, [`pki`] issues what a cluster's
//! CA would; [`apiserver`] and [`kubelet`] are the two ends of the tunnel, [`node_api`] is where a
//! master asks about nodes, [`far_end`] a
//! target that checks every byte. [`frame`] is for packets that no socket sends, [`wait`] is how
//! tests wait for something outside.
//! Never published, and never part of the product.

mod acceptor;
pub mod apiserver;
mod body;
pub mod cluster;
pub mod far_end;
pub mod frame;
pub mod kubelet;
pub mod netns;
pub mod node_api;
pub mod pattern;
pub mod pki;
pub mod process;
mod tls;
pub mod wait;
