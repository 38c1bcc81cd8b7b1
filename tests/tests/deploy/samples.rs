//! Every sample of a configuration, loaded by the daemon that it is for.
//!
//! A daemon's other commands read its file before they ask a daemon that runs, and end with
//! exit code 2 if it is wrong: so the samples can be loaded here as they are, although they name
//! certificates and addresses that this machine does not have.

use std::fs;

use anyhow::{Context, Result};
use proxymux_testkit::cluster::{AGENT, MASTER};
use proxymux_tests::{
    admin::command,
    events::{complaints, wait_for_message},
    limits::SOON,
    programs::{Scratch, config_flag},
};

use crate::yaml::deploy;

const AGENTS: &[&str] = &["samples/agent-full.yaml", "samples/agent-seed.yaml"];

const MASTERS: &[&str] = &[
    "kubernetes/master/deployment/master.yaml",
    "kubernetes/master/static-pod/master.yaml",
    "samples/master-full.yaml",
    "samples/master-minimal.yaml",
];

const NODE_ADDRESSES: &[&str] = &[
    "kubernetes/master/deployment/node-addresses.yaml",
    "kubernetes/master/static-pod/node-addresses.yaml",
    "samples/node-addresses.yaml",
];

#[test]
fn every_sample_is_loaded_by_the_daemon_that_it_is_for() -> Result<()> {
    let mut loaded = 0;
    for (daemon, arguments, samples) in [
        (AGENT, ["status", "--ready"], AGENTS),
        (MASTER, ["nodes", "--ready"], MASTERS),
    ] {
        for sample in samples {
            let config = config_flag(&deploy(sample));
            let printed = command(daemon, &[arguments.as_slice(), &[&config]].concat())?;
            // Whether such a daemon runs on this machine is nobody's business here.
            assert!(
                matches!(printed.code, Some(0 | 1)) && printed.stderr.is_empty(),
                "{sample}: {printed:?}"
            );
            loaded += 1;
        }
    }
    assert_eq!(loaded, 6);
    let master = config_flag(&deploy("samples/master-full.yaml"));
    let wrong = command(AGENT, &["status", "--ready", &master])?;
    assert_eq!(
        wrong.code,
        Some(2),
        "a wrong file would be noticed: {wrong:?}"
    );
    Ok(())
}

#[test]
fn a_master_starts_with_every_sample_of_node_addresses() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut loaded = 0;
    for sample in NODE_ADDRESSES {
        let list = deploy(sample);
        let config = format!(
            "{}node-addresses: {{ file: {} }}\n",
            scratch.master_config(),
            list.display()
        );
        let mut master = scratch.start_with(MASTER, config)?;

        wait_for_message(&mut master, 0, SOON, "master is up").context(*sample)?;

        assert_eq!(complaints(&master, 0), [], "{sample}");
        loaded += 1;
    }
    assert_eq!(loaded, 3);
    Ok(())
}

#[test]
fn the_samples_are_all_there_are() -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(deploy("samples"))? {
        let name = entry?.file_name();
        names.push(format!("samples/{}", name.to_string_lossy()));
    }
    names.sort();

    let listed = [AGENTS, MASTERS, NODE_ADDRESSES].concat();
    let mut listed: Vec<_> = listed
        .into_iter()
        .filter(|name| name.starts_with("samples/"))
        .collect();
    listed.sort_unstable();
    assert_eq!(names, listed);
    Ok(())
}
