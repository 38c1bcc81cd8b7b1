//! What a daemon cannot start with although its configuration can be read: exit code 1, and the
//! reason in the last line.
//!
//! The agent waits for files that are not there yet (`agents_files`); the master, whose files an
//! operator puts there before its start, does not. Places that are taken are in `places`.

use std::fs;

use anyhow::Result;
use proxymux_testkit::{
    cluster::{AGENT, MASTER},
    pki::Leaf,
};
use proxymux_tests::programs::{Ended, Scratch};

#[test]
fn mode_ebpf_without_its_interface_is_refused_and_says_what_to_set_instead() -> Result<()> {
    let scratch = Scratch::new()?;
    let advice = "does not exist; set `mode: auto` or `userspace` to do without";
    let cases = [
        ("mode: ebpf", "an interface with the address 10.0.10.10"),
        (
            "mode: ebpf\nnet-inf: no-such-nic",
            "the interface no-such-nic",
        ),
    ];
    for (lines, missing) in cases {
        let reason = format!("mode `ebpf`: {missing} {advice}");
        let config = format!("{}{lines}\n", scratch.agent_config());

        let ended = scratch.run_with(AGENT, config)?;

        assert_failed(&ended, AGENT, &reason);
    }
    Ok(())
}

#[test]
fn the_masters_certificates_are_checked_before_it_listens() -> Result<()> {
    let scratch = Scratch::new()?;
    let dir = scratch.dir().display().to_string();
    let pki = scratch.pki();
    let server = Leaf::new("proxymux-master").names(["127.0.0.1"]);
    pki.pair("mismatch", &server.with_foreign_key())?;
    fs::write(scratch.path("empty.crt"), "")?;
    fs::write(
        scratch.path("cut.crt"),
        cut(&fs::read_to_string(scratch.path("ca.crt"))?),
    )?;
    let cases = [
        (
            ("master/master.crt", "none.crt"),
            format!("cert and key: `{dir}/none.crt` does not exist"),
        ),
        (
            ("master/master.key", "none.key"),
            format!("cert and key: `{dir}/none.key` does not exist"),
        ),
        (
            ("master/master.crt", "nodes"),
            format!("cert and key: `{dir}/nodes` is not a regular file"),
        ),
        (
            ("master/master.key", "mismatch.key"),
            format!(
                "cert and key: the private key in `{dir}/mismatch.key` does not match certificate \
                 `CN=proxymux-master` in `{dir}/master/master.crt`"
            ),
        ),
        (
            ("master/master.key", "master/master.crt"),
            format!(
                "cert and key: `{dir}/master/master.crt` holds no private key, only certificates"
            ),
        ),
        (
            ("master/master.crt", "ca.crt"),
            format!(
                "cert and key: `{dir}/ca.crt`: its first certificate, `CN=kubernetes-ca`, is a CA \
                 certificate, expected the end-entity certificate first"
            ),
        ),
        (
            ("ca.crt", "none.crt"),
            format!("client-ca: `{dir}/none.crt` does not exist"),
        ),
        (
            ("ca.crt", "empty.crt"),
            format!("client-ca: `{dir}/empty.crt` holds no certificate: it is empty"),
        ),
        (
            ("ca.crt", "cut.crt"),
            format!(
                "client-ca: `{dir}/cut.crt` is not valid PEM: the line `-----END CERTIFICATE-----` \
                 is missing"
            ),
        ),
        (
            ("ca.crt", "master/master.crt"),
            format!(
                "client-ca: `{dir}/master/master.crt` holds no CA certificate: \
                 `CN=proxymux-master`"
            ),
        ),
        (
            ("ca.crt", "master/master.key"),
            format!(
                "client-ca: `{dir}/master/master.key` holds no certificate, only a private key"
            ),
        ),
    ];
    for ((good, bad), reason) in cases {
        let config = scratch.master_config();
        let (good, bad) = (format!(": {dir}/{good}"), format!(": {dir}/{bad}"));
        assert!(config.contains(&good), "{config}");

        let ended = scratch.run_with(MASTER, config.replace(&good, &bad))?;

        assert_failed(&ended, MASTER, &reason);
        let listened = ended.lines.iter().any(|line| line.contains("listening"));
        assert!(!listened, "{ended:?}");
    }
    Ok(())
}

#[test]
fn a_front_doors_certificates_are_named_by_their_door() -> Result<()> {
    let scratch = Scratch::new()?;
    let dir = scratch.dir().display().to_string();
    let config = scratch.master_config();
    let door = format!("front-doors: [ {{ unix: {dir}/egress.sock }} ]");
    let cases = [
        (
            ("none.crt", "ca.crt"),
            format!("front-doors[1].cert and front-doors[1].key: `{dir}/none.crt` does not exist"),
        ),
        (
            ("master/master.crt", "none.crt"),
            format!("front-doors[1].client-ca: `{dir}/none.crt` does not exist"),
        ),
    ];
    for ((cert, ca), reason) in cases {
        let doors = format!(
            "front-doors:\n\
             - {{ unix: {dir}/egress.sock }}\n\
             - {{ listen: \"127.0.0.1:0\", cert: {dir}/{cert}, key: {dir}/master/master.key, \
             client-ca: {dir}/{ca}, client-names: [ kube-apiserver ] }}"
        );
        assert!(config.contains(&door), "{config}");

        let ended = scratch.run_with(MASTER, config.replace(&door, &doors))?;

        assert_failed(&ended, MASTER, &reason);
        let opened = ended
            .lines
            .iter()
            .any(|line| line.contains("front door open"));
        assert!(!opened, "a client was let in: {ended:?}");
        assert!(
            !scratch.path("egress.sock").exists(),
            "the first door's socket is left behind"
        );
    }
    Ok(())
}

#[test]
fn a_bad_list_of_node_addresses_is_named_with_file_and_line() -> Result<()> {
    let scratch = Scratch::new()?;
    let list = scratch.path("nodes.yaml");
    let config = format!(
        "{}node-addresses: {{ file: {} }}\n",
        scratch.master_config(),
        list.display()
    );
    let shown = list.display();
    let cases: [(Option<&str>, String); 2] = [
        (
            None,
            format!(
                "node-addresses: {shown}: cannot be read: No such file or directory (os error 2)"
            ),
        ),
        (
            Some("node-a: [ 10.0.10.1 ]\nnode-b: [ 10.0.10.999 ]\n"),
            format!(
                "node-addresses: {shown}:2: node-b[0]: \"10.0.10.999\": must be a network such as \
                 10.244.0.0/16, or an IP address"
            ),
        ),
    ];
    for (content, reason) in cases {
        if let Some(content) = content {
            fs::write(&list, content)?;
        }

        let ended = scratch.run_with(MASTER, &config)?;

        assert_failed(&ended, MASTER, &reason);
    }
    Ok(())
}

fn assert_failed(ended: &Ended, daemon: &str, reason: &str) {
    assert_eq!(ended.last_line(), format!("{daemon}: {reason}"));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let complaints: Vec<_> = ended
        .lines
        .iter()
        .filter(|line| line.starts_with(daemon))
        .collect();
    assert_eq!(complaints.len(), 1, "said once: {ended:?}");
}

/// Without its last line, as if the disk had been full.
fn cut(pem: &str) -> &str {
    pem.split_once("-----END").map_or(pem, |(head, _)| head)
}
