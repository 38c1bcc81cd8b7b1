//! Who a node is: names, addresses, and which session counts when there are several.
//!
//! Every test asks two things: is the wrong one refused, with a reason on both sides, and do the
//! streams of the one in the right go on as if nothing had happened.

mod masters;
mod names;
mod node_access;
mod node_objects;
mod node_pods;
mod node_scale;
mod node_stage;
mod sessions;
