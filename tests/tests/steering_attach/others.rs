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
use proxymux_tests::{
    admin::{at_agent, scrape},
    events::{wait_for, wait_for_message},
    limits::SOON,
};
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

#[tokio::test]
async fn a_program_of_others_and_ours_both_see_packets() -> Result<()> {
    // By TCX ours is the first; by netlink it comes after everything that is there by TCX.
    for (kind, first) in [("tcx", true), ("netlink", false)] {
        let mut cluster = node(&format!("attach: {kind}\n"))?;
        let other = cluster.node(0).block_on(async { Other::attach() })?;
        let id = other.id()?;
        cluster.start_agent(0)?;
        attached(cluster.agent(0), 0)?;

        wait_for_message(cluster.agent(0), 0, SOON, "admin address open")?;
        let to = (cluster.node(0).ipv4(), 10250);
        let from = cluster.topology().masters().first().context("a master")?;
        // No kubelet runs here: that a packet arrives is all that is wanted.
        let refused = from.block_on(TcpStream::connect(to));
        assert!(refused.is_err(), "{refused:?}");

        assert!(other.seen()? > 0, "{kind}: the other sees none");
        let metrics = scrape(&at_agent(&cluster, 0)).await?;
        let counted = metrics.beginning_with("proxymux_agent_steering_packets_total");
        let ours: f64 = counted.map(|(_, packets)| packets).sum();
        assert!(ours > 0.0, "{kind}: ours sees none");
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
