//! What `cargo xtask dist` has made, as an operator gets it: unpacked, looked at, and run.
//!
//! Runs in group `dist` only, which makes it first. `archive` reads an archive as container
//! engines do, `contents` is what is in it, `running` is both images in namespaces.

mod archive;
mod contents;
mod running;
