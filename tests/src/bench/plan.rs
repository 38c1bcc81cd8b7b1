//! How much of everything a run measures.
//!
//! Owns the sizes of the three kinds of run, so that the code that measures knows none of them.
//! Smaller runs say so in their output: their figures are for comparing two states of the code on
//! one machine within a minute, not for quoting.

use std::time::Duration;

use serde_json::{Value, json};

/// The sizes of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) name: &'static str,
    pub(super) rounds: usize,
    /// Of one transfer, over all its connections together.
    pub(super) transfer_bytes: u64,
    /// With how many connections each transfer is made.
    pub(super) streams: &'static [u64],
    pub(super) requests: u64,
    pub(super) opens: u64,
    /// For how long nothing is done to see what the machine does by itself, in each round.
    pub(super) background: Duration,
    /// For how long the idle daemons are watched.
    pub(super) idle: Duration,
    pub(super) memory: Stalling,
    pub(super) beside: Stalling,
    /// Quiet and stalled ones in turn, so many of each.
    pub(super) blocks: usize,
    pub(super) requests_per_block: u64,
    /// How many agents one master is given; none in the small runs.
    pub(super) fleet: usize,
    /// How long they are left alone before their master's memory is looked at.
    pub(super) fleet_rest: Duration,
}

/// Downloads that run and then stall.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stalling {
    pub(super) streams: u64,
    /// Bytes that each is read for at full speed.
    pub(super) run_in: u64,
}

impl Plan {
    /// What figures are quoted from: some minutes.
    #[must_use]
    pub fn full() -> Self {
        Self {
            name: "full",
            rounds: 3,
            transfer_bytes: 2 << 30,
            streams: &[1, 8],
            requests: 5_000,
            opens: 2_000,
            background: Duration::from_secs(3),
            idle: Duration::from_secs(60),
            memory: FAST_THEN_STALLED,
            beside: A_HUNDRED,
            blocks: 5,
            requests_per_block: 2_000,
            fleet: 1_000,
            fleet_rest: Duration::from_secs(10),
        }
    }

    /// The same in under a minute, without the fleet.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            name: "quick",
            rounds: 1,
            transfer_bytes: 512 << 20,
            streams: &[1],
            requests: 3_000,
            opens: 500,
            background: Duration::from_secs(2),
            idle: Duration::from_secs(10),
            requests_per_block: 500,
            fleet: 0,
            ..Self::full()
        }
    }

    /// For the test of the bench itself: every part of it, and no figure of any worth.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            name: "tiny",
            rounds: 1,
            transfer_bytes: 8 << 20,
            streams: &[1, 2],
            requests: 50,
            opens: 20,
            background: Duration::from_millis(200),
            idle: Duration::from_secs(1),
            memory: Stalling {
                streams: 4,
                run_in: 1 << 20,
            },
            beside: Stalling {
                streams: 3,
                run_in: 512 << 10,
            },
            blocks: 2,
            requests_per_block: 20,
            fleet: 10,
            fleet_rest: Duration::from_secs(1),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "rounds": self.rounds,
            "transfer_bytes": self.transfer_bytes,
            "requests": self.requests,
            "opens": self.opens,
            "background_s": self.background.as_secs_f64(),
            "idle_s": self.idle.as_secs_f64(),
            "blocks": self.blocks,
            "requests_per_block": self.requests_per_block,
            "fleet_rest_s": self.fleet_rest.as_secs_f64(),
        })
    }
}

/// Enough for every buffer on the way to have grown to its full size.
const FAST_THEN_STALLED: Stalling = Stalling {
    streams: 200,
    run_in: 8 << 20,
};

/// Beyond the window of a stream, so that each has used all its credit.
const A_HUNDRED: Stalling = Stalling {
    streams: 100,
    run_in: 1 << 20,
};
