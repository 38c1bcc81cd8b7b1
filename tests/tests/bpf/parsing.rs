//! Which frames the programs take for what, in a table.
//!
//! What is kubelet-bound and from a listed source counts as stale here, as there is no heartbeat.
//! Frames that end within their IP header are not in it: new kernels refuse to run them. Every
//! length of a frame is tested beside the parsing itself.

use anyhow::{Context, Result};
use proxymux_common::{Verdict, names};

use crate::{
    program::{NEXT, NODE_V4, NODE_V6, Program},
    wire::{ACK, Frame, ICMP, ICMP_V6, TCP, UDP, changed, cut, other},
};

const MASTER_V4: &str = "192.0.2.10:40000";
const MASTER_V6: &str = "[2001:db8::10]:40000";

#[test]
fn frames_are_taken_for_what_they_are() -> Result<()> {
    let mut program = Program::load(names::STEER)?;
    for (name, frame, verdict) in v4().into_iter().chain(v6()).chain(neither()) {
        let seen = program.run(&frame).context(name)?;

        assert_eq!(seen, (verdict, NEXT), "{name}");
    }
    Ok(())
}

#[test]
fn before_the_agent_has_filled_the_maps_everything_passes_unseen() -> Result<()> {
    let mut program = Program::load(names::STEER)?;
    program.set(proxymux_common::Settings::default())?;
    for frame in [
        Frame::new(MASTER_V4, NODE_V4),
        Frame::new(MASTER_V6, NODE_V6),
        Frame::new("192.0.2.10:0", "10.0.10.10:0"),
        Frame::new(MASTER_V4, NODE_V4).first_fragment(),
    ] {
        assert_eq!(program.run(&frame.bytes())?, (Verdict::Unrelated, NEXT));
    }
    Ok(())
}

type Row = (&'static str, Vec<u8>, Verdict);

fn v4() -> Vec<Row> {
    let syn = || Frame::new(MASTER_V4, NODE_V4);
    let with = |change: fn(&mut Frame)| syn().with(change).bytes();
    let changed = |index: usize, value: u8| changed(syn().bytes(), index, value);
    let cut = |length: usize| cut(syn().bytes(), length);
    let from = |source: &str| Frame::new(source, NODE_V4).bytes();
    let to = |destination: &str| Frame::new(MASTER_V4, destination).bytes();
    vec![
        ("v4", syn().bytes(), Verdict::Stale),
        (
            "v4, four bytes of options",
            with(|f| f.options = 4),
            Verdict::Stale,
        ),
        (
            "v4, all options that fit",
            with(|f| f.options = 40),
            Verdict::Stale,
        ),
        (
            "v4, may be fragmented",
            with(|f| f.fragment = 0),
            Verdict::Stale,
        ),
        (
            "v4, an ACK without a socket",
            with(|f| f.flags = ACK),
            Verdict::Stale,
        ),
        (
            "v4, first fragment",
            syn().first_fragment().bytes(),
            Verdict::Opaque,
        ),
        (
            "v4, last fragment",
            syn().last_fragment().bytes(),
            Verdict::Opaque,
        ),
        (
            "v4, fragment for another node",
            Frame::new(MASTER_V4, "10.0.10.11:10250")
                .first_fragment()
                .bytes(),
            Verdict::Unrelated,
        ),
        (
            "v4, fragment of UDP",
            syn().first_fragment().with(|f| f.protocol = UDP).bytes(),
            Verdict::Unrelated,
        ),
        (
            "v4, cut in the TCP header",
            cut(14 + 20 + 13),
            Verdict::Unreadable,
        ),
        (
            "v4, TCP header cut behind its flags",
            cut(14 + 20 + 14),
            Verdict::Stale,
        ),
        (
            "v4, options longer than the frame",
            changed(14, 0x4f),
            Verdict::Unreadable,
        ),
        (
            "v4, header shorter than itself",
            changed(14, 0x44),
            Verdict::Unreadable,
        ),
        (
            "v4, version of another",
            changed(14, 0x65),
            Verdict::Unreadable,
        ),
        ("v4, UDP", with(|f| f.protocol = UDP), Verdict::Unrelated),
        ("v4, ICMP", with(|f| f.protocol = ICMP), Verdict::Unrelated),
        (
            "v4, another port",
            to("10.0.10.10:10255"),
            Verdict::Unrelated,
        ),
        ("v4, port 0", to("10.0.10.10:0"), Verdict::Unrelated),
        (
            "v4, another node",
            to("10.0.10.11:10250"),
            Verdict::Unrelated,
        ),
        (
            "v4, last address of the sources",
            from("192.0.2.255:1"),
            Verdict::Stale,
        ),
        (
            "v4, next to the sources",
            from("192.0.3.0:1"),
            Verdict::Passed,
        ),
        (
            "v4, an agent's own master",
            from("203.0.113.1:1"),
            Verdict::Passed,
        ),
        (
            "v4, of a session",
            Frame::new("192.0.2.10:12250", "10.0.10.10:40000").bytes(),
            Verdict::Session,
        ),
        (
            "v4, of another node's session",
            Frame::new("192.0.2.10:12250", "10.0.10.11:40000").bytes(),
            Verdict::Unrelated,
        ),
    ]
}

fn v6() -> Vec<Row> {
    let syn = || Frame::new(MASTER_V6, NODE_V6);
    let with = |change: fn(&mut Frame)| syn().with(change).bytes();
    let extended = |extension: u8| syn().with(|f| f.extension = Some(extension)).bytes();
    let cut = |length: usize| cut(syn().bytes(), length);
    vec![
        ("v6", syn().bytes(), Verdict::Stale),
        ("v6, hop-by-hop options", extended(0), Verdict::Opaque),
        ("v6, routing header", extended(43), Verdict::Opaque),
        ("v6, fragment", extended(44), Verdict::Opaque),
        ("v6, authentication header", extended(51), Verdict::Opaque),
        ("v6, destination options", extended(60), Verdict::Opaque),
        (
            "v6, options for another node",
            Frame::new(MASTER_V6, "[fd00:10::11]:10250")
                .with(|f| f.extension = Some(0))
                .bytes(),
            Verdict::Unrelated,
        ),
        (
            "v6, no next header",
            with(|f| f.protocol = 59),
            Verdict::Unrelated,
        ),
        ("v6, UDP", with(|f| f.protocol = UDP), Verdict::Unrelated),
        (
            "v6, ICMPv6",
            with(|f| f.protocol = ICMP_V6),
            Verdict::Unrelated,
        ),
        (
            "v6, cut in the TCP header",
            cut(14 + 40 + 13),
            Verdict::Unreadable,
        ),
        (
            "v6, another port",
            Frame::new(MASTER_V6, "[fd00:10::10]:443").bytes(),
            Verdict::Unrelated,
        ),
        (
            "v6, another node",
            Frame::new(MASTER_V6, "[fd00:10::11]:10250").bytes(),
            Verdict::Unrelated,
        ),
        (
            "v6, from elsewhere",
            Frame::new("[2001:db9::1]:1", NODE_V6).bytes(),
            Verdict::Passed,
        ),
        (
            "v6, a source of IPv4 in the form of IPv6",
            Frame::new("[::ffff:192.0.2.10]:1", NODE_V6).bytes(),
            Verdict::Passed,
        ),
        (
            "v6, of a session",
            Frame::new("[2001:db8::10]:12250", "[fd00:10::10]:40000").bytes(),
            Verdict::Session,
        ),
    ]
}

fn neither() -> Vec<Row> {
    let mut tagged = other(0x8100);
    // Behind the tag is what would be steered without it.
    tagged.splice(14.., [0, 7]);
    let steered = Frame::new(MASTER_V4, NODE_V4).with(|f| f.protocol = TCP);
    tagged.extend(steered.bytes().split_off(12));
    vec![
        ("ARP", other(0x0806), Verdict::Unrelated),
        ("LLDP", other(0x88cc), Verdict::Unrelated),
        (
            "a tag that the kernel has left in",
            tagged,
            Verdict::Unrelated,
        ),
    ]
}
