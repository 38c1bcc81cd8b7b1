//! `proxymux-agent status` and `proxymux-master nodes`, as a person or a probe runs them.
//!
//! The programs are the daemons themselves, and read the same configuration files.

use anyhow::{Context, Result};
use proxymux_testkit::{cluster::Cluster, wait::eventually};
use proxymux_tests::{
    admin::{Printed, command, config_file},
    limits::SOON,
    programs::config_flag,
};
use serde_json::Value;

const AGENT: &str = "proxymux-agent";
pub(crate) const MASTER: &str = "proxymux-master";

pub(crate) fn run(cluster: &Cluster, daemon: &str, arguments: &[&str]) -> Result<Printed> {
    let file = match daemon {
        AGENT => "agent-0",
        _ => "master-0",
    };
    let config = config_flag(&config_file(cluster, file));
    let mut all = vec![config.as_str()];
    all.extend(arguments);
    command(daemon, &all)
}

#[test]
fn status_and_nodes_show_the_session_from_both_ends() -> Result<()> {
    let cluster = Cluster::started()?;
    let (name, master) = (cluster.node_name(0), cluster.master_addr(0));
    // The first ping measures the round trip.
    eventually(SOON, || {
        run(&cluster, MASTER, &["nodes"]).is_ok_and(|printed| printed.stdout.contains("ms "))
    });

    let nodes = run(&cluster, MASTER, &["nodes"])?;
    let status = run(&cluster, AGENT, &["status"])?;

    assert_eq!(
        (nodes.code, status.code),
        (Some(0), Some(0)),
        "{nodes:?}, {status:?}"
    );
    let row = nodes.stdout.lines().nth(1).context("a row for the node")?;
    let cells: Vec<_> = row.split_whitespace().collect();
    assert_eq!(cells.first(), Some(&name.as_str()), "{row}");
    // Path, why no faster one, what a probe met, idle flows, flows, streams.
    let paths = ["session", "unverified", "-", "0", "0", "0"];
    assert_eq!(cells.get(2..8), Some(paths.as_slice()), "{row}");
    assert!(nodes.stdout.starts_with("NODE"), "{}", nodes.stdout);
    for expected in [
        "ready:",
        "connected",
        "certificate expires:",
        &master,
        &name,
    ] {
        assert!(
            status.stdout.contains(expected),
            "{expected} in {}",
            status.stdout
        );
    }
    Ok(())
}

#[test]
fn json_has_everything_that_the_tables_have() -> Result<()> {
    let mut cluster = Cluster::started()?;
    let (name, master) = (cluster.node_name(0), cluster.master_addr(0));

    let nodes: Value = serde_json::from_str(&run(&cluster, MASTER, &["nodes", "--json"])?.stdout)?;
    let status: Value = serde_json::from_str(&run(&cluster, AGENT, &["status", "--json"])?.stdout)?;

    let text = |value: &Value, place: &str| value.pointer(place).map(ToString::to_string);
    let quoted = |text: &str| Some(format!("\"{text}\""));
    assert_eq!(text(&nodes, "/nodes/0/name"), quoted(&name));
    assert_eq!(text(&nodes, "/nodes/0/addresses/0"), quoted(&name));
    assert_eq!(
        text(&nodes, "/nodes/0/session/streams").as_deref(),
        Some("0")
    );
    let expires = text(&nodes, "/nodes/0/session/certificate_expires");
    assert_eq!(expires, text(&status, "/certificates/expires"));
    assert_eq!(text(&status, "/masters/0/address"), quoted(&master));
    assert_eq!(
        text(&status, "/masters/0/master_id"),
        text(&nodes, "/master_id")
    );
    assert_eq!(
        text(&status, "/instance"),
        text(&nodes, "/nodes/0/session/instance")
    );

    cluster.agent(0).kill()?;
    eventually(SOON, || {
        run(&cluster, MASTER, &["nodes"]).is_ok_and(|printed| printed.stdout.contains("away "))
    });
    Ok(())
}

#[test]
fn a_probe_gets_one_line_and_an_exit_code() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let not_there = run_ready(&cluster)?;
    assert_eq!(
        not_there.code,
        Some(2),
        "there is no file yet: {not_there:?}"
    );

    cluster.start_agent(0)?;
    let admin = format!("--admin=unix:{}/agent-0.admin", cluster.dir().display());
    let begin = format!("{}: connection refused for ", cluster.master_addr(0));
    eventually(SOON, || {
        run_ready(&cluster).is_ok_and(|printed| printed.stdout.starts_with(&begin))
    });
    let alone = command(AGENT, &["status", "--ready", &admin])?;
    assert_eq!(alone.code, Some(1), "{alone:?}");
    assert!(alone.stdout.starts_with(&begin), "{alone:?}");
    assert!(alone.stdout.ends_with(" s\n"), "{alone:?}");
    assert_eq!(alone.stdout.lines().count(), 1, "{alone:?}");

    cluster.start_master(0)?;
    eventually(SOON, || {
        run_ready(&cluster).is_ok_and(|printed| printed.code == Some(0))
    });
    assert_eq!(run_ready(&cluster)?.stdout, "ready\n");
    let master = run(&cluster, MASTER, &["nodes", "--ready"])?;
    assert_eq!((master.code, master.stdout.as_str()), (Some(0), "ready\n"));

    cluster.agent(0).kill()?;
    let gone = run_ready(&cluster)?;
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(
        gone.stdout.contains("is proxymux-agent running"),
        "{gone:?}"
    );
    Ok(())
}

/// What it answers is tested with the guard; here is how it ends.
#[test]
fn explain_ends_with_0_for_an_answer_1_for_none_and_2_for_a_wrong_question() -> Result<()> {
    let mut cluster = Cluster::builder().agent_lines("mode: ebpf\n").build()?;
    let explain = |cluster: &Cluster, more: &[&str]| {
        let all = [&["explain"], more].concat();
        run(cluster, AGENT, &all)
    };
    // The file is read for the admin address.
    let no_file = explain(&cluster, &["192.0.2.10"])?;
    assert_eq!(no_file.code, Some(2), "{no_file:?}");
    assert!(no_file.stderr.contains("cannot be read"), "{no_file:?}");

    cluster.start_agent(0)?;
    eventually(SOON, || {
        explain(&cluster, &["192.0.2.10"]).is_ok_and(|printed| printed.code == Some(0))
    });
    let json = explain(&cluster, &["[2001:db8::10]:40000", "--json"])?;
    assert_eq!((json.code, json.stderr.as_str()), (Some(0), ""), "{json:?}");
    let answer: Value = serde_json::from_str(&json.stdout)?;
    assert_eq!(
        answer.pointer("/source").and_then(Value::as_str),
        Some("[2001:db8::10]:40000")
    );

    for (wrong, named) in [
        (&[][..], "<SRC[:PORT]>"),
        (&["node-1"], "`node-1` is neither an address"),
        (&["192.0.2.10:0"], "`192.0.2.10:0` is neither"),
        (&["192.0.2.0/24"], "`192.0.2.0/24` is neither"),
        (&["192.0.2.10", "192.0.2.11"], "unexpected argument"),
        (&["192.0.2.10", "--admin=nonsense"], "--admin"),
    ] {
        let printed = explain(&cluster, wrong)?;
        let ended = (printed.code, printed.stdout.as_str());
        assert_eq!(ended, (Some(2), ""), "{wrong:?}: {printed:?}");
        assert!(printed.stderr.contains(named), "{wrong:?}: {printed:?}");
    }

    cluster.agent(0).kill()?;
    let gone = explain(&cluster, &["192.0.2.10"])?;
    assert_eq!((gone.code, gone.stdout.as_str()), (Some(1), ""), "{gone:?}");
    assert!(
        gone.stderr.contains("is proxymux-agent running"),
        "{gone:?}"
    );

    let userspace = cluster.agent_config(0)?;
    let userspace = userspace.replace("mode: ebpf", "mode: userspace");
    cluster.start_agent_with(0, &userspace)?;
    eventually(SOON, || {
        explain(&cluster, &["192.0.2.10"]).is_ok_and(|printed| {
            printed.code == Some(1) && printed.stderr.contains("runs in mode userspace")
        })
    });
    Ok(())
}

fn run_ready(cluster: &Cluster) -> Result<Printed> {
    run(cluster, AGENT, &["status", "--ready"])
}

#[test]
fn without_a_daemon_or_with_wrong_arguments_the_error_says_what_to_do() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let nobody = format!("--admin=unix:{}/nobody.admin", cluster.dir().display());

    let printed = command(MASTER, &["nodes", &nobody])?;
    assert_eq!((printed.code, printed.stdout.as_str()), (Some(1), ""));
    let expected = "is proxymux-master running, and is this its `admin` address?";
    assert!(printed.stderr.contains(expected), "{printed:?}");

    for wrong in ["--admin=10.0.0.1:80", "--admin=nonsense", "--watch=0"] {
        let printed = command(MASTER, &["nodes", wrong])?;
        assert_eq!(printed.code, Some(2), "{wrong}: {printed:?}");
    }
    Ok(())
}
