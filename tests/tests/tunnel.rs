//! The main job: what kube-apiserver asks of a kubelet reaches it through the node's session.
//!
//! One master, a router with NAT, nodes that cannot be dialled; real daemons. `requests` is what
//! works, `doors` who may come in, `targets` under which names a kubelet is found, `failures`
//! what is said when it does not work, `access_log` what both ends write about it.

// A test's root file looks for its modules beside itself, where each would be a test of its own.
#[path = "tunnel/access_log.rs"]
mod access_log;
#[path = "tunnel/doors.rs"]
mod doors;
#[path = "tunnel/failures.rs"]
mod failures;
#[path = "tunnel/requests.rs"]
mod requests;
#[path = "tunnel/targets.rs"]
mod targets;
