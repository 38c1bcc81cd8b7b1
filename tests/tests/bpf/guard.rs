//! What the guard stops, and what it must never stop.

use std::{net::TcpListener, net::TcpStream, process::Command, time::Duration};

use anyhow::{Result, ensure};
use proxymux_common::{
    Guard, SETTINGS_FLAG_GUARD_NIC, SETTINGS_FLAG_STEER, Settings, Verdict, names,
};

use crate::{
    program::{DROP, NEXT, NODE_V4, NODE_V6, Program, STEERING},
    wire::{ACK, Frame, SYN},
};

const STRANGER_V4: &str = "198.51.100.7:40000";
const STRANGER_V6: &str = "[fd00:99::7]:40000";

#[test]
fn strangers_are_passed_counted_or_dropped_as_the_mode_says() -> Result<()> {
    for (source, node) in [(STRANGER_V4, NODE_V4), (STRANGER_V6, NODE_V6)] {
        let mut program = alive(names::GUARD)?;
        let syn = Frame::new(source, node).bytes();
        let address = source.parse::<std::net::SocketAddr>()?.ip().to_string();

        guard(&mut program, Guard::Off)?;
        assert_eq!(program.run(&syn)?, (Verdict::Passed, NEXT));
        assert!(
            program.audited(&address).is_err(),
            "nothing to remember yet"
        );
        guard(&mut program, Guard::Audit)?;
        assert_eq!(program.run(&syn)?, (Verdict::Audited, NEXT));
        guard(&mut program, Guard::Enforce)?;
        assert_eq!(program.run(&syn)?, (Verdict::Dropped, DROP));
        assert_eq!(program.audited(&address)?, 2);
    }
    Ok(())
}

#[test]
fn no_connection_is_lost_from_the_count_when_processors_count_at_once() -> Result<()> {
    let mut program = alive(names::GUARD)?;
    guard(&mut program, Guard::Enforce)?;
    for stranger in ["198.51.100.7", "198.51.100.8", "198.51.100.9"] {
        let syn = Frame::new(&format!("{stranger}:40000"), NODE_V4).bytes();

        program.repeat_in_two_threads(&syn, REPEATED)?;

        assert_eq!(program.audited(stranger)?, 2 * u64::from(REPEATED));
    }
    Ok(())
}

/// Some milliseconds: long enough that two threads meet.
const REPEATED: u32 = 100_000;

#[test]
fn sources_and_whoever_is_allowed_are_let_in() -> Result<()> {
    let mut program = alive(names::GUARD)?;
    guard(&mut program, Guard::Enforce)?;
    program.list(names::ALLOWED_V4, "198.51.100.0/24")?;
    program.list(names::ALLOWED_V6, "fd00:99::/64")?;
    for (source, node) in [
        (STRANGER_V4, NODE_V4),
        (STRANGER_V6, NODE_V6),
        ("192.0.2.10:1", NODE_V4),
        ("[2001:db8::10]:1", NODE_V6),
    ] {
        let seen = program.run(&Frame::new(source, node).bytes())?;

        assert_eq!(seen, (Verdict::Passed, NEXT), "{source}");
    }
    Ok(())
}

#[test]
fn only_what_opens_a_connection_is_stopped() -> Result<()> {
    let mut program = alive(names::GUARD)?;
    guard(&mut program, Guard::Enforce)?;
    for flags in [ACK, SYN | ACK, ACK | 0x08, 0x04, ACK | 0x01, 0] {
        let frame = Frame::new(STRANGER_V4, NODE_V4).with(|frame| frame.flags = flags);

        assert_eq!(
            program.run(&frame.bytes())?,
            (Verdict::Passed, NEXT),
            "{flags:#x}"
        );
    }
    Ok(())
}

#[test]
fn other_ports_and_other_nodes_are_none_of_its_business() -> Result<()> {
    let mut program = alive(names::GUARD)?;
    guard(&mut program, Guard::Enforce)?;
    for destination in ["10.0.10.10:22", "10.0.10.11:10250"] {
        let frame = Frame::new(STRANGER_V4, destination);

        assert_eq!(program.run(&frame.bytes())?, (Verdict::Unrelated, NEXT));
    }
    Ok(())
}

#[test]
fn a_guard_whose_agent_is_dead_or_hangs_stops_nobody() -> Result<()> {
    let mut program = Program::load(names::GUARD)?;
    guard(&mut program, Guard::Enforce)?;
    let syn = Frame::new(STRANGER_V4, NODE_V4).bytes();

    assert_eq!(
        program.run(&syn)?,
        (Verdict::Passed, NEXT),
        "no heartbeat yet"
    );
    program.beat(Duration::from_secs(6))?;
    assert_eq!(program.run(&syn)?, (Verdict::Passed, NEXT), "old heartbeat");
    program.beat(Duration::ZERO)?;
    assert_eq!(program.run(&syn)?, (Verdict::Dropped, DROP));
    Ok(())
}

#[test]
fn a_connection_that_stands_is_never_cut() -> Result<()> {
    let mut program = alive(names::GUARD)?;
    let up = Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()?;
    ensure!(up.success(), "cannot set lo up: {up}");
    let kubelet = TcpListener::bind("127.0.0.1:0")?;
    let address = kubelet.local_addr()?;
    program.own("127.0.0.1")?;
    program.set(Settings {
        guard: Guard::Enforce as u32,
        kubelet_port: address.port(),
        ..STEERING
    })?;
    let client = TcpStream::connect(address)?;
    let frame = Frame::between(client.local_addr()?, address);

    assert_eq!(
        program.run(&frame.bytes())?,
        (Verdict::Connected, NEXT),
        "a SYN once more"
    );
    let data = frame.with(|frame| frame.flags = ACK);
    assert_eq!(program.run(&data.bytes())?, (Verdict::Passed, NEXT));
    Ok(())
}

#[test]
fn the_program_of_the_nic_guards_if_it_is_told_to() -> Result<()> {
    let mut program = alive(names::STEER)?;
    let syn = Frame::new(STRANGER_V4, NODE_V4).bytes();

    guard(&mut program, Guard::Enforce)?;
    assert_eq!(program.run(&syn)?, (Verdict::Passed, NEXT));
    program.set(Settings {
        flags: SETTINGS_FLAG_STEER | SETTINGS_FLAG_GUARD_NIC,
        guard: Guard::Enforce as u32,
        ..STEERING
    })?;
    assert_eq!(program.run(&syn)?, (Verdict::Dropped, DROP));
    Ok(())
}

fn alive(name: &'static str) -> Result<Program> {
    let mut program = Program::load(name)?;
    program.beat(Duration::ZERO)?;
    Ok(program)
}

fn guard(program: &mut Program, mode: Guard) -> Result<()> {
    program.set(Settings {
        guard: mode as u32,
        ..STEERING
    })
}
