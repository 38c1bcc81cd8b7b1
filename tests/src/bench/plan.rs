//! How much of everything a run measures.
//!
//! Owns the sizes of the four kinds of run, so that the code that measures knows none of them.
//! Smaller runs say so in their output: their figures are for comparing two states of the code on
//! one machine within two minutes, not for quoting.

use std::time::Duration;

use serde_json::{Value, json};

use super::case::{Case, DIRECT, REVERSE, SESSION};

/// The sizes of one run.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) name: &'static str,
    /// The cases that are measured, by name, in their rounds only; all of everything if empty.
    pub(super) only: Vec<&'static str>,
    pub(super) rounds: usize,
    /// Of one transfer, over all its connections together.
    pub(super) transfer_bytes: u64,
    /// With how many connections each transfer is made.
    pub(super) streams: &'static [u64],
    pub(super) requests: u64,
    pub(super) opens: u64,
    /// Of a kubelet's log.
    pub(super) log_bytes: u64,
    /// For how long nothing is done to see what the machine does by itself, in each round.
    pub(super) background: Duration,
    /// For how long the idle daemons are watched. An agent comes to rest within 20 s.
    pub(super) idle: Duration,
    /// How many connections of a fast path then stand idle.
    pub(super) idle_connections: u64,
    pub(super) memory: Stalling,
    /// When what stalled downloads hold is looked at, after the last of them has stalled.
    pub(super) looks: [Duration; 2],
    pub(super) beside: Stalling,
    /// Quiet and stalled ones in turn, so many of each.
    pub(super) blocks: usize,
    pub(super) requests_per_block: u64,
    /// What is measured with the agent in a control group.
    pub(super) confined: Confined,
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

/// What is measured with an agent that has less than a whole processor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confined {
    pub(super) rounds: usize,
    pub(super) transfer_bytes: u64,
    pub(super) stalling: Stalling,
}

impl Plan {
    /// What figures are quoted from: some minutes.
    #[must_use]
    pub fn full() -> Self {
        Self {
            name: FULL,
            only: Vec::new(),
            rounds: 5,
            transfer_bytes: 2 << 30,
            streams: &[1, 8],
            requests: 5_000,
            opens: 2_000,
            log_bytes: 512 << 20,
            background: Duration::from_secs(3),
            idle: Duration::from_secs(60),
            idle_connections: 200,
            memory: FAST_THEN_STALLED,
            looks: [Duration::from_secs(5), Duration::from_secs(30)],
            beside: A_HUNDRED,
            blocks: 5,
            requests_per_block: 2_000,
            confined: Confined {
                rounds: 3,
                transfer_bytes: 1 << 30,
                stalling: FAST_THEN_STALLED,
            },
            fleet: 1_000,
            fleet_rest: Duration::from_secs(10),
        }
    }

    /// As the full one, with as many rounds of half the size, and no fleet: for quoting if time is
    /// short.
    #[must_use]
    pub fn short() -> Self {
        Self {
            name: SHORT,
            transfer_bytes: 1 << 30,
            requests: 3_000,
            opens: 500,
            log_bytes: 128 << 20,
            idle: Duration::from_secs(30),
            looks: [Duration::from_secs(5), Duration::from_secs(15)],
            blocks: 3,
            requests_per_block: 1_000,
            confined: Confined {
                rounds: 2,
                transfer_bytes: 256 << 20,
                stalling: Stalling {
                    streams: 200,
                    run_in: 1 << 20,
                },
            },
            fleet: 0,
            ..Self::full()
        }
    }

    /// The same in under two minutes, without the fleet.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            name: QUICK,
            rounds: 1,
            transfer_bytes: 256 << 20,
            streams: &[1],
            requests: 2_000,
            opens: 300,
            log_bytes: 64 << 20,
            background: Duration::from_secs(2),
            idle: Duration::from_secs(25),
            looks: [Duration::from_secs(5), Duration::from_secs(8)],
            blocks: 3,
            requests_per_block: 500,
            confined: Confined {
                rounds: 1,
                transfer_bytes: 64 << 20,
                stalling: Stalling {
                    streams: 200,
                    run_in: 512 << 10,
                },
            },
            fleet: 0,
            ..Self::full()
        }
    }

    /// For the test of the bench itself: every part of it, and no figure of any worth.
    #[must_use]
    pub fn tiny() -> Self {
        Self {
            name: "tiny",
            only: Vec::new(),
            rounds: 1,
            transfer_bytes: 8 << 20,
            streams: &[1, 2],
            requests: 50,
            opens: 20,
            log_bytes: 1 << 20,
            background: Duration::from_millis(200),
            idle: Duration::from_secs(1),
            idle_connections: 5,
            memory: Stalling {
                streams: 4,
                run_in: 1 << 20,
            },
            looks: [Duration::from_millis(500), Duration::from_secs(1)],
            beside: Stalling {
                streams: 3,
                run_in: 512 << 10,
            },
            blocks: 2,
            requests_per_block: 20,
            confined: Confined {
                rounds: 1,
                transfer_bytes: 1 << 20,
                stalling: Stalling {
                    streams: 2,
                    run_in: 256 << 10,
                },
            },
            fleet: 10,
            fleet_rest: Duration::from_secs(1),
        }
    }

    /// Only the rounds of these cases, to compare two states of the code in one respect.
    #[must_use]
    pub fn only(self, cases: Vec<&'static str>) -> Self {
        Self {
            only: cases,
            ..self
        }
    }

    /// Whether this case is measured at all.
    pub(super) fn has(&self, case: &Case) -> bool {
        self.only.is_empty() || self.only.contains(&case.name)
    }

    /// Whether what takes long is measured of this case too.
    pub(super) fn is_thorough_about(&self, case: &Case) -> bool {
        match self.name {
            QUICK => LOOKED_AT_QUICKLY.contains(&case.name),
            _ => true,
        }
    }

    /// Whether requests are made beside stalled ones in this case.
    pub(super) fn is_patient_with(&self, case: &Case) -> bool {
        match self.name {
            FULL | SHORT => LOOKED_AT_QUICKLY.contains(&case.name),
            _ => case.name == SESSION,
        }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "name": self.name,
            "only": self.only,
            "rounds": self.rounds,
            "transfer_bytes": self.transfer_bytes,
            "requests": self.requests,
            "opens": self.opens,
            "log_bytes": self.log_bytes,
            "background_s": self.background.as_secs_f64(),
            "idle_s": self.idle.as_secs_f64(),
            "blocks": self.blocks,
            "requests_per_block": self.requests_per_block,
            "idle_connections": self.idle_connections,
            "looks_s": self.looks.map(|look| look.as_secs_f64()),
            "confined_rounds": self.confined.rounds,
            "confined_transfer_bytes": self.confined.transfer_bytes,
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

/// One of each kind of path.
const LOOKED_AT_QUICKLY: &[&str] = &[SESSION, REVERSE, DIRECT];

const FULL: &str = "full";
const SHORT: &str = "short";
const QUICK: &str = "quick";
