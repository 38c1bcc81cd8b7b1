//! Certificates that masters show to agents.
//!
//! The agent has one healthy master besides seven others, each of which has something else that
//! is wrong with its certificate. What it says of each, and the alert by which it tells the
//! master, must both lead to the cause.

use std::net::IpAddr;

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::Cluster,
    pki::{Authority, Issued, Leaf, Usage, Validity},
};
use proxymux_tests::{
    bystander::Bystander,
    events::{since, wait_for, wait_for_message},
    limits::SOON,
};

/// One master that has a certificate which is no good, and what is said about it.
struct Case {
    what: &'static str,
    issued: Issued,
    /// The beginning and the end of what the agent says.
    agent: (&'static str, &'static str),
    /// What the agent's alert tells the master.
    alert: &'static str,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_ones_are_refused_with_reasons_on_both_sides_and_disturb_no_other_session() -> Result<()>
{
    let masters = 1 + KINDS;
    let mut cluster = Cluster::builder().masters(masters).build()?;
    let addresses: Vec<Vec<IpAddr>> = cluster
        .topology()
        .masters()
        .iter()
        .map(|host| host.addresses().to_vec())
        .collect();
    let cases = cases(&cluster, &addresses[1..])?;
    assert_eq!(cases.len(), usize::from(KINDS));
    cluster.start_master(0)?;
    for (number, case) in (1..).zip(&cases) {
        start_master_with_certificate(&mut cluster, number, &case.issued).context(case.what)?;
    }
    cluster.start_agent(0)?;
    let healthy = cluster.master_addr(0);
    let is_up = |line: &str| line.contains("session up") && line.contains(&healthy);
    cluster.agent(0).wait_for_line(is_up, SOON)?;
    let bystander = Bystander::of_node(&mut cluster, 0).await?;

    for (number, case) in (1..).zip(&cases) {
        let (what, at) = (case.what, cluster.master_addr(number));
        let agent = cluster.agent(0);
        let is_about = |message: &'static str| {
            let at = at.clone();
            move |event: &proxymux_testkit::process::LogEvent| {
                event.message == message && event.text("master") == Some(&*at)
            }
        };
        let failed = wait_for(agent, 0, SOON, is_about("no session")).context(what)?;
        let error = failed.text("error").context(what)?;
        let (begins, ends) = case.agent;
        let begins = format!("TLS handshake with the master failed: its certificate {begins}");
        assert!(
            error.starts_with(&begins) && error.ends_with(ends),
            "{what}: {error}"
        );
        assert_eq!(failed.level, "WARN", "{what}");
        wait_for(agent, 0, SOON, is_about("still no session")).context(what)?;
        let said = since(agent, 0)
            .iter()
            .filter(|event| is_about("no session")(event))
            .count();
        assert_eq!(said, 1, "{what}: said once");

        let told = wait_for_message(cluster.master(number), 0, SOON, "connection refused");
        let alert = format!(
            "TLS handshake with the agent failed: it refused our certificate: {}",
            case.alert
        );
        assert_eq!(told.context(what)?.text("error"), Some(&*alert), "{what}");
    }
    bystander.is_served().await?;
    assert_eq!(cluster.agent(0).count_lines("\"session up\""), 1);
    Ok(())
}

/// Everything that can be wrong with a master's certificate.
fn cases(cluster: &Cluster, addresses: &[Vec<IpAddr>]) -> Result<Vec<Case>> {
    let ca = cluster.pki().ca();
    let mut addresses = addresses.iter();
    let mut master = || {
        let own = addresses.next().context("a master for each case")?;
        let names = own.iter().map(IpAddr::to_string);
        anyhow::Ok(
            Leaf::new("proxymux-master")
                .usages([Usage::Server])
                .names(names),
        )
    };
    let clock = "by its clock it is expired or not valid yet (alert certificate_expired)";
    let by_clock = " by this host's clock";
    Ok(vec![
        Case {
            what: "expired",
            issued: ca.issue(&master()?.validity(Validity::Expired))?,
            agent: ("`CN=proxymux-master` expired at 20", by_clock),
            alert: clock,
        },
        Case {
            what: "not valid yet",
            issued: ca.issue(&master()?.validity(Validity::NotYet))?,
            agent: ("`CN=proxymux-master` is not valid before 20", by_clock),
            alert: clock,
        },
        Case {
            what: "of another CA",
            issued: Authority::new("another-ca")?.issue(&master()?)?,
            agent: (
                "`CN=proxymux-master`, issued by `CN=another-ca`, is not signed by a CA that we \
                 trust",
                "",
            ),
            alert: "it is not signed by a CA that the peer trusts (alert unknown_ca)",
        },
        Case {
            what: "for another name",
            issued: ca.issue(&master()?.without_names().names(["master.example"]))?,
            agent: (
                "`CN=proxymux-master` is not valid for `192.0.2.14`, but for name \
                 `master.example`",
                "",
            ),
            alert: WRONG_NAME,
        },
        Case {
            what: "for no name",
            issued: ca.issue(&master()?.without_names())?,
            agent: (
                "`CN=proxymux-master` is not valid for `192.0.2.15`, but for no name at all (a \
                 common name does not count)",
                "",
            ),
            alert: WRONG_NAME,
        },
        Case {
            what: "for clients",
            issued: ca.issue(&master()?.usages([Usage::Client]))?,
            agent: (
                "`CN=proxymux-master` is not for server authentication, but for client \
                 authentication",
                "",
            ),
            alert: "it is not for this purpose (extended key usage) (alert \
                    unsupported_certificate)",
        },
        Case {
            what: "stolen from a node",
            issued: ca.issue(
                &master()?
                    .common_name("system:node:10.0.10.77")
                    .organisations(["system:nodes"]),
            )?,
            agent: (
                "`O=system:nodes, CN=system:node:10.0.10.77` belongs to a node (organization \
                 `system:nodes`), which cannot be a master",
                "",
            ),
            alert: "for a reason that only its own log tells (alert certificate_unknown)",
        },
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_name_is_accepted_once_the_agent_is_told_to_expect_it() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let leaf = Leaf::new("proxymux-master")
        .usages([Usage::Server])
        .names(["master.example"]);
    let issued = cluster.pki().ca().issue(&leaf)?;
    start_master_with_certificate(&mut cluster, 0, &issued)?;

    let agent = cluster.start_agent(0)?;
    let failed = wait_for_message(agent, 0, SOON, "no session")?;

    let error = "TLS handshake with the master failed: its certificate `CN=proxymux-master` is \
                 not valid for `192.0.2.10`, but for name `master.example`";
    assert_eq!(failed.text("error"), Some(error));

    let config = format!("{}server-name: master.example\n", cluster.agent_config(0)?);
    cluster.start_agent_with(0, &config)?;
    cluster.wait_for_sessions()?;
    let reply = cluster.api()?.get(&cluster.target(0), "/healthz").await?;
    assert_eq!(reply.status, 200);

    // And no other then.
    let config = config.replace("server-name: master.example", "server-name: other.example");
    let agent = cluster.start_agent_with(0, &config)?;
    let failed = wait_for_message(agent, 0, SOON, "no session")?;
    let error = error.replace("192.0.2.10", "other.example");
    assert_eq!(failed.text("error"), Some(&*error));
    Ok(())
}

fn start_master_with_certificate(
    cluster: &mut Cluster,
    number: usize,
    issued: &Issued,
) -> Result<()> {
    let dir = cluster.dir().to_owned();
    let stem = format!("master-{number}");
    issued.write_pair(
        dir.join(format!("{stem}.crt")),
        dir.join(format!("{stem}.key")),
    )?;
    let config = cluster
        .master_config(number)?
        .replace("/master/master.crt", &format!("/{stem}.crt"))
        .replace("/master/master.key", &format!("/{stem}.key"));
    let master = cluster.start_master_with(number, &config)?;
    master.wait_for_line("master is up", SOON)?;
    Ok(())
}

/// How many cases there are.
const KINDS: u8 = 7;

const WRONG_NAME: &str = "it is damaged, or not valid for the name that the peer expects (alert \
                          bad_certificate)";
