//! Where the eBPF programs are attached, and what keeps them there.
//!
//! Each test has a node of its own whose NIC is called ens3, and looks at it with `tc` and
//! by asking for the TCX chain: what the agent says of itself is compared with what the kernel says.
//! What other programs on the NIC have to do with it is in `others`.

#[path = "steering_attach/others.rs"]
mod others;

use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::{net::if_::if_nametoindex, sys::signal::Signal};
use proxymux_common::user::{TcxEntry, tcx_ingress};
use proxymux_testkit::{
    cluster::{AGENT, Cluster, program},
    netns::Host,
    process::Daemon,
};
use proxymux_tests::{
    events::{wait_for_message, with_message},
    limits::SOON,
};

/// What `tc` shows of our filter.
const OURS: &str = "handle 0x70786d75 proxymux_steer";

#[test]
fn by_netlink_the_program_comes_with_its_own_qdisc_and_goes_with_it() -> Result<()> {
    let mut cluster = node("attach: netlink\nsteer-priority: 7\n")?;
    cluster.start_agent(0)?;
    let attached = attached(cluster.agent(0), 0)?;

    assert_eq!(attached.text("attach"), Some("netlink"));
    assert_eq!(attached.text("device"), Some("ens3"));
    let filters = filters(cluster.node(0))?;
    assert!(filters.contains(OURS), "{filters}");
    assert!(filters.contains("pref 7 "), "{filters}");
    assert_eq!(tcx_links(cluster.node(0))?, 0);

    stop(cluster.agent(0))?;
    assert_clean(cluster.node(0))
}

#[test]
fn by_tcx_the_program_needs_no_qdisc() -> Result<()> {
    let mut cluster = node("attach: tcx\nmode: ebpf\n")?;
    cluster.start_agent(0)?;
    let attached = attached(cluster.agent(0), 0)?;

    assert_eq!(attached.text("attach"), Some("tcx"));
    assert_eq!(tcx_links(cluster.node(0))?, 1);
    assert_eq!(filters(cluster.node(0))?, "");
    let chosen = wait_for_message(cluster.agent(0), 0, SOON, "mode chosen")?;
    assert_eq!(chosen.text("mode"), Some("ebpf"));
    assert_eq!(chosen.text("reason"), Some("configured"));

    stop(cluster.agent(0))?;
    assert_clean(cluster.node(0))
}

#[test]
fn what_a_killed_agent_left_is_removed_by_the_next_whatever_its_mode() -> Result<()> {
    let mut cluster = node("attach: netlink\n")?;
    for next in ["mode: auto\n", "mode: userspace\n"] {
        cluster.start_agent(0)?;
        attached(cluster.agent(0), 0)?;
        cluster.agent(0).kill()?;
        let left = filters(cluster.node(0))?;
        assert!(left.contains(OURS), "a filter survives SIGKILL: {left}");

        let config = cluster.agent_config(0)?.replace("attach: netlink\n", next);
        cluster.start_agent_with(0, &config)?;

        let removed = "removed what a killed agent left";
        wait_for_message(cluster.agent(0), 0, SOON, removed)?;
        wait_for_message(cluster.agent(0), 0, SOON, "mode chosen")?;
        assert_eq!(filters(cluster.node(0))?, "");
        stop(cluster.agent(0))?;
        assert_clean(cluster.node(0))?;
    }
    Ok(())
}

/// Each would take the other's filter for what a killed agent left.
#[test]
fn a_second_agent_leaves_the_first_ones_program_alone_and_says_whose_it_is() -> Result<()> {
    for kind in ["netlink", "tcx"] {
        let mut cluster = node(&format!("attach: {kind}\n"))?;
        cluster.start_agent(0)?;
        attached(cluster.agent(0), 0)?;
        let named = format!("another agent, process {},", cluster.agent(0).pid());
        let config = cluster.agent_config(0)?;

        let mut auto = cluster.spawn_agent(0, "auto.yaml", &config)?;
        let chosen = wait_for_message(&mut auto, 0, SOON, "mode chosen")?;
        assert_eq!(chosen.text("mode"), Some("userspace"));
        let reason = chosen.text("reason").unwrap_or_default();
        assert!(reason.contains(&named), "{reason}");
        stop(&mut auto)?;
        let insists = format!("{config}mode: ebpf\n");
        let mut insists = cluster.spawn_agent(0, "ebpf.yaml", &insists)?;
        let ended = ends_at_once(&mut insists)?;
        assert!(ended.contains(&named), "{ended}");
        let userspace = format!("{config}mode: userspace\n");
        let mut userspace = cluster.spawn_agent(0, "userspace.yaml", &userspace)?;
        wait_for_message(&mut userspace, 0, SOON, "mode chosen")?;
        stop(&mut userspace)?;

        let there = filters(cluster.node(0))?.contains(OURS);
        let links = tcx_links(cluster.node(0))?;
        assert_eq!((there, links == 1), (kind == "netlink", kind == "tcx"));
        assert_eq!(with_message(cluster.agent(0), LOST), []);
        // What is being ended gives its place up before it has ended.
        cluster.agent(0).signal(Signal::SIGTERM)?;
        let mut next = cluster.spawn_agent(0, "next.yaml", &config)?;
        assert_eq!(attached(&mut next, 0)?.text("attach"), Some(kind));
        stop(&mut next)?;
        cluster.agent(0).wait(SOON)?;
        assert_clean(cluster.node(0))?;
    }
    Ok(())
}

#[test]
fn a_qdisc_that_somebody_deletes_is_put_back_with_the_filter() -> Result<()> {
    let mut cluster = node("attach: netlink\n")?;
    cluster.start_agent(0)?;
    attached(cluster.agent(0), 0)?;
    let mark = cluster.agent(0).mark();

    cluster
        .node(0)
        .tc(&["qdisc", "del", "dev", "ens3", "clsact"])?;

    let lost = wait_for_message(cluster.agent(0), mark, SOON, LOST)?;
    let reason = lost.text("reason").unwrap_or_default();
    assert!(reason.contains("clsact"), "{reason}");
    attached(cluster.agent(0), mark)?;
    let filters = filters(cluster.node(0))?;
    assert!(filters.contains(OURS), "{filters}");
    assert_eq!(with_message(cluster.agent(0), LOST).len(), 1, "said once");
    stop(cluster.agent(0))?;
    assert_clean(cluster.node(0))
}

#[test]
fn a_link_that_somebody_detaches_is_put_back() -> Result<()> {
    let mut cluster = node("attach: tcx\n")?;
    cluster.start_agent(0)?;
    attached(cluster.agent(0), 0)?;
    let mark = cluster.agent(0).mark();

    let link = tcx_chain(cluster.node(0))?
        .first()
        .context("our link")?
        .link;
    let id = link.to_string();
    let mut detach = cluster.node(0).command("bpftool");
    let detached = detach.args(["link", "detach", "id", &id]).output()?;
    ensure!(detached.status.success(), "{detached:?}");

    // Nobody tells of it: it is found by looking.
    wait_for_message(cluster.agent(0), mark, SOON, LOST)?;
    attached(cluster.agent(0), mark)?;
    assert_eq!(tcx_links(cluster.node(0))?, 1);
    stop(cluster.agent(0))?;
    assert_clean(cluster.node(0))
}

#[test]
fn a_nic_that_is_renamed_keeps_its_program() -> Result<()> {
    for kind in ["tcx", "netlink"] {
        let mut cluster = node(&format!("attach: {kind}\n"))?;
        cluster.start_agent(0)?;
        attached(cluster.agent(0), 0)?;
        let mark = cluster.agent(0).mark();

        rename(cluster.node(0), "ens3", "ens9")?;

        let renamed = "device was renamed, the program stays on it";
        let told = wait_for_message(cluster.agent(0), mark, SOON, renamed)?;
        assert_eq!(told.text("now"), Some("ens9"));
        assert_eq!(with_message(cluster.agent(0), ATTACHED).len(), 1);
        stop(cluster.agent(0))?;
        assert_eq!(tcx_links(cluster.node(0))?, 0);
        let qdiscs = cluster.node(0).tc(&["qdisc", "show"])?;
        assert!(!qdiscs.contains("clsact"), "{qdiscs}");
    }
    Ok(())
}

#[test]
fn a_nic_that_is_removed_is_waited_for() -> Result<()> {
    for kind in ["tcx", "netlink"] {
        let lines = format!("attach: {kind}\nnet-inf: ens7\nprivate-ip-address: 10.77.0.1\n");
        let mut cluster = node("")?;
        let config = config_with(&cluster, &lines)?;
        add_nic(cluster.node(0))?;
        cluster.start_agent_with(0, &config)?;
        assert_eq!(attached(cluster.agent(0), 0)?.text("device"), Some("ens7"));
        let mark = cluster.agent(0).mark();

        cluster.node(0).ip(&["link", "del", "ens7"])?;
        wait_for_message(cluster.agent(0), mark, SOON, LOST)?;
        wait_for_message(cluster.agent(0), mark, SOON, WAITS)?;
        add_nic(cluster.node(0))?;

        let again = attached(cluster.agent(0), mark)?;
        assert_eq!(again.text("attach"), Some(kind));
        assert_eq!(with_message(cluster.agent(0), WAITS).len(), 1, "said once");
        stop(cluster.agent(0))?;
    }
    Ok(())
}

#[test]
fn without_net_inf_the_interface_with_the_private_address_is_used_and_said() -> Result<()> {
    let mut cluster = node("")?;
    let config = config_with(&cluster, "net-inf: ens77\n")?;

    cluster.start_agent_with(0, &config)?;

    assert_eq!(attached(cluster.agent(0), 0)?.text("device"), Some("ens3"));
    let said = "net-inf does not exist, using the interface that holds private-ip-address";
    assert_eq!(with_message(cluster.agent(0), said).len(), 1);
    stop(cluster.agent(0))?;

    let ended = ends_at_once(cluster.start_agent_with(0, &format!("{config}mode: ebpf\n"))?)?;
    assert!(
        ended.contains("the interface ens77 does not exist"),
        "{ended}"
    );
    Ok(())
}

#[test]
fn a_missing_capability_is_named_and_only_auto_goes_on_without() -> Result<()> {
    let cluster = node("")?;
    let config = cluster.dir().join("caps.yaml");
    for (dropped, named) in [
        (&["bpf", "sys_admin"][..], "missing CAP_BPF:"),
        (&["net_admin", "sys_admin"], "missing CAP_NET_ADMIN:"),
        (
            &["bpf", "sys_admin", "net_admin"],
            "missing CAP_BPF and CAP_NET_ADMIN:",
        ),
    ] {
        std::fs::write(&config, cluster.agent_config(0)?)?;
        let mut agent = without(&cluster, dropped, &config)?;
        let chosen = wait_for_message(&mut agent, 0, SOON, "mode chosen")?;
        assert_eq!(chosen.text("mode"), Some("userspace"));
        let reason = chosen.text("reason").unwrap_or_default().to_owned();
        assert!(reason.starts_with(named), "{reason}");
        stop(&mut agent)?;

        let insists = format!("{}mode: ebpf\n", cluster.agent_config(0)?);
        std::fs::write(&config, insists)?;
        let ended = ends_at_once(&mut without(&cluster, dropped, &config)?)?;
        assert!(ended.contains(&reason), "{ended}");
    }
    // Nobody may believe that the port is guarded.
    let guarded = "guard: enforce\nguard-allow: [ 10.0.10.0/24 ]\n";
    std::fs::write(&config, format!("{}{guarded}", cluster.agent_config(0)?))?;
    let ended = ends_at_once(&mut without(&cluster, &["bpf", "sys_admin"], &config)?)?;
    assert!(
        ended.contains("guard `enforce` needs eBPF: missing CAP_BPF"),
        "{ended}"
    );
    assert_clean(cluster.node(0))?;
    Ok(())
}

#[test]
fn two_capabilities_are_enough() -> Result<()> {
    for kind in ["tcx", "netlink"] {
        let cluster = node("")?;
        let config = cluster.dir().join("two.yaml");
        let lines = format!("{}mode: ebpf\nattach: {kind}\n", cluster.agent_config(0)?);
        std::fs::write(&config, lines)?;

        let mut agent = with_caps(&cluster, "-all,+bpf,+net_admin", &config)?;

        assert_eq!(attached(&mut agent, 0)?.text("attach"), Some(kind));
        stop(&mut agent)?;
        assert_clean(cluster.node(0))?;
    }
    Ok(())
}

/// A node and a master that does not run: sessions are none of this.
fn node(lines: &str) -> Result<Cluster> {
    Cluster::builder()
        .agent_lines(lines)
        .verbosity("info")
        .build()
}

/// The usual configuration, with other values for some of its keys.
fn config_with(cluster: &Cluster, lines: &str) -> Result<String> {
    let key = |line: &str| line.split(':').next().map(str::to_owned);
    let changed: Vec<_> = lines.lines().filter_map(key).collect();
    let usual = cluster.agent_config(0)?;
    let kept = usual
        .lines()
        .filter(|line| key(line).is_none_or(|key| !changed.contains(&key)));
    let kept: Vec<_> = kept.collect();
    Ok(format!("{}\n{lines}", kept.join("\n")))
}

fn attached(agent: &mut Daemon, mark: usize) -> Result<proxymux_testkit::process::LogEvent> {
    wait_for_message(agent, mark, SOON, ATTACHED)
}

fn stop(agent: &mut Daemon) -> Result<()> {
    agent.signal(Signal::SIGTERM)?;
    let ended = agent.wait(SOON)?;
    ensure!(ended.code() == Some(0), "{ended}");
    Ok(())
}

/// What an agent that does not start says at last.
fn ends_at_once(agent: &mut Daemon) -> Result<String> {
    let ended = agent.wait(SOON)?;
    ensure!(ended.code() == Some(1), "{ended}");
    agent.lines().pop().context("it says why")
}

fn assert_clean(host: &Host) -> Result<()> {
    let qdiscs = host.tc(&["qdisc", "show", "dev", "ens3"])?;
    ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    ensure!(tcx_links(host)? == 0, "a TCX link is left");
    Ok(())
}

fn filters(host: &Host) -> Result<String> {
    host.tc(&["filter", "show", "dev", "ens3", "ingress"])
}

fn tcx_links(host: &Host) -> Result<usize> {
    Ok(tcx_chain(host)?.len())
}

/// The programs in the chain of the host's NIC, whatever it is called now.
fn tcx_chain(host: &Host) -> Result<Vec<TcxEntry>> {
    let chain = host.block_on(async {
        let nic = ["ens3", "ens9"].map(if_nametoindex);
        let nic = nic.into_iter().find_map(Result::ok);
        tcx_ingress(nic.unwrap_or_default())
    });
    chain.context("the TCX chain of the NIC")
}

/// Kernels before 6.2 want it down, and forget its routes: nothing here is sent.
fn rename(host: &Host, from: &str, to: &str) -> Result<()> {
    host.ip(&["link", "set", from, "down"])?;
    host.ip(&["link", "set", from, "name", to])?;
    host.ip(&["link", "set", to, "up"]).map(drop)
}

fn add_nic(host: &Host) -> Result<()> {
    host.ip(&[
        "link", "add", "ens7", "type", "veth", "peer", "name", "far7",
    ])?;
    host.ip(&["addr", "add", "10.77.0.1/24", "dev", "ens7"])?;
    host.ip(&["link", "set", "ens7", "up"]).map(drop)
}

fn without(cluster: &Cluster, capabilities: &[&str], config: &std::path::Path) -> Result<Daemon> {
    let dropped: Vec<_> = capabilities.iter().map(|name| format!("-{name}")).collect();
    with_caps(cluster, &dropped.join(","), config)
}

/// An agent with other capabilities than root's, as `setpriv` writes them.
fn with_caps(cluster: &Cluster, caps: &str, config: &std::path::Path) -> Result<Daemon> {
    let mut command: Command = cluster.node(0).command("setpriv");
    command.arg(format!("--bounding-set={caps}"));
    command.arg(format!("--inh-caps={caps}"));
    command.arg("--").arg(program(AGENT)?);
    command.arg(format!("--config={}", config.display()));
    Daemon::spawn("agent with other capabilities", command)
}

const ATTACHED: &str = "program attached";
const LOST: &str = "program is off its device";
const WAITS: &str = "program is not attached, trying again";
