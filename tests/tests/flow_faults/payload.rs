//! What must not go on a flow, and flows that are gone before they carry anything.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use proxymux_testkit::{
    cluster::Cluster,
    far_end::{Closer, Script, drive},
};
use proxymux_tests::{
    access::access_line_with,
    far_target::{far_target, scripted_far_end},
    limits::{SOON, within},
};

use crate::stage::{direct, goes_by, metrics, reverse};

/// A kubelet that speaks no TLS: the far end, whose clients begin with a line of text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_tls_goes_by_the_session_and_succeeds() -> Result<()> {
    for (builder, path) in [(reverse(), "reverse"), (direct(), "direct")] {
        let mode = if path == "direct" { "mode: ebpf\n" } else { "" };
        let lines = format!("{mode}kubelet-addr: 10.0.10.10:20250\n");
        let mut cluster = builder.agent_lines(lines).start()?;
        ensure!(cluster.node_name(0) == "10.0.10.10");
        goes_by(&cluster, 0, path).await?;
        let _far_end = scripted_far_end(&cluster, 0)?;
        let (api, target) = (cluster.api()?, far_target(&cluster, 0));
        for closer in [Closer::FarEnd, Closer::Client] {
            let script = Script::duplex(300_001, 1).closed_first_by(closer);

            let tunnel = within(SOON, "connect", api.connect(&target)).await?;
            let driven = within(SOON, "duplex", drive(tunnel, &script)).await?;

            assert_eq!(driven.received, 300_001);
            let reason = |line: &proxymux_testkit::process::LogEvent| {
                line.text("path.reason") == Some("not-tls")
            };
            let line = access_line_with(cluster.master(0), reason).await?;
            assert_eq!(line.text("path"), Some("session"));
        }
        let metrics = metrics(&cluster, 0).await?;
        let fast = format!("proxymux_master_streams_opened_total{{path=\"{path}\"}}");
        assert_eq!(metrics.get(&fast), 0.0);
        let counted = "proxymux_master_paths_passed_over_total{reason=\"not-tls\"}";
        assert_eq!(metrics.get(counted), 2.0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flow_that_is_reset_between_the_200_and_the_first_byte_is_not_missed() -> Result<()> {
    for (builder, path) in [(reverse(), "reverse"), (direct(), "direct")] {
        let mut cluster = builder.start()?;
        goes_by(&cluster, 0, path).await?;
        let (api, target) = (cluster.api()?, cluster.target(0));
        let mut tunnel = within(SOON, "connect", api.connect(&target)).await?;
        let opened =
            format!("proxymux_master_flow_opens_total{{path=\"{path}\",result=\"opened\"}}");
        assert_eq!(metrics(&cluster, 0).await?.get(&opened), 1.0);

        kill_flows(&cluster, path)?;

        // The first bytes of a client of TLS, and the kubelet's answer to them.
        let hello = client_hello()?;
        let answer = async {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            tunnel.write_all(&hello).await?;
            let mut answer = [0; 2];
            tunnel.read_exact(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = within(SOON, "an answer", answer).await?;
        assert_eq!(answer, [0x16, 0x03], "a TLS handshake record");
        drop(tunnel);
        let by_session = |line: &proxymux_testkit::process::LogEvent| {
            line.text("path") == Some("session") && line.text("path.reason") == Some("flow-lost")
        };
        access_line_with(cluster.master(0), by_session).await?;
        let reply = within(SOON, "healthz", api.get(&target, "/healthz")).await?;
        assert_eq!(reply.status, 200);
    }
    Ok(())
}

/// Ends every flow of the master's machine with a reset of the kernel's own; the session, which is
/// the oldest connection on its port, is spared.
fn kill_flows(cluster: &Cluster, path: &str) -> Result<()> {
    let master = cluster.topology().master();
    let filter = if path == "direct" {
        "dport = :10250".to_owned()
    } else {
        let session = session_peer(cluster)?;
        format!("sport = :12250 and not dport = :{session}")
    };
    let mut command: Command = master.command("ss");
    command.args(["-K", "-t", "-n", "state", "established", &filter]);
    let output = command.output().context("ss -K")?;
    ensure!(output.status.success(), "{output:?}");
    let killed = String::from_utf8_lossy(&output.stdout).lines().count();
    ensure!(killed > 1, "nothing was killed: {output:?}");
    Ok(())
}

fn session_peer(cluster: &Cluster) -> Result<u16> {
    let at = cluster.dir().join("master-0.yaml");
    let config = format!("--config={}", at.display());
    let shown = proxymux_tests::admin::command("proxymux-master", &["nodes", "--json", &config])?;
    let nodes: serde_json::Value =
        serde_json::from_str(&shown.stdout).with_context(|| format!("{shown:?}"))?;
    let peer = nodes.pointer("/nodes/0/session/peer");
    let peer = peer.and_then(|peer| peer.as_str()).context("a peer")?;
    Ok(peer.parse::<std::net::SocketAddr>()?.port())
}

/// What rustls says first.
fn client_hello() -> Result<Vec<u8>> {
    let roots = rustls::RootCertStore::empty();
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = "10.0.10.10".try_into()?;
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name)?;
    let mut hello = Vec::new();
    client.write_tls(&mut hello)?;
    Ok(hello)
}
