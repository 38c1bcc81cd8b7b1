//! The soak itself, for its shortest time.

use std::{process::Command, time::Duration};

use anyhow::{Result, ensure};
use proxymux_testkit::process::Daemon;

#[test]
fn a_soak_of_a_minute_ends_with_a_good_verdict() -> Result<()> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_proxymux-soak"));
    command.args(["--minutes", "1", "--seed", &crate::seed()?.to_string()]);

    let mut soak = Daemon::spawn("soak", command)?;

    let status = soak.wait(LIMIT)?;
    ensure!(status.success(), "{status}: {:#?}", soak.lines());
    for said in ["minute 1: ", "nothing was wrong in 1 min: "] {
        let lines = soak.count_lines(|line: &str| line.starts_with(said));
        ensure!(lines == 1, "{said:?}: {:#?}", soak.lines());
    }
    Ok(())
}

/// A minute, a gap and what it leads to, and a machine under load.
const LIMIT: Duration = Duration::from_secs(200);
