//! The contract of the front doors, as kube-apiserver's egress selector needs it kept.
//!
//! Every rule is held to the real master, at its Unix socket and at TCP with certificates.
//! `opening` is the answer 200 and what follows it, `refusals` every other answer, `absent` nodes
//! without a session, `budget` the time within which each request is answered, `bursts` many at one moment.

// A test's root file looks for its modules beside itself, where each would be a test of its own.
#[path = "contract/absent.rs"]
mod absent;
#[path = "contract/budget.rs"]
mod budget;
#[path = "contract/bursts.rs"]
mod bursts;
#[path = "contract/opening.rs"]
mod opening;
#[path = "contract/refusals.rs"]
mod refusals;
