//! `proxymux-master check` in every broken situation that it knows.
//!
//! Each situation is a row of a table: what is spoilt, the finding that must be told (topic, level
//! and words of what was found and of the fix), and the fix, which is then followed and must make
//! it pass. Addresses are of 127.0.0.0/8, each stage has its own.

mod apiserver;
mod host;
mod over_tcp;
mod running;
mod samples;
mod stage;
