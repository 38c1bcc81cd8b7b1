//! The way to the master: nobody there, somebody else there, a certificate that one of both does
//! not take, a registration that is refused, and a path that loses large packets.

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::Cluster,
    kubelet::{Kubelet, KubeletConfig},
    netns::Towards,
    pki::{Authority, CertFiles, Leaf},
    wait::eventually,
};
use proxymux_tests::limits::SOON;

use crate::seen::check;

#[test]
fn a_master_that_is_down_is_told_and_fine_once_it_runs() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let config = cluster.agent_config(0)?;

    let seen = check(&cluster, &config)?;

    assert_eq!(seen.code, Some(1), "{seen}");
    seen.broken("master tcp", "error", "refused", "start the master there");
    cluster.start_master(0)?;
    let seen = check(&cluster, &config)?;
    for topic in [
        "master tcp",
        "master tls",
        "master alpn",
        "master accepts",
        "path mtu",
    ] {
        seen.fine(topic);
    }
    Ok(())
}

#[test]
fn a_name_that_nobody_knows_is_told() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let right = cluster.agent_config(0)?;
    let config = right.replace(&cluster.master_addr(0), "master.invalid:12250");

    let seen = check(&cluster, &config)?;

    seen.broken("master name", "error", "master.invalid", "name servers");
    Ok(())
}

#[test]
fn a_server_that_is_no_master_is_told_by_its_lack_of_alpn() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let config = cluster.agent_config(0)?;
    let pki = cluster.pki();
    let files = CertFiles {
        cert: pki.dir().join("master/master.crt"),
        key: pki.dir().join("master/master.key"),
    };
    let server = KubeletConfig::new(cluster.master_addr(0).parse()?, files, pki.ca_file());
    let server = cluster.topology().master().run(|| Kubelet::start(server))?;

    let seen = check(&cluster, &config)?;

    seen.fine("master tcp");
    seen.broken(
        "master alpn",
        "error",
        "does not speak proxymux/1",
        "server-addr",
    );
    drop(server);
    cluster.start_master(0)?;
    check(&cluster, &config)?.fine("master alpn");
    Ok(())
}

#[test]
fn a_master_with_another_name_says_which_to_set() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.pki().master(&["master.example"])?;
    cluster.start_master(0)?;
    let config = cluster.agent_config(0)?;

    let seen = check(&cluster, &config)?;

    seen.broken(
        "master tls",
        "error",
        "master.example",
        "set `server-name:`",
    );
    let named = format!("{config}server-name: master.example\n");
    check(&cluster, &named)?.fine("master tls");
    Ok(())
}

#[test]
fn a_certificate_of_a_ca_that_the_master_does_not_know_is_told() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let (config, node) = (cluster.agent_config(0)?, cluster.node_name(0));
    let pki = cluster.pki();
    let other = Authority::new("another")?;
    pki.install_node_client(&node, &other.issue(&Leaf::node_client(&node))?)?;

    let seen = check(&cluster, &config)?;

    assert_eq!(seen.code, Some(1), "{seen}");
    seen.fine("master tls");
    seen.broken(
        "master accepts",
        "error",
        "refused our certificate",
        "client-ca of the master",
    );
    seen.broken(
        "certificate",
        "warning",
        "issued by `CN=another`",
        "client-ca",
    );
    // The master takes up its new bundle within seconds.
    pki.trust(&[pki.ca(), &other])?;
    eventually(SOON, || {
        check(&cluster, &config).is_ok_and(|seen| seen.level("master accepts") == "ok")
    });
    check(&cluster, &config)?.fine("certificate");
    Ok(())
}

#[test]
fn a_master_whose_ca_the_node_does_not_have_is_told() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    cluster.start_master(0)?;
    let config = cluster.agent_config(0)?;
    let other = Authority::new("another")?;
    let file = cluster.dir().join("other-ca.crt");
    std::fs::write(&file, other.pem())?;
    let ca = cluster.pki().ca_file().display().to_string();
    let wrong = config.replace(
        &format!("ca-file: {ca}"),
        &format!("ca-file: {}", file.display()),
    );

    let seen = check(&cluster, &wrong)?;

    let fix = "to this node's ca-file";
    seen.broken(
        "master tls",
        "error",
        "not signed by a CA that we trust",
        fix,
    );
    check(&cluster, &config)?.fine("master tls");
    Ok(())
}

/// Only a registration shows it, and the check registers nobody: the running agent says it.
#[test]
fn a_registration_that_is_refused_is_told_by_the_running_agent() -> Result<()> {
    let mut cluster = Cluster::builder()
        .master_lines("cluster-id: right\n")
        .build()?;
    cluster.start_master(0)?;
    let config = cluster.agent_config(0)?;
    let wrong = format!("{config}cluster-id: wrong\n");
    cluster.start_agent_with(0, &wrong)?;

    let refused = || {
        let seen = check(&cluster, &wrong).ok()?;
        (seen.level("master accepts") == "error").then_some(seen)
    };
    eventually(SOON, || refused().is_some());
    let seen = refused().context("it is refused at each try")?;

    seen.broken("master accepts", "error", "(cluster)", "set cluster-id");
    seen.broken("agent", "error", "not ready", "mend");
    let right = format!("{config}cluster-id: right\n");
    cluster.start_agent_with(0, &right)?;
    cluster.wait_for_sessions()?;
    let seen = check(&cluster, &right)?;
    seen.fine("master accepts");
    seen.fine("agent");
    Ok(())
}

#[test]
fn a_path_that_loses_large_packets_is_a_warning_and_fine_with_its_mtu() -> Result<()> {
    let mut cluster = Cluster::builder().jumbo().build()?;
    cluster.topology().say_too_big(false)?;
    cluster.topology().narrow(Towards::Masters, 1500)?;
    cluster.start_master(0)?;
    let config = cluster.agent_config(0)?;

    let seen = check(&cluster, &config)?;

    seen.broken("path mtu", "warning", "was lost", "MTU of the path");
    seen.fine("master tls");
    cluster
        .node(0)
        .ip(&["link", "set", "dev", "ens3", "mtu", "1500"])?;
    check(&cluster, &config)?.fine("path mtu");
    Ok(())
}
