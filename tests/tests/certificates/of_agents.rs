//! Certificates with which agents come to a master.
//!
//! An agent looks at its own first: one that cannot be a node's client certificate never reaches
//! a master. What the master says of such a one if others come with it is tested with rogues.

use std::path::Path;

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::Cluster,
    pki::{Authority, CertFiles, Issued, Leaf, Usage, Validity},
    process::{Daemon, LogEvent},
};
use proxymux_tests::{
    bystander::Bystander,
    events::{since, wait_for_message},
    limits::SOON,
    rogue::RogueHost,
};

/// One node that misbehaves, and what is said about it.
struct Case {
    /// The node's name in the agent's configuration.
    node: &'static str,
    issued: Issued,
    /// The message and the reason in the agent's log.
    agent: (&'static str, String),
    /// The beginning and the end of the reason in the master's log, if it hears of the agent.
    master: Option<(String, &'static str)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_ones_are_refused_with_reasons_on_both_sides_and_disturb_nobody() -> Result<()> {
    let mut cluster = healthy_node_and_another()?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;
    let mark = cluster.master(0).mark();
    let cases = cases(&cluster)?;

    let mut agents = Vec::new();
    for case in &cases {
        cluster.pki().install_node_client(case.node, &case.issued)?;
        let config = config_of(&cluster, case.node)?;
        let file = format!("{}.yaml", case.node);
        agents.push(cluster.spawn_agent(1, &file, &config)?);
    }

    for (case, agent) in cases.iter().zip(&mut agents) {
        let (message, reason) = &case.agent;
        let failed = wait_for_message(agent, 0, SOON, message).context(case.node)?;
        let seen = failed.text("error").or(failed.text("reason"));
        let reason = reason.replace("DIR", &cluster.dir().display().to_string());
        assert_eq!(seen, Some(&*reason), "{}", case.node);
        assert_goes_on_trying_quietly(agent, message).context(case.node)?;
        assert_eq!(agent.count_lines("session up"), 0, "{}", case.node);
    }
    let refusals = refusals(cluster.master(0), mark);
    for Case { node, master, .. } in &cases {
        let told: Vec<_> = refusals
            .iter()
            .filter(|(_, reason)| reason.contains(&format!("system:node:{node}`")))
            .collect();
        match master {
            None => assert!(told.is_empty(), "{node}: {told:?}"),
            Some((begins, ends)) => {
                assert!(!told.is_empty(), "{node}: {refusals:#?}");
                for (number, (level, reason)) in told.into_iter().enumerate() {
                    // Each is told once a minute, however often the agent tries.
                    let expected = if number == 0 { "WARN" } else { "DEBUG" };
                    assert_eq!(level, expected, "{node}");
                    assert!(
                        reason.starts_with(begins) && reason.ends_with(ends),
                        "{node}: {reason}"
                    );
                }
            }
        }
    }
    bystander.did_not_notice(&mut cluster).await?;
    assert_eq!(cluster.master(0).count_lines("\"session up\""), 1);
    Ok(())
}

/// Everything that can be wrong with an agent's certificate. `DIR` stands for the directory.
fn cases(cluster: &Cluster) -> Result<Vec<Case>> {
    let ca = cluster.pki().ca();
    let stranger = Authority::new("another-ca")?;
    let namesake = Authority::new("kubernetes-ca")?;
    let failed = |node: &str, problem: &str| {
        format!(
            "TLS handshake with the agent failed: its certificate `O=system:nodes, \
             CN=system:node:{node}`{problem}"
        )
    };
    let refused = |why: &str| {
        let error =
            format!("TLS handshake with the master failed: it refused our certificate: {why}");
        ("no session", error)
    };
    let unfit = |node: &str, problem: &str| {
        let error = format!(
            "the certificate in `DIR/nodes/{node}/pki/kubelet-client-current.pem` cannot be the \
             agent's: certificate {problem}"
        );
        ("no session", error)
    };
    let clock = "by its clock it is expired or not valid yet (alert certificate_expired)";
    let by_clock = " by this host's clock";
    Ok(vec![
        Case {
            node: "expired",
            issued: ca.issue(&Leaf::node_client("expired").validity(Validity::Expired))?,
            agent: refused(clock),
            master: Some((failed("expired", " expired at 20"), by_clock)),
        },
        Case {
            node: "not-yet",
            issued: ca.issue(&Leaf::node_client("not-yet").validity(Validity::NotYet))?,
            agent: refused(clock),
            master: Some((failed("not-yet", " is not valid before 20"), by_clock)),
        },
        Case {
            node: "other-ca",
            issued: stranger.issue(&Leaf::node_client("other-ca"))?,
            agent: refused("it is not signed by a CA that the peer trusts (alert unknown_ca)"),
            master: Some((
                failed(
                    "other-ca",
                    ", issued by `CN=another-ca`, is not signed by a CA that we trust",
                ),
                "",
            )),
        },
        Case {
            node: "other-key",
            issued: namesake.issue(&Leaf::node_client("other-key"))?,
            agent: refused(
                "a signature is wrong; the CA that the peer trusts may have the same name as ours \
                 but another key (alert decrypt_error)",
            ),
            master: Some((
                failed(
                    "other-key",
                    " is not signed with the key of the CA `CN=kubernetes-ca` that we trust; was \
                     that CA made anew under the same name?",
                ),
                "",
            )),
        },
        Case {
            node: "serving",
            issued: ca.issue(&Leaf::kubelet_serving("serving", &[]))?,
            agent: unfit(
                "serving",
                "`O=system:nodes, CN=system:node:serving` is not for client authentication",
            ),
            master: None,
        },
        Case {
            node: "nameless",
            issued: ca.issue(&Leaf::node_client("x").common_name("nameless"))?,
            agent: unfit(
                "nameless",
                "`O=system:nodes, CN=nameless` has the common name `nameless`, expected \
                 `system:node:<node-name>`",
            ),
            master: None,
        },
        Case {
            node: "groupless",
            issued: ca.issue(&Leaf::node_client("groupless").organisations(["system:masters"]))?,
            agent: unfit(
                "groupless",
                "`O=system:masters, CN=system:node:groupless` has organization \
                 `system:masters`, expected organization `system:nodes`",
            ),
            master: None,
        },
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_for_another_node_is_refused_with_both_names_on_both_sides() -> Result<()> {
    let mut cluster = healthy_node_and_another()?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;
    let issued = cluster.pki().ca().issue(&Leaf::node_client("node-b"))?;
    cluster.pki().install_node_client("node-a", &issued)?;
    let config = config_of(&cluster, "node-a")?;

    let agent = cluster.start_agent_with(1, &config)?;
    let refused = wait_for_message(agent, 0, SOON, "registration refused")?;
    let told = wait_for_message(cluster.master(0), 0, SOON, "session refused")?;

    let reason = "agent registers as node node-a, its certificate is for node node-b";
    for event in [&refused, &told] {
        assert_eq!(event.text("code"), Some("identity"), "{event:?}");
        assert_eq!(event.text("reason"), Some(reason), "{event:?}");
    }
    assert_eq!(
        (refused.level.as_str(), told.level.as_str()),
        ("ERROR", "WARN")
    );
    assert_goes_on_trying_quietly(cluster.agent(1), "registration refused")?;
    bystander.did_not_notice(&mut cluster).await
}

/// The agent would not come with it by itself, but others might.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_serving_certificate_is_refused_by_the_master_too() -> Result<()> {
    let mut cluster = healthy_node_and_another()?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;
    let files = kubelets_own(&cluster.pki().node_dir(&cluster.node_name(1)));
    let host = RogueHost::on(&cluster, cluster.node(1))?;

    // In TLS 1.3 the handshake is over for a client before the master has seen its certificate.
    let stream = host.secure(cluster.master_addr(0).parse()?, &files).await?;

    let refused = wait_for_message(cluster.master(0), 0, SOON, "connection refused")?;
    assert_eq!(
        refused.text("error"),
        Some(
            "TLS handshake with the agent failed: its certificate `O=system:nodes, \
             CN=system:node:10.0.10.11` is not for client authentication, but for server \
             authentication"
        )
    );
    drop(stream);
    bystander.did_not_notice(&mut cluster).await
}

/// The extension says what a certificate may be used for; without it the issuer has not said.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_without_a_purpose_and_one_with_both_are_accepted() -> Result<()> {
    let cluster = healthy_node_and_another()?;
    let ca = cluster.pki().ca();
    let unsaid = ca.issue(&Leaf::node_client("unsaid").usages([]))?;
    let both = ca.issue(&Leaf::node_client("both").usages([Usage::Server, Usage::Client]))?;

    for (node, issued) in [("unsaid", unsaid), ("both", both)] {
        cluster.pki().install_node_client(node, &issued)?;
        let config = config_of(&cluster, node)?;
        let mut agent = cluster.spawn_agent(1, &format!("{node}.yaml"), &config)?;

        wait_for_message(&mut agent, 0, SOON, "session up").context(node)?;
    }
    Ok(())
}

fn healthy_node_and_another() -> Result<Cluster> {
    let mut cluster = Cluster::builder().nodes(2).build()?;
    cluster.start_master(0)?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;
    Ok(cluster)
}

/// The configuration of a further node on the second node's machine.
fn config_of(cluster: &Cluster, node: &str) -> Result<String> {
    let config = cluster.agent_config(1)?;
    let own = cluster.node_name(1);
    let dir = |node: &str| cluster.pki().node_dir(node).display().to_string();
    Ok(config
        .replace(&dir(&own), &dir(node))
        .replace(&format!("node-name: {own}"), &format!("node-name: {node}"))
        .replace("agent-1.admin", &format!("{node}.admin")))
}

/// It tries again, and says so at debug level only.
fn assert_goes_on_trying_quietly(agent: &mut Daemon, message: &str) -> Result<()> {
    wait_for_message(agent, 0, SOON, "still no session")?;
    let said = since(agent, 0)
        .into_iter()
        .filter(|event| event.message == message)
        .count();
    assert_eq!(said, 1, "{message} is said once");
    Ok(())
}

/// The levels and reasons of the master's refusals.
fn refusals(master: &Daemon, mark: usize) -> Vec<(String, String)> {
    let reason = |event: LogEvent| {
        let reason = event.text("error").unwrap_or_default().to_owned();
        (event.level, reason)
    };
    since(master, mark)
        .into_iter()
        .filter(|event| event.message == "connection refused")
        .map(reason)
        .collect()
}

fn kubelets_own(dir: &Path) -> CertFiles {
    CertFiles {
        cert: dir.join("tls.pem"),
        key: dir.join("tls.key"),
    }
}
