//! Programs of others on the NIC: they stay, still run, and are named where they come before ours.
//!
//! What they are for is not tested, so they do nothing but count, or end with one verdict.

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
    programs::{LinkOrder, SchedClassifier, TcAttachType, tc::TcAttachOptions},
};
use proxymux_agent::steering::object::object;
use proxymux_common::{Counter, names};
use proxymux_testkit::{cluster::Cluster, netns::Reach, wait::eventually};
use proxymux_tests::{
    admin::{at_agent, scrape, status},
    events::{wait_for, wait_for_message},
    limits::{SOON, within},
};
use serde_json::Value;
use tokio::net::TcpStream;

use super::{attached, filters, node, stop, tcx_links};

#[test]
fn filters_of_others_stay_and_those_before_ours_are_named() -> Result<()> {
    let mut cluster = node("attach: netlink\nsteer-priority: 7\n")?;
    let host = cluster.node(0);
    host.tc(&["qdisc", "add", "dev", "ens3", "clsact"])?;
    // Classic BPF: the first matches every packet and so accepts it, the second none.
    for (priority, verdict) in [("5", "4294967295"), ("9", "0")] {
        let code = format!("1,6 0 0 {verdict}");
        let filter = ["filter", "add", "dev", "ens3", "ingress", "pref", priority];
        host.tc(&[&filter[..], &["bpf", "bytecode", &code]].concat())?;
    }

    cluster.start_agent(0)?;
    let told = wait_for(cluster.agent(0), 0, SOON, |event| {
        event.text("before").is_some()
    })?;

    assert_eq!(told.level, "WARN");
    let before = told.text("before").unwrap_or_default();
    assert!(before.contains("(priority 5)"), "{before}");
    assert!(!before.contains("(priority 9)"), "{before}");
    stop(cluster.agent(0))?;
    let left = filters(cluster.node(0))?;
    assert!(!left.contains("proxymux"), "{left}");
    assert!(left.contains("pref 5") && left.contains("pref 9"), "{left}");
    let qdiscs = cluster.node(0).tc(&["qdisc", "show", "dev", "ens3"])?;
    assert!(
        qdiscs.contains("clsact"),
        "it was there before us: {qdiscs}"
    );
    Ok(())
}

#[test]
fn a_program_of_others_and_ours_both_see_packets() -> Result<()> {
    // By TCX ours is the first; by netlink it comes after everything that is there by TCX.
    for (kind, first) in [("tcx", true), ("netlink", false)] {
        let mut cluster = reachable_node(kind)?;
        let other = cluster.node(0).block_on(async { Other::attach() })?;
        let id = other.id()?;
        cluster.start_agent(0)?;
        attached(cluster.agent(0), 0)?;

        wait_for_message(cluster.agent(0), 0, SOON, "admin address open")?;
        let seen = (ours(&cluster)?, other.seen()?);
        knock(&cluster)?;

        let now = (ours(&cluster)?, other.seen()?);
        assert!(now.0 > seen.0, "{kind}: ours sees none");
        assert!(now.1 > seen.1, "{kind}: the other sees none");
        let warned = cluster.agent(0).events().into_iter().find_map(|event| {
            let before = event.text("before")?;
            Some(before.to_owned())
        });
        let named = warned.is_some_and(|before| before.contains(&format!("(id {id})")));
        assert_eq!(named, !first, "{kind}: those before ours are named");

        stop(cluster.agent(0))?;
        assert_eq!(tcx_links(cluster.node(0))?, 1, "{kind}: the other stays");
    }
    Ok(())
}

/// One that comes later asks to be the first, as ours does: it gets what it asks for.
#[test]
fn a_program_that_gets_before_ours_and_ends_the_chain_hides_packets_and_is_named() -> Result<()> {
    gets_before("tcx", TC_ACT_OK)?;
    gets_before("netlink", TC_ACT_OK)
}

#[test]
fn a_program_that_gets_before_ours_and_hands_packets_on_is_named_too() -> Result<()> {
    gets_before("tcx", TC_ACT_UNSPEC)
}

fn gets_before(kind: &str, verdict: i32) -> Result<()> {
    let hides = verdict == TC_ACT_OK;
    let mut cluster = reachable_node(kind)?;
    cluster.start_agent(0)?;
    wait_for_message(cluster.agent(0), 0, SOON, "admin address open")?;
    // By TCX it would come before a filter.
    let last = (kind == "tcx").then(|| cluster.node(0).block_on(async { Other::attach() }));
    let last = last.transpose()?;
    let seen_by_last = || last.as_ref().map(Other::seen).transpose();
    knock(&cluster)?;
    assert_ne!(seen_by_last()?, Some(0), "one after ours still runs");
    assert!(ours(&cluster)? > 0.0, "{kind}: ours sees packets");
    assert_eq!(programs_before(&cluster)?, 0.0);
    let mark = cluster.agent(0).mark();

    let front = cluster.node(0).block_on(async { Front::attach(verdict) })?;

    // Nobody tells of it: it is found by looking.
    let told = wait_for(cluster.agent(0), mark, SOON, |event| {
        event.text("before").is_some()
    })?;
    assert_eq!(told.level, "WARN");
    assert_eq!(
        told.message,
        "other programs come before ours; whether they hide packets from it is not known"
    );
    let name = format!("tcx {FRONT} (id {})", front.id()?);
    let before = told.text("before").unwrap_or_default();
    assert!(before.contains(&name), "{before}");
    assert_eq!(programs_before(&cluster)?, 1.0, "{kind}");
    let position = position(&cluster)?;
    assert!(position.starts_with("after ") && position.contains(&name));

    let seen = (ours(&cluster)?, seen_by_last()?);
    knock(&cluster)?;
    let now = (ours(&cluster)?, seen_by_last()?);
    assert_eq!(now == seen, hides, "{kind} {verdict}: {seen:?}, {now:?}");

    drop(front);
    eventually(SOON, || {
        programs_before(&cluster).is_ok_and(|before| before == 0.0)
    });
    let seen = ours(&cluster)?;
    knock(&cluster)?;
    assert!(ours(&cluster)? > seen, "{kind}: ours sees packets again");
    stop(cluster.agent(0))?;
    let left = usize::from(last.is_some());
    assert_eq!(tcx_links(cluster.node(0))?, left, "{kind}: the last stays");
    Ok(())
}

/// A node that the master's machine can dial.
fn reachable_node(attach: &str) -> Result<Cluster> {
    Cluster::builder()
        .reach(Reach::Routed)
        .agent_lines(format!("attach: {attach}\n"))
        .verbosity("info")
        .build()
}

/// Connects to the node from the master's machine.
fn knock(cluster: &Cluster) -> Result<()> {
    let to = (cluster.node(0).ipv4(), 10250);
    let from = cluster.topology().masters().first().context("a master")?;
    from.block_on(within(SOON, "connect", TcpStream::connect(to)))
        .map(drop)
}

/// How many packets the agent says that its programs saw.
fn ours(cluster: &Cluster) -> Result<f64> {
    let metrics = cluster.node(0).block_on(scrape(&at_agent(cluster, 0)))?;
    let counted = metrics.beginning_with("proxymux_agent_steering_packets_total");
    Ok(counted.map(|(_, packets)| packets).sum())
}

fn programs_before(cluster: &Cluster) -> Result<f64> {
    let metrics = cluster.node(0).block_on(scrape(&at_agent(cluster, 0)))?;
    Ok(metrics.get("proxymux_agent_programs_before{program=\"proxymux_steer\"}"))
}

fn position(cluster: &Cluster) -> Result<String> {
    let status = cluster.node(0).block_on(status(&at_agent(cluster, 0)))?;
    let position = status.pointer("/attachments/0/position");
    let position = position.and_then(Value::as_str).context("a position")?;
    Ok(position.to_owned())
}

/// A program that ends with one verdict, attached first by TCX until it is dropped.
struct Front(Ebpf);

impl Front {
    fn attach(verdict: i32) -> Result<Self> {
        let mut front = Self(Ebpf::load(&object_of_one_verdict(FRONT, verdict))?);
        let program = front.0.program_mut(FRONT).context("the program")?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load()?;
        let first = TcAttachOptions::TcxOrder(LinkOrder::first());
        program.attach_with_options("ens3", TcAttachType::Ingress, first)?;
        Ok(front)
    }

    fn id(&self) -> Result<u32> {
        let program = self.0.program(FRONT).context("the program")?;
        Ok(program.info()?.id())
    }
}

/// The kernel cuts names to 15 characters.
const FRONT: &str = "foreign_front";

/// A program of others that comes before ours and accepts what it sees: the chain ends there.
const TC_ACT_OK: i32 = 0;
/// The same, handing everything on.
const TC_ACT_UNSPEC: i32 = -1;

/// The smallest ELF file with a program that loaders take: `return verdict;`.
fn object_of_one_verdict(name: &str, verdict: i32) -> Vec<u8> {
    let strings = format!("\0classifier\0.symtab\0.strtab\0{name}\0").into_bytes();
    // Where they begin in there.
    let (section, symtab, strtab, function) = (1_u32, 12_u32, 20_u32, 28_u32);
    // Move the verdict to the first register, and exit.
    let mut code = vec![0xb7, 0, 0, 0];
    code.extend(verdict.to_le_bytes());
    code.extend([0x95, 0, 0, 0, 0, 0, 0, 0]);
    // The first symbol is none; the second is a global function at the start of section 1.
    let mut symbols = vec![0; 24];
    symbols.extend(function.to_le_bytes());
    symbols.extend([0x12, 0, 1, 0]);
    symbols.extend([0_u64, code.len() as u64].map(u64::to_le_bytes).concat());

    let (code_at, symbols_at) = (64_u64, 64 + code.len() as u64);
    let strings_at = symbols_at + symbols.len() as u64;
    let headers_at = (strings_at + strings.len() as u64).next_multiple_of(8);
    let header = |name: u32, kind: u32, flags: u64, (at, length): (u64, usize), rest: [u64; 3]| {
        let [link_and_info, alignment, entry] = rest;
        let words = [flags, 0, at, length as u64, link_and_info, alignment, entry];
        let words = words.map(u64::to_le_bytes).concat();
        [&name.to_le_bytes()[..], &kind.to_le_bytes(), &words].concat()
    };

    // 64 bits, little endian; a relocatable file for BPF.
    let mut object = b"\x7fELF\x02\x01\x01".to_vec();
    object.resize(16, 0);
    object.extend([1_u16, 247].map(u16::to_le_bytes).concat());
    object.extend(1_u32.to_le_bytes());
    object.extend([0, 0, headers_at].map(u64::to_le_bytes).concat());
    object.extend(0_u32.to_le_bytes());
    object.extend([64_u16, 0, 0, 64, 4, 3].map(u16::to_le_bytes).concat());
    object.extend(&code);
    object.extend(&symbols);
    object.extend(&strings);
    object.resize(usize::try_from(headers_at).unwrap_or_default(), 0);
    object.extend([0; 64]);
    // Allocated and executable; the strings of the symbols are section 3, the first global one is 1.
    object.extend(header(section, 1, 6, (code_at, code.len()), [0, 8, 0]));
    let symbols = (symbols_at, symbols.len());
    object.extend(header(symtab, 2, 0, symbols, [3 | 1 << 32, 8, 24]));
    object.extend(header(strtab, 3, 0, (strings_at, strings.len()), [0, 1, 0]));
    object
}

/// A program that passes and counts packets, attached last by TCX until it is dropped. It is a
/// second copy of ours, which does nothing else while nobody tells it what to do.
struct Other {
    loaded: Ebpf,
    statistics: PerCpuArray<MapData, Counter>,
}

impl Other {
    fn attach() -> Result<Self> {
        let mut loaded = Ebpf::load(object(false))?;
        let map = loaded.take_map(names::STATISTICS).context("its counters")?;
        let statistics = PerCpuArray::try_from(map)?;
        let mut other = Self { loaded, statistics };
        let program = other.program()?;
        program.load()?;
        let last = TcAttachOptions::TcxOrder(LinkOrder::last());
        program.attach_with_options("ens3", TcAttachType::Ingress, last)?;
        Ok(other)
    }

    fn program(&mut self) -> Result<&mut SchedClassifier> {
        let program = self.loaded.program_mut(names::STEER);
        Ok(program.context("the program")?.try_into()?)
    }

    fn id(&self) -> Result<u32> {
        let program = self.loaded.program(names::STEER).context("the program")?;
        Ok(program.info()?.id())
    }

    /// How many packets it has seen.
    fn seen(&self) -> Result<u64> {
        let mut seen = 0;
        for counters in self.statistics.iter() {
            seen += counters?.iter().map(|counter| counter.packets).sum::<u64>();
        }
        Ok(seen)
    }
}
