//! The wall clock jumps while sessions stand.
//!
//! libfaketime moves the daemons' wall clock and leaves the monotonic one alone, which is what a
//! step of the machine's clock does. Certificates that expire are `certificates`; here everything
//! is valid at every time that the clocks show, and nothing may happen.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    cluster::{AGENT, Cluster, MASTER, program},
    netns::Host,
    process::Daemon,
};
use proxymux_tests::{
    events::{complaints, with_message},
    following::Following,
    limits::{SOON, within},
};
use tokio::time::{Instant, sleep};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_by_an_hour_either_way_disturb_no_session() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let clock = FakeClock::new(&cluster)?;
    let host = cluster.topology().master();
    let mut master = clock.start(&cluster, host, MASTER, &cluster.master_config(0)?)?;
    master.wait_for_line("master is up", SOON)?;
    let mut agent = clock.start(&cluster, cluster.node(0), AGENT, &cluster.agent_config(0)?)?;
    agent.wait_for_line("session up", SOON)?;
    let (api, target) = (cluster.api()?, cluster.target(0));
    let following = Following::start(&api, &target).await?;

    // Ahead, back to the truth, and behind it: an hour each time.
    for offset in [HOUR, 0, -HOUR] {
        clock.show(offset)?;

        let until = Instant::now() + DEAD_BY_THEN;
        while Instant::now() < until {
            let reply = within(SOON, "ask", api.get(&target, "/healthz")).await?;
            assert_eq!(reply.status, 200);
            following.goes_on().await?;
            sleep(BETWEEN).await;
        }
        for daemon in [&agent, &master] {
            assert_shows(daemon, offset)?;
        }
    }

    for daemon in [&agent, &master] {
        assert_eq!(with_message(daemon, "session up").len(), 1);
        assert_eq!(complaints(daemon, 0), []);
    }
    Ok(())
}

/// A wall clock for daemons that are started with it.
struct FakeClock {
    library: PathBuf,
    offset: PathBuf,
}

impl FakeClock {
    fn new(cluster: &Cluster) -> Result<Self> {
        let clock = Self {
            library: library()?,
            offset: cluster.dir().join("clock"),
        };
        clock.show(0)?;
        Ok(clock)
    }

    /// Moves the clock so many seconds away from the machine's.
    fn show(&self, offset: i64) -> Result<()> {
        // In one step: the daemons read it whenever they look at their clock.
        let next = self.offset.with_extension("next");
        fs::write(&next, format!("{offset:+}\n"))?;
        fs::rename(&next, &self.offset).context("move the clock")
    }

    fn start(&self, cluster: &Cluster, host: &Host, name: &str, config: &str) -> Result<Daemon> {
        let file = cluster.dir().join(format!("{name}.yaml"));
        fs::write(&file, config)?;
        let mut command = host.command("env");
        command
            .arg(joined("LD_PRELOAD=", &self.library))
            .arg(joined("FAKETIME_TIMESTAMP_FILE=", &self.offset))
            .args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"])
            .arg(program(name)?)
            .arg(joined("--config=", &file))
            .arg("--verbosity=debug");
        Daemon::spawn(name, command)
    }
}

/// Where Debian's package libfaketime has it, whatever the processor.
fn library() -> Result<PathBuf> {
    fs::read_dir("/usr/lib")?
        .filter_map(|entry| Some(entry.ok()?.path().join("faketime/libfaketime.so.1")))
        .find(|library| library.is_file())
        .context("libfaketime is not installed; `cargo xtask setup` does that")
}

fn joined(name: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(name);
    text.push(path);
    text
}

/// The daemon's last line is dated as the clock was put: otherwise nothing would be shown.
fn assert_shows(daemon: &Daemon, offset: i64) -> Result<()> {
    let line = daemon.lines().into_iter().next_back().context("a line")?;
    let dated = |seconds: i64| -> Result<String> {
        // The hour of the day, in UTC, as the log has it.
        let now = std::process::Command::new("date")
            .args(["--utc", "+%Y-%m-%dT%H:%M", "--date"])
            .arg(format!("{seconds} seconds"))
            .output()?;
        Ok(String::from_utf8(now.stdout)?.trim_end().to_owned())
    };
    // The line is a few seconds old.
    let expected = [dated(offset)?, dated(offset - 30)?, dated(offset - 60)?];
    ensure!(
        expected.iter().any(|time| line.contains(time.as_str())),
        "{} is not at any of {expected:?}: {line}",
        daemon.name()
    );
    Ok(())
}

const HOUR: i64 = 3600;

/// Longer than the 15 s of silence after which a peer counts as dead.
const DEAD_BY_THEN: Duration = Duration::from_secs(18);
const BETWEEN: Duration = Duration::from_secs(1);
