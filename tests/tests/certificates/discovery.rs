//! Which certificate an agent comes with.
//!
//! Certificates of one node look alike in logs. So all but the one that is to be found are of a
//! CA that the master does not trust, and a session tells which was used.

use std::fs;

use anyhow::Result;
use proxymux_testkit::{
    cluster::Cluster,
    pki::{Authority, Leaf},
};
use proxymux_tests::{events::wait_for_message, limits::SOON};

#[test]
fn the_kubelets_client_certificate_goes_before_a_pair_that_is_fit_too() -> Result<()> {
    let stage = Stage::new()?;
    let dir = stage.cluster.pki().node_dir(NODE);
    stage
        .useless()?
        .write_pair(dir.join("tls.pem"), dir.join("tls.key"))?;

    stage.comes_up("")
}

#[test]
fn a_pair_is_used_if_it_is_for_clients_and_names_a_node() -> Result<()> {
    let stage = Stage::new()?;
    let dir = stage.cluster.pki().node_dir(NODE);
    fs::remove_file(dir.join("kubelet-client-current.pem"))?;
    let fit = stage.cluster.pki().ca().issue(&Leaf::node_client(NODE))?;
    fit.write_pair(dir.join("tls.pem"), dir.join("tls.key"))?;

    stage.comes_up("")
}

#[test]
fn a_pair_that_is_not_fit_is_passed_over_until_there_is_something_better() -> Result<()> {
    let mut stage = Stage::new()?;
    let dir = stage.cluster.pki().node_dir(NODE);
    let shown = dir.display().to_string();
    fs::remove_file(dir.join("kubelet-client-current.pem"))?;
    let ca = stage.cluster.pki().ca();
    let nameless = ca.issue(&Leaf::node_client(NODE).common_name("kubelet"))?;
    let mismatched = ca.issue(&Leaf::node_client(NODE).with_foreign_key())?;
    let cases = [
        (
            nameless,
            format!(
                "`{shown}/tls.pem` is not used: certificate `O=system:nodes, CN=kubelet` has the \
                 common name `kubelet`, expected `system:node:<node-name>`"
            ),
        ),
        (
            mismatched,
            format!(
                "the private key in `{shown}/tls.key` does not match certificate \
                 `O=system:nodes, CN=system:node:{NODE}` in `{shown}/tls.pem`"
            ),
        ),
    ];
    for (issued, why) in cases {
        issued.write_pair(dir.join("tls.pem"), dir.join("tls.key"))?;

        let agent = stage.cluster.start_agent(0)?;
        let waits = wait_for_message(agent, 0, SOON, "not ready to connect")?;

        let reason = format!(
            "waiting for a client certificate: `{shown}/kubelet-client-current.pem` does not \
             exist; {why}"
        );
        assert_eq!(waits.text("reason"), Some(&*reason));
    }
    stage.cluster.pki().node_client(NODE)?;
    wait_for_message(stage.cluster.agent(0), 0, SOON, "session up")?;
    Ok(())
}

#[test]
fn files_that_are_named_go_before_the_directory() -> Result<()> {
    let stage = Stage::new()?;
    stage
        .cluster
        .pki()
        .install_node_client(NODE, &stage.useless()?)?;
    let files = stage
        .cluster
        .pki()
        .pair("elsewhere/agent", &Leaf::node_client(NODE))?;

    stage.comes_up(&format!(
        "client-cert: {}\nclient-key: {}\n",
        files.cert.display(),
        files.key.display()
    ))
}

#[test]
fn one_file_that_is_named_may_hold_both() -> Result<()> {
    let stage = Stage::new()?;
    stage
        .cluster
        .pki()
        .install_node_client(NODE, &stage.useless()?)?;
    let both = stage.cluster.dir().join("elsewhere/both.pem");
    stage
        .cluster
        .pki()
        .ca()
        .issue(&Leaf::node_client(NODE))?
        .write_combined(&both)?;

    stage.comes_up(&format!("client-cert: {}\n", both.display()))
}

#[test]
fn files_that_are_named_and_not_there_are_waited_for_one_by_one() -> Result<()> {
    let mut stage = Stage::new()?;
    let elsewhere = stage.cluster.dir().join("elsewhere");
    let (cert, key) = (elsewhere.join("agent.crt"), elsewhere.join("agent.key"));
    let issued = stage.cluster.pki().ca().issue(&Leaf::node_client(NODE))?;
    let lines = format!(
        "client-cert: {}\nclient-key: {}\n",
        cert.display(),
        key.display()
    );
    let config = format!("{}{lines}", stage.cluster.agent_config(0)?);

    let agent = stage.cluster.start_agent_with(0, &config)?;
    let waits = wait_for_message(agent, 0, SOON, "not ready to connect")?;

    let reason = format!(
        "waiting for a client certificate: `{}` does not exist; `{}` does not exist",
        cert.display(),
        key.display()
    );
    assert_eq!(waits.text("reason"), Some(&*reason));

    let mark = agent.mark();
    fs::create_dir_all(&elsewhere)?;
    fs::write(&cert, issued.cert_pem())?;
    let agent = stage.cluster.agent(0);
    let reason = format!(
        "waiting for a client certificate: `{}` does not exist",
        key.display()
    );
    let half = |line: &str| line.contains("not ready to connect") && line.contains(&reason);
    agent.wait_for_line_after(mark, half, SOON)?;

    fs::write(&key, issued.key_pem())?;
    wait_for_message(agent, 0, SOON, "session up")?;
    Ok(())
}

struct Stage {
    cluster: Cluster,
    stranger: Authority,
}

impl Stage {
    fn new() -> Result<Self> {
        let mut cluster = Cluster::builder().build()?;
        cluster.start_master(0)?;
        assert_eq!(cluster.node_name(0), NODE);
        Ok(Self {
            cluster,
            stranger: Authority::new("another-ca")?,
        })
    }

    /// A certificate that is fit in every way, and of no use with this master.
    fn useless(&self) -> Result<proxymux_testkit::pki::Issued> {
        self.stranger.issue(&Leaf::node_client(NODE))
    }

    /// The agent finds the right certificate at its first attempt.
    fn comes_up(mut self, lines: &str) -> Result<()> {
        let config = format!("{}{lines}", self.cluster.agent_config(0)?);
        let agent = self.cluster.start_agent_with(0, &config)?;
        wait_for_message(agent, 0, SOON, "session up")?;
        assert_eq!(agent.count_lines("\"no session\""), 0);
        Ok(())
    }
}

const NODE: &str = "10.0.10.10";
