//! The node's certificate: expired, of another name, not there, for servers, and without its CA.

use std::fs;

use anyhow::Result;
use proxymux_testkit::{
    cluster::Cluster,
    pki::{Leaf, Usage, Validity},
};

use crate::seen::check;

#[test]
fn a_certificate_that_cannot_be_the_nodes_is_told_and_the_right_one_is_fine() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let (config, node) = (cluster.agent_config(0)?, cluster.node_name(0));
    let pki = cluster.pki();
    let good = || Leaf::node_client(&node);
    for (leaf, topic, found, fix) in [
        (
            good().validity(Validity::Expired),
            "certificate",
            "expired ",
            "renew it",
        ),
        (
            good().validity(Validity::NotYet),
            "certificate",
            "not valid for ",
            "set this host's clock",
        ),
        (
            good().validity(Validity::NotYet),
            "clock",
            "says it was made after",
            "NTP",
        ),
        (
            good().common_name("system:node:another"),
            "node name",
            "is that of another",
            "set `node-name: another`",
        ),
        (
            good().common_name("admin"),
            "certificate",
            "common name `admin`",
            "O=system:nodes",
        ),
        (
            good().usages([Usage::Server]),
            "certificate",
            "not for client authentication",
            "kubelet-client-current.pem",
        ),
    ] {
        pki.install_node_client(&node, &pki.ca().issue(&leaf)?)?;

        let seen = check(&cluster, &config)?;

        assert_eq!(seen.code, Some(1), "{seen}");
        seen.broken(topic, "error", found, fix);
        pki.node_client(&node)?;
        let seen = check(&cluster, &config)?;
        seen.fine("certificate");
        seen.fine(topic);
    }
    Ok(())
}

#[test]
fn files_that_are_not_there_or_damaged_are_named() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let (config, node) = (cluster.agent_config(0)?, cluster.node_name(0));
    let current = cluster
        .pki()
        .node_dir(&node)
        .join("kubelet-client-current.pem");
    let ca = cluster.pki().ca_file();
    let good = fs::read(&ca)?;

    fs::remove_file(&current)?;
    let seen = check(&cluster, &config)?;
    seen.broken(
        "certificate",
        "error",
        "kubelet-client-current.pem",
        "see that the kubelet runs",
    );
    seen.broken("master tcp", "warning", "not tried", "mend what is said");
    cluster.pki().node_client(&node)?;
    check(&cluster, &config)?.fine("certificate");

    fs::write(&ca, "no PEM")?;
    let seen = check(&cluster, &config)?;
    seen.broken("ca", "error", "holds no certificate", "write the file anew");
    fs::remove_file(&ca)?;
    let seen = check(&cluster, &config)?;
    seen.broken("ca", "error", "does not exist", "set ca-file");
    fs::write(&ca, good)?;
    check(&cluster, &config)?.fine("ca");
    Ok(())
}
