//! Tests of flows against a master of the transport's own code; see `testing`.

mod pool;
mod serve;
