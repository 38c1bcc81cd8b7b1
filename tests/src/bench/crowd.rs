//! A fleet's cost for its master, as a row of the results.
//!
//! Owns what is measured of [`Fleet`]: how long until all agents are connected, what an idle
//! session costs, how long until all are back after the master was killed, and how many were
//! failed for want of time.

use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use super::{
    case::{SESSION, beside},
    figures::{FLEET, FLEET_BACK, FLEET_CONNECTED, FLEET_SESSION, FLEET_TOO_SLOW},
    footprint::Resident,
    results::Row,
};
use crate::fleet::Fleet;

/// Measures a fleet of so many agents.
pub(super) async fn measure(size: usize, rest: Duration) -> Result<Row> {
    let program = beside(PROGRAM)?;
    // Making machines and a thousand certificates takes its time.
    let mut fleet = tokio::task::block_in_place(|| Fleet::build(size, program))?;
    let empty = Resident::of(fleet.master().pid())?;
    let connected = fleet.start_agents(LIMIT).await?;
    sleep(rest).await;
    let full = Resident::of(fleet.master().pid())?;
    fleet.reach_all().await?;
    let mut too_slow = fleet.too_slow().len();
    let back = fleet.restart_master(LIMIT).await?;
    fleet.reach_all().await?;
    // The new master's log begins anew, the agents' goes on.
    too_slow = too_slow.max(fleet.too_slow().len());
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (grown, sessions, too_slow) = (
        full.kib.saturating_sub(empty.kib) as f64,
        size as f64,
        too_slow as f64,
    );
    Ok(Row {
        case: SESSION,
        metric: FLEET,
        streams: u64::try_from(size)?,
        master_rss_kib: Some(full.kib),
        more: vec![
            (FLEET_CONNECTED, connected.as_secs_f64()),
            (FLEET_BACK, back.as_secs_f64()),
            (FLEET_SESSION, grown / sessions),
            (FLEET_TOO_SLOW, too_slow),
        ],
        ..Row::default()
    })
}

const PROGRAM: &str = "proxymux-fleet";

/// Twice what is promised, so that a missed figure is told as such.
const LIMIT: Duration = Duration::from_secs(120);
