//! What stands in `deploy`: manifests, units, certificates and samples, as an operator uses them.
//!
//! Every file there is parsed, rendered or run by a test; [`files`] holds them together, so that
//! one that is added without a test is noticed. The tools are those that operators have: kubectl,
//! systemd-analyze and openssl.

mod agent_manifests;
mod certificates;
mod egress;
mod files;
mod last_words;
mod least_privilege;
mod master_manifests;
mod samples;
mod units;
mod yaml;
