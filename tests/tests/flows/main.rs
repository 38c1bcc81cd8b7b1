//! Fast paths that work: what goes by a flow arrives as it was sent, and ends as it was ended.
//!
//! Real daemons in namespaces, every test on the reverse and on the direct path. `bytes` is about
//! payload, `endings` about half-closes and resets, `links` about a way that is gone, and readers
//! that stall, `crowds` about many connections. What happens when a fast path cannot be had is tested elsewhere.

mod bytes;
mod crowds;
mod endings;
mod links;
