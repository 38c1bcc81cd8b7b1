//! What the program costs traffic that it has nothing to do with.
//!
//! Sender, router and receiver are this process, so that its own processor time has all that the
//! kernel does for the packets on their way, the program included, and nothing of what else the
//! machine does. Rounds with and without the program take turns; only ratios are judged.

use anyhow::{Context, Result, ensure};
use nix::sys::{
    resource::{UsageWho, getrusage},
    signal::Signal,
    time::TimeValLike,
};
use proxymux_testkit::netns::HostRuntime;
use proxymux_tests::limits::{SOON, within};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::stage::{self, Stage, attach_kinds};

#[test]
fn unrelated_traffic_costs_no_more_with_the_program_than_it_varies_without() -> Result<()> {
    for attach in attach_kinds()? {
        let mut stage = stage::build(attach)?;
        let sender = stage.cluster.topology().master().runtime()?;
        let receiver = stage.node().runtime()?;
        let (mut without, mut with) = (Vec::new(), Vec::new());
        transfer(&stage, &sender, &receiver)?;
        for _ in 0..ROUNDS {
            without.push(transfer(&stage, &sender, &receiver)?);

            stage.start_agent()?;
            let before = stage.count("unrelated")?;
            with.push(transfer(&stage, &sender, &receiver)?);
            let seen = stage.count("unrelated")? - before;
            ensure!(seen > PACKETS_AT_LEAST, "{seen} packets seen");

            stage.cluster.agent(0).signal(Signal::SIGTERM)?;
            stage.cluster.agent(0).wait(SOON)?;
        }
        for rounds in [&mut without, &mut with] {
            rounds.sort_by(f64::total_cmp);
        }
        let (most, least) = (without[ROUNDS - 1], without[0]);
        let ratio = with[ROUNDS / 2] / without[ROUNDS / 2];
        eprintln!(
            "{attach}: {ratio:.3} of the CPU per GiB without the program, which varied by {:.3}",
            most / least
        );
        assert!(with[ROUNDS / 2] <= most * ROOM, "{with:?}, {without:?}");
    }
    Ok(())
}

/// Seconds of this process per GiB from the control plane's machine to the node.
fn transfer(stage: &Stage, sender: &HostRuntime, receiver: &HostRuntime) -> Result<f64> {
    let to = (stage.node().ipv4(), PORT);
    let listener = receiver.block_on(TcpListener::bind(to))?;
    let before = processor_seconds()?;
    let received = receiver.spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        let mut buffer = vec![0; CHUNK];
        let mut received = 0;
        loop {
            match stream.read(&mut buffer).await? {
                0 => return anyhow::Ok(received),
                length => received += length,
            }
        }
    });
    sender.block_on(async move {
        let mut stream = within(SOON, "connect", TcpStream::connect(to)).await?;
        let chunk = vec![0; CHUNK];
        for _ in 0..CHUNKS {
            within(SOON, "send", stream.write_all(&chunk)).await?;
        }
        within(SOON, "end", stream.shutdown()).await
    })?;
    let received = receiver.block_on(received).context("the receiver")??;
    ensure!(received == CHUNK * CHUNKS, "{received} bytes received");
    Ok((processor_seconds()? - before) / GIB)
}

fn processor_seconds() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    #[expect(clippy::cast_precision_loss, reason = "some seconds")]
    Ok(micros as f64 / 1e6)
}

const ROUNDS: usize = 5;
/// The spread of a handful of rounds is known to no better than this.
const ROOM: f64 = 1.1;
const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 2048;
const GIB: f64 = 0.5;
/// The largest that a veth carries at once are 64 KiB.
const PACKETS_AT_LEAST: f64 = 4000.0;
const PORT: u16 = 5201;
