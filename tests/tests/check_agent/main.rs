//! `proxymux-agent check` in each broken situation that it knows.
//!
//! A situation is made, the check must find it (topic, level, what was seen, and what to do), the
//! advice is followed, and the check must find the topic well. What runs beside it must not notice.
//! Bonds and VLANs are judged in unit tests, since this kernel may have neither.

mod certificates;
mod host;
mod masters;
mod routes;
mod seen;

use std::time::Duration;

use anyhow::Result;
use proxymux_testkit::{cluster::Cluster, wait::eventually};
use proxymux_tests::{
    admin::{at_agent, at_master, scrape, status},
    events::{complaints, wait_for_message, with_message},
    limits::SOON,
};

use self::seen::{check, check_as, printed};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_works_has_no_errors_and_its_agent_does_not_notice() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let before = status(&at_agent(&cluster, 0)).await?;
    let config = cluster.agent_config(0)?;

    let seen = check(&cluster, &config)?;

    assert_eq!(seen.code, Some(0), "{seen}");
    assert_eq!(seen.errors(), 0, "{seen}");
    for topic in [
        "config",
        "certificate",
        "node name",
        "ca",
        "clock",
        "agent",
        "master route",
        "master tcp",
        "master tls",
        "master alpn",
        "master accepts",
        "path mtu",
        "kubelet",
        "kubelet certificate",
        "capabilities",
        "kernel lpm trie",
        "kernel sk_assign",
        "kernel ring buffer",
        "kernel programs",
        "kernel tcx",
        "kernel clsact",
        "splice",
        "nic",
        "tc programs",
        "rp_filter",
    ] {
        seen.fine(topic);
    }
    for topic in ["lockdown", "selinux", "apparmor", "firewall"] {
        assert!(seen.has(topic), "{topic}: {seen}");
    }
    let after = status(&at_agent(&cluster, 0)).await?;
    for same in ["/instance", "/masters/0/master_id", "/attachments/0/attach"] {
        assert_eq!(before.pointer(same), after.pointer(same), "{same}");
    }
    assert_eq!(with_message(cluster.agent(0), "session up").len(), 1);
    assert_eq!(complaints(cluster.agent(0), 0), []);
    // The master knows who that was, and takes it for no fault.
    let noted = wait_for_message(
        cluster.master(0),
        0,
        SOON,
        "agent left before it registered",
    )?;
    assert_eq!(
        noted.text("reason"),
        Some("a check, which registers nothing")
    );
    assert_eq!(complaints(cluster.master(0), 0), []);
    let failed = scrape(&at_master(&cluster)).await?;
    let registration = "proxymux_master_arrivals_failed_total{reason=\"registration\"}";
    assert_eq!(failed.get(registration), 0.0);
    Ok(())
}

#[test]
fn it_is_a_list_for_people_and_json_for_programs() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let config = cluster.agent_config(0)?;

    let list = printed(&cluster, &config, &["check"], &[])?;

    // There is no master.
    assert_eq!(list.code, Some(1), "{list:?}");
    let line = list.stdout.lines().find(|line| line.contains("master tcp"));
    assert!(
        line.is_some_and(|line| line.starts_with("error ")),
        "{list:?}"
    );
    assert!(list.stdout.contains("fix: start the master"), "{list:?}");
    assert!(list.stdout.trim_end().ends_with("errors"), "{list:?}");
    let wrong = printed(&cluster, &config, &["check", "--what"], &[])?;
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    Ok(())
}

#[test]
fn all_mistakes_of_the_configuration_are_told_and_the_kernel_is_looked_at_all_the_same()
-> Result<()> {
    let cluster = Cluster::builder().build()?;
    let config = cluster.agent_config(0)?;
    let mistakes = format!("{config}mode: fast\ndrain-deadline: soon\n");

    let seen = check(&cluster, &mistakes)?;

    assert_eq!(seen.code, Some(1), "{seen}");
    seen.broken("config", "error", "mode", "correct the line");
    seen.broken("config", "error", "drain-deadline", "correct the line");
    seen.fine("kernel programs");
    assert!(!seen.has("master tcp"), "{seen}");
    check(&cluster, &config)?.fine("config");
    let unknown = check(&cluster, &format!("{config}net-if: ens3\n"))?;
    unknown.broken("config", "warning", "net-if", "correct the line");
    Ok(())
}

#[test]
fn without_an_agent_it_says_so_and_what_only_that_one_knows() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let config = cluster.agent_config(0)?;

    let seen = check(&cluster, &config)?;

    assert_eq!(seen.code, Some(0), "{seen}");
    seen.broken("agent", "warning", "nobody answers", "start it");
    seen.fine("master accepts");
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;
    check(&cluster, &config)?.fine("agent");
    Ok(())
}

#[test]
fn without_capabilities_it_says_which_and_goes_on() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let config = cluster.agent_config(0)?;
    let none = [
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        "--no-new-privs",
    ];

    let seen = check_as(&cluster, &config, &none)?;

    let fix = "run the check as root";
    seen.broken("capabilities", "warning", "CAP_BPF and CAP_NET_ADMIN", fix);
    assert!(!seen.has("kernel programs"), "nothing was tried: {seen}");
    seen.fine("master accepts");
    let insists = check_as(&cluster, &format!("{config}mode: ebpf\n"), &none)?;
    insists.broken("capabilities", "error", "CAP_BPF", fix);
    assert_eq!(insists.code, Some(1), "{insists}");
    let userspace = check_as(&cluster, &format!("{config}mode: userspace\n"), &none)?;
    userspace.fine("capabilities");
    check(&cluster, &config)?.fine("capabilities");
    Ok(())
}

/// With the capabilities of its unit alone no namespace can be made to try attaching in.
#[test]
fn with_the_agents_own_capabilities_it_says_what_was_not_tried() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let few = [
        "setpriv",
        "--bounding-set=-all,+bpf,+net_admin,+perfmon",
        "--inh-caps=-all",
        "--no-new-privs",
    ];

    let seen = check_as(&cluster, &cluster.agent_config(0)?, &few)?;

    seen.fine("capabilities");
    seen.fine("kernel programs");
    assert!(seen.text("kernel tcx").contains("not tried"), "{seen}");
    Ok(())
}

#[test]
fn a_kubelet_that_is_down_or_has_a_certificate_of_nobodys_is_told() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let config = cluster.agent_config(0)?;
    cluster.stop_kubelet(0);

    let seen = check(&cluster, &config)?;

    assert_eq!(seen.code, Some(1), "{seen}");
    seen.broken("kubelet", "error", ":10250", "start the kubelet");
    cluster.start_kubelet(0)?;
    // The stand-in listens when it has started; the kernel has forgotten the old one by then.
    eventually(Duration::from_secs(20), || {
        check(&cluster, &config).is_ok_and(|seen| seen.level("kubelet") == "ok")
    });
    check(&cluster, &config)?.fine("kubelet certificate");
    Ok(())
}
