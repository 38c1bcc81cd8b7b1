//! Who may come in at the front door on TCP, and that it does the same job as the Unix socket.
//!
//! Owns certificates of clients and of the master at that door. What both doors answer is a matter
//! of the contract's tests.

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    cluster::Cluster,
    kubelet::exec_trailer,
    pattern::Digest,
    pki::{Authority, CertFiles, Leaf, Usage},
};
use proxymux_tests::{
    access::{CLIENT_CLOSED, Closed, access_lines, access_lines_now},
    doors::{Door, at_master, refused, start_with_both_doors, tcp_api},
    limits::{SOON, within},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn the_tcp_door_does_the_same_job() -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder())?;
    let (unix, tcp) = (Door::Unix.api(&cluster)?, Door::Tcp.api(&cluster)?);
    let target = cluster.target(0);

    at_master(&cluster, async {
        let healthz = within(SOON, "healthz", tcp.get(&target, "/healthz")).await?;
        ensure!(healthz.text() == "ok", "healthz: {}", healthz.text());

        let here = within(SOON, "metrics", tcp.get(&target, "/metrics")).await?;
        let there = within(SOON, "metrics", unix.get(&target, "/metrics")).await?;
        ensure!(here.body == there.body, "metrics differ between the doors");

        let posted = within(
            SOON,
            "sink",
            tcp.post_pattern(&target, "/sink", 20 << 20, 2),
        )
        .await?;
        ensure!(
            posted.text().starts_with("received=20971520 "),
            "sink: {}",
            posted.text()
        );

        let mut exec = within(SOON, "exec", tcp.exec(&target, "/exec/a/b/c")).await?;
        let mut output = String::new();
        exec.write_all(b"input").await?;
        exec.shutdown().await?;
        within(SOON, "output", exec.read_to_string(&mut output)).await?;
        let mut digest = Digest::default();
        digest.update(b"input");
        ensure!(
            output == format!("input{}", exec_trailer(&digest)),
            "exec: {output}"
        );
        Ok(())
    })?;

    let (name, peer) = (cluster.node_name(0), Door::Tcp.peer(&cluster));
    let machine = cluster.topology().master().clone();
    let mut lines = machine.block_on(access_lines(cluster.master(0), 5))?;
    lines.retain(|line| {
        line.text("peer.addr")
            .is_some_and(|addr| addr.starts_with(&peer))
    });
    assert_eq!(lines.len(), 4, "{lines:#?}");
    for line in lines {
        let expected = Closed {
            node: &name,
            target: &target,
            peer: &peer,
            bytes_to_target: None,
            bytes_from_target: None,
            outcomes: CLIENT_CLOSED,
        };
        expected.check(&line)?;
    }
    Ok(())
}

#[test]
fn clients_without_the_right_certificate_are_refused_and_the_log_says_which() -> Result<()> {
    let mut cluster = start_with_both_doors(Cluster::builder())?;
    let strangers_ca = Authority::new("another-ca")?;
    let egress = Leaf::new("kube-apiserver").usages([Usage::Client]);
    let dir = cluster.dir().to_owned();
    let of_stranger = strangers_ca
        .issue(&egress)?
        .write_pair(dir.join("stranger.crt"), dir.join("stranger.key"))?;
    let pair = |stem: &str, leaf: &Leaf| cluster.pki().pair(stem, leaf);
    let cases: [(Option<CertFiles>, &str); 5] = [
        (
            Some(pair(
                "unlisted",
                &Leaf::new("kube-scheduler").usages([Usage::Client]),
            )?),
            "has the common name `kube-scheduler`, expected name `kube-apiserver`",
        ),
        (
            // The right name does not help a node.
            Some(pair(
                "node",
                &egress.clone().organisations(["system:nodes"]),
            )?),
            "belongs to a node (organization `system:nodes`)",
        ),
        (None, "it showed no certificate"),
        (
            Some(of_stranger),
            "issued by `CN=another-ca`, is not signed by a CA that we trust",
        ),
        (
            Some(pair(
                "server",
                &Leaf::new("kube-apiserver").usages([Usage::Server]),
            )?),
            "client authentication",
        ),
    ];
    let (ca, target) = (cluster.pki().ca_file(), cluster.target(0));

    for (number, (certificate, said)) in (1..).zip(cases) {
        let api = tcp_api(&cluster, &ca, certificate)?;
        let error = at_master(&cluster, refused(&api, &target)).context(said)?;

        assert_eq!(error.code(), None, "answered instead of refused: {error}");
        let master = cluster.master(0);
        let warned = master.wait_for_event(SOON, |event| {
            let error = event.text("error").unwrap_or_default();
            event.level == "WARN" && error.contains(said)
        });
        warned.with_context(|| format!("{said:?} in {:#?}", master.events()))?;
        let warnings = master.events().into_iter().filter(|event| {
            event.message == "client refused" || event.message == "client's handshake failed"
        });
        let warnings: Vec<_> = warnings.collect();
        assert_eq!(warnings.len(), number, "{warnings:#?}");
        for warning in warnings {
            let peer = warning.text("peer.addr").unwrap_or_default();
            assert!(peer.starts_with("192.0.2.10:"), "{warning:#?}");
        }
    }

    assert_eq!(access_lines_now(cluster.master(0)), []);
    assert_eq!(cluster.kubelet(0).stats().connections_accepted, 0);
    let api = Door::Tcp.api(&cluster)?;
    let reply = at_master(
        &cluster,
        within(SOON, "healthz", api.get(&target, "/healthz")),
    )?;
    assert_eq!(reply.status, 200, "the door still lets in who may");
    Ok(())
}

#[test]
fn a_client_does_not_speak_to_a_master_of_another_authority() -> Result<()> {
    let cluster = start_with_both_doors(Cluster::builder())?;
    let another_ca = cluster.dir().join("another-ca.crt");
    std::fs::write(&another_ca, Authority::new("another-ca")?.pem())?;
    let client = cluster.pki().apiserver_egress_client()?;
    let api = tcp_api(&cluster, &another_ca, Some(client))?;
    let target = cluster.target(0);

    let error = at_master(&cluster, refused(&api, &target))?.to_string();

    assert!(error.starts_with("dialing proxy "), "{error}");
    Ok(())
}
