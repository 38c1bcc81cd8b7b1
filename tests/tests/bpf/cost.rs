//! What the program on the NIC costs a packet that is none of its business.

use std::time::Duration;

use anyhow::Result;
use aya::sys::{Stats, enable_stats};
use proxymux_common::names;

use crate::{
    program::Program,
    wire::{Frame, UDP, other},
};

/// What a packet may cost at the most, of the kernel's own statistics.
const LIMIT: Duration = Duration::from_nanos(200);

/// Other processes take the processor away in the middle of a round, so that the best one counts.
const ROUNDS: u32 = 20;
const PACKETS: u32 = 10_000;

#[test]
fn unrelated_packets_cost_less_than_two_hundred_nanoseconds() -> Result<()> {
    let mut program = Program::load(names::STEER)?;
    let _measured_while_held = enable_stats(Stats::RunTime)?;
    let http = Frame::new("192.0.2.10:40000", "10.0.10.10:443");
    for (name, frame) in [
        ("ARP", other(0x0806)),
        (
            "UDP over IPv4",
            http.clone().with(|frame| frame.protocol = UDP).bytes(),
        ),
        ("TCP over IPv4, another port", http.bytes()),
        (
            "TCP over IPv6, another port",
            Frame::new("[2001:db8::10]:40000", "[fd00:10::10]:443").bytes(),
        ),
    ] {
        let cost = best(&mut program, &frame)?;

        println!("{name}: {} ns per packet", cost.as_nanos());
        assert!(cost > Duration::ZERO && cost < LIMIT, "{name}: {cost:?}");
    }
    Ok(())
}

fn best(program: &mut Program, frame: &[u8]) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let (time, count) = program.cost()?;
        program.repeat(frame, PACKETS)?;
        let (later, more) = program.cost()?;
        let packets = u32::try_from(more - count)?.max(1);
        best = best.min((later - time) / packets);
    }
    Ok(best)
}
