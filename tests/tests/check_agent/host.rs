//! The node itself: its device, the programs and rules of others on it.

use anyhow::Result;
use proxymux_testkit::{cluster::Cluster, wait::eventually};
use proxymux_tests::{events::wait_for_message, limits::SOON};

use crate::seen::check;

#[test]
fn a_device_that_is_not_there_or_down_is_told() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let config = cluster.agent_config(0)?;
    let wrong = config.replace("net-inf: ens3", "net-inf: eth7");

    let seen = check(&cluster, &wrong)?;

    seen.broken(
        "nic",
        "warning",
        "eth7 does not exist",
        "set `net-inf: ens3`",
    );
    check(&cluster, &config)?.fine("nic");
    // Who insists on eBPF does not start like that.
    let insists = check(&cluster, &format!("{wrong}mode: ebpf\n"))?;
    insists.broken("nic", "error", "eth7 does not exist", "set `net-inf: ens3`");

    cluster.node(0).link_down()?;
    let seen = check(&cluster, &config)?;
    seen.broken("nic", "warning", "ens3 is down", "ip link set dev ens3 up");
    cluster.node(0).link_up()?;
    eventually(SOON, || {
        check(&cluster, &config).is_ok_and(|seen| seen.level("nic") == "ok")
    });
    Ok(())
}

#[test]
fn a_port_of_a_bridge_is_told_with_the_bridge_to_take_instead() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let config = cluster.agent_config(0)?;
    let host = cluster.node(0);
    let address = format!("{}/24", host.ipv4());
    for line in [
        "link add br0 type bridge",
        "link set br0 up",
        "link set ens3 master br0",
        &format!("addr del {address} dev ens3"),
        &format!("addr add {address} dev br0"),
    ] {
        host.ip(&line.split(' ').collect::<Vec<_>>())?;
    }

    let seen = check(&cluster, &config)?;

    seen.broken(
        "nic",
        "warning",
        "a port of the bridge br0",
        "set `net-inf: br0`",
    );
    let bridge = config.replace("net-inf: ens3", "net-inf: br0");
    eventually(SOON, || {
        check(&cluster, &bridge).is_ok_and(|seen| seen.level("nic") == "ok")
    });
    Ok(())
}

#[test]
fn a_program_in_front_of_ours_is_told_with_and_without_an_agent() -> Result<()> {
    let lines = "attach: netlink\nsteer-priority: 7\n";
    let mut cluster = Cluster::builder()
        .agent_lines(lines)
        .verbosity("info")
        .build()?;
    let config = cluster.agent_config(0)?;
    let put = |cluster: &Cluster| {
        let filter = ["filter", "add", "dev", "ens3", "ingress", "pref", "5"];
        let code = ["bpf", "bytecode", "1,6 0 0 0"];
        cluster.node(0).tc(&[&filter[..], &code].concat())
    };
    cluster
        .node(0)
        .tc(&["qdisc", "add", "dev", "ens3", "clsact"])?;
    put(&cluster)?;

    let seen = check(&cluster, &config)?;

    seen.broken("tc programs", "warning", "(priority 5)", "take it off");
    // By TCX ours comes first, where the kernel has that.
    let tcx = config.replace("attach: netlink", "attach: tcx");
    check(&cluster, &tcx)?.fine("tc programs");
    cluster.start_agent(0)?;
    wait_for_message(cluster.agent(0), 0, SOON, "program attached")?;
    let seen = check(&cluster, &config)?;
    seen.broken(
        "tc programs",
        "warning",
        "after bpf filter (priority 5)",
        "take it off",
    );
    cluster
        .node(0)
        .tc(&["filter", "del", "dev", "ens3", "ingress", "pref", "5"])?;
    eventually(SOON, || {
        check(&cluster, &config).is_ok_and(|seen| seen.level("tc programs") == "ok")
    });
    Ok(())
}

#[test]
fn rules_that_redirect_or_drop_the_kubelets_port_are_told() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let config = cluster.agent_config(0)?;
    let host = cluster.node(0);
    check(&cluster, &config)?.fine("firewall");
    for (chain, rule, found) in [
        (
            "type nat hook prerouting priority -100;",
            "tcp dport 10250 redirect to :12251",
            "sends connections to port 10250 elsewhere",
        ),
        (
            "type filter hook input priority 0;",
            "tcp dport { 22, 10250 } drop",
            "drops packets to port 10250",
        ),
    ] {
        host.nft(&format!(
            "table ip other {{ chain c {{ {chain}\n{rule}\n }}\n }}\n"
        ))?;

        let seen = check(&cluster, &config)?;

        seen.broken("firewall", "warning", found, "delete");
        seen.broken("firewall", "warning", "nft rule ip other c handle", "");
        host.nft("delete table ip other\n")?;
        check(&cluster, &config)?.fine("firewall");
    }
    // Of others' ports and addresses nothing is said.
    host.nft(
        "table ip other { chain c { type nat hook prerouting priority -100;\n\
         ip daddr 10.96.0.1 tcp dport 443 dnat to 192.0.2.1:6443\n }\n }\n",
    )?;
    check(&cluster, &config)?.fine("firewall");
    Ok(())
}
