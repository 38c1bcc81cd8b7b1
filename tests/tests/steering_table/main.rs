//! Steering in the middle of everything else that a node's network does, line by line.
//!
//! Each test is a case in which a program that assigns sockets could break what works without it:
//! connections from before, a dead agent, cookies, filters, a kubelet that restarts. Who has a
//! connection on the node is asked of the kernel ([`visitors::holder`]), not of the agent.
//!
//! [`visitors::holder`]: proxymux_tests::visitors::holder

mod agents;
mod connections;
mod cost;
mod filters;
mod frames;
mod listeners;
mod restarts;
mod settings;
mod stage;
mod without;
