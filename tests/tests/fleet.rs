//! A thousand agents and one master: they all come in, cost little, are reached, and come back.
//!
//! All of them at the same moment, which is the worst that a fleet can do to its master: after a
//! restart of the master they come with the jitter that agents have.

use std::time::Duration;

use anyhow::Result;
use proxymux_tests::fleet::Fleet;
use tokio::time::sleep;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_agents_connect_are_reached_and_come_back() -> Result<()> {
    let mut fleet = Fleet::build(SIZE, env!("CARGO_BIN_EXE_proxymux-fleet"))?;
    let empty = fleet.master().usage()?.rss_bytes;

    let connected = fleet.start_agents(LIMIT).await?;
    // What handshakes needed is given back, and pings have gone both ways.
    sleep(AT_REST).await;
    let full = fleet.master().usage()?.rss_bytes;
    fleet.reach_all().await?;
    let slow = fleet.too_slow();
    assert!(slow.is_empty(), "{} took too long: {slow:#?}", slow.len());

    let back = fleet.restart_master(LIMIT).await?;
    fleet.reach_all().await?;
    sleep(AT_REST).await;
    let full_again = fleet.master().usage()?.rss_bytes;
    let slow = fleet.too_slow();
    assert!(slow.is_empty(), "{} took too long: {slow:#?}", slow.len());

    let per_session = |rss: u64| rss.saturating_sub(empty) / SIZE as u64 / 1024;
    let (first, second) = (per_session(full), per_session(full_again));
    eprintln!(
        "{SIZE} agents: connected in {connected:.1?}, back in {back:.1?}; master's memory \
         {} MiB empty, {} MiB full: {first} KiB per idle session, {second} KiB after its restart",
        empty >> 20,
        full >> 20,
    );
    assert!(first < MAX_KIB, "{first} KiB per session");
    assert!(second < MAX_KIB, "{second} KiB per session after a restart");
    Ok(())
}

const SIZE: usize = 1_000;

/// For all of them to connect, and to be back.
const LIMIT: Duration = Duration::from_secs(60);

/// Of the master's memory, per idle session.
const MAX_KIB: u64 = 96;

/// A ping every five seconds, and some.
const AT_REST: Duration = Duration::from_secs(7);
