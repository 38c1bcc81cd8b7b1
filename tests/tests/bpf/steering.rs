//! What the NIC's program does with a kubelet-bound packet of a listed source.
//!
//! An assignment is refused by the kernel here, since the frame came in at no device: that it is
//! tried at all shows that everything before it was decided for steering.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use proxymux_common::{LISTENER_V4, LISTENER_V6, Settings, Verdict, names};

use crate::{
    program::{NEXT, NODE_V4, NODE_V6, Program, STEERING},
    wire::{ACK, Frame},
};

const LONG_AGO: Duration = Duration::from_secs(6);
const JUST_NOW: Duration = Duration::ZERO;

#[test]
fn a_packet_is_steered_while_the_heartbeat_is_fresh_and_there_is_a_listener() -> Result<()> {
    let mut program = Program::load(names::STEER)?;
    let syn = Frame::new("192.0.2.10:40000", NODE_V4).bytes();

    assert_eq!(
        program.run(&syn)?,
        (Verdict::Stale, NEXT),
        "no heartbeat yet"
    );
    program.beat(LONG_AGO)?;
    assert_eq!(program.run(&syn)?, (Verdict::Stale, NEXT), "old heartbeat");
    program.beat(JUST_NOW)?;
    assert_eq!(program.run(&syn)?, (Verdict::NoListener, NEXT));
    program.listen(LISTENER_V4, &TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?)?;
    assert_eq!(
        program.run(&syn)?,
        (Verdict::NoListener, NEXT),
        "closed again"
    );
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    program.listen(LISTENER_V4, &listener)?;
    assert_eq!(program.run(&syn)?, (Verdict::AssignFailed, NEXT));
    program.beat(LONG_AGO)?;
    assert_eq!(
        program.run(&syn)?,
        (Verdict::Stale, NEXT),
        "a listener that hangs"
    );
    Ok(())
}

#[test]
fn families_have_a_listener_each() -> Result<()> {
    let mut program = Program::load(names::STEER)?;
    program.beat(JUST_NOW)?;
    let v4 = Frame::new("192.0.2.10:40000", NODE_V4).bytes();
    let v6 = Frame::new("[2001:db8::10]:40000", NODE_V6).bytes();
    let for_v4 = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    program.listen(LISTENER_V4, &for_v4)?;

    assert_eq!(program.run(&v6)?, (Verdict::NoListener, NEXT));
    assert_eq!(program.run(&v4)?, (Verdict::AssignFailed, NEXT));
    let for_v6 = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0))?;
    program.listen(LISTENER_V6, &for_v6)?;
    assert_eq!(program.run(&v6)?, (Verdict::AssignFailed, NEXT));
    Ok(())
}

#[test]
fn with_steering_off_a_source_is_passed() -> Result<()> {
    let mut program = Program::load(names::STEER)?;
    program.beat(JUST_NOW)?;
    program.set(Settings {
        flags: 0,
        ..STEERING
    })?;

    let seen = program.run(&Frame::new("192.0.2.10:40000", NODE_V4).bytes())?;

    assert_eq!(seen, (Verdict::Passed, NEXT));
    Ok(())
}

/// The node's end of each connection is the kubelet's, as one made before steering began.
#[test]
fn a_connection_that_stands_or_has_just_ended_is_left_alone() -> Result<()> {
    for (loopback, network, list) in [
        ("127.0.0.1:0", "127.0.0.0/8", names::SOURCES_V4),
        ("[::1]:0", "::1/128", names::SOURCES_V6),
    ] {
        let mut program = Program::load(names::STEER)?;
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()?;
        ensure!(up.success(), "cannot set lo up: {up}");
        let kubelet = TcpListener::bind(loopback)?;
        let address = kubelet.local_addr()?;
        program.own(&address.ip().to_string())?;
        program.list(list, network)?;
        program.set(Settings {
            kubelet_port: address.port(),
            ..STEERING
        })?;
        program.beat(JUST_NOW)?;

        let client = TcpStream::connect(address)?;
        let from = client.local_addr()?;
        let (served, _) = kubelet.accept()?;
        let data = Frame::between(from, address)
            .with(|frame| frame.flags = ACK)
            .bytes();
        let syn = Frame::between(from, address).bytes();
        let another = SocketAddr::new(from.ip(), 1);
        let stray = Frame::between(another, address).bytes();

        assert_eq!(program.run(&data)?, (Verdict::Connected, NEXT));
        assert_eq!(program.run(&syn)?, (Verdict::Connected, NEXT));
        assert_eq!(
            program.run(&stray)?,
            (Verdict::NoListener, NEXT),
            "finds the kubelet's own"
        );
        // Who closes first keeps the addresses in TIME_WAIT.
        drop(served);
        drop(client);
        assert_eq!(
            program.run(&syn)?,
            (Verdict::Connected, NEXT),
            "in TIME_WAIT"
        );
    }
    Ok(())
}
