//! The listeners of steering: who reaches them, and what `steer-plain` makes of who does.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use proxymux_tests::{
    admin::{at_agent, status},
    events::wait_for,
    limits::SOON,
    visitors::{Family, Holder},
};
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

use crate::stage::{self, SOURCES, Stage};

/// If one of them did, a crowd could fill the queue, and the control plane's connections with it.
#[test]
fn a_crowd_on_the_node_that_dials_the_listeners_reaches_none_of_them() -> Result<()> {
    let stage = stage::start("netlink")?;
    let listeners = listeners(&stage)?;
    assert_eq!(listeners.len(), 2, "one for each family: {listeners:?}");

    let crowd = stage.node().clone().runtime()?;
    let dialling = crowd.block_on(async move { anyhow::Ok(dial(&listeners)) })?;
    for family in Family::ALL {
        assert_eq!(stage.visit(family)?, Holder::Agent, "{family:?}");
    }
    let connected = crowd.block_on(async move { anyhow::Ok(count_connected(dialling).await) })?;

    assert_eq!(connected, 0);
    let others = "proxymux_agent_steered_refused_total{reason=\"not-steered\"}";
    assert_eq!(stage.metric(others)?, 0.0);
    for family in Family::ALL {
        assert_eq!(stage.visit(family)?, Holder::Agent, "{family:?}");
    }
    Ok(())
}

#[test]
fn a_node_that_refuses_plain_tls_says_so_and_relays_nothing() -> Result<()> {
    let lines = format!("{SOURCES}steer-plain: refuse\n");
    let mut stage = stage::build_with("netlink", &lines)?;
    stage.cluster.start_agent(0)?;
    let agent = stage.cluster.agent(0);
    wait_for(agent, 0, SOON, |event| {
        event.message == "connections are steered"
    })?;

    for family in Family::ALL {
        let mark = stage.cluster.agent(0).mark();
        let visit = stage.visit(family);

        assert!(visit.is_err(), "{family:?}: {visit:?}");
        let agent = stage.cluster.agent(0);
        let refused = wait_for(agent, mark, SOON, |event| {
            event.message == "connection refused"
        })?;
        assert_eq!(refused.text("path"), Some("steered"));
        assert_eq!(refused.text("reason"), Some("policy"));
        assert_eq!(
            refused.text("error"),
            Some("client begins with TLS, and steer-plain is refuse")
        );
    }
    let refused = "proxymux_agent_steered_refused_total{reason=\"policy\"}";
    assert_eq!(stage.metric(refused)?, 2.0);
    Ok(())
}

fn listeners(stage: &Stage) -> Result<Vec<SocketAddr>> {
    let at = at_agent(&stage.cluster, 0);
    let status = stage.node().block_on(status(&at))?;
    let listeners = status.pointer("/steering/listeners");
    let listeners = listeners.and_then(|value| value.as_array());
    listeners
        .with_context(|| format!("listeners in {status}"))?
        .iter()
        .map(|at| Ok(at.as_str().context("an address")?.parse()?))
        .collect()
}

/// More than the queues of both listeners hold.
fn dial(listeners: &[SocketAddr]) -> JoinSet<bool> {
    let mut dialling = JoinSet::new();
    for at in listeners.iter().copied() {
        for _ in 0..CROWD {
            dialling.spawn(async move {
                matches!(timeout(TRIED_FOR, TcpStream::connect(at)).await, Ok(Ok(_)))
            });
        }
    }
    dialling
}

async fn count_connected(dialling: JoinSet<bool>) -> usize {
    let all = dialling.join_all().await;
    all.into_iter().filter(|connected| *connected).count()
}

const CROWD: usize = 1500;

/// The first packet is sent twice in that time.
const TRIED_FOR: Duration = Duration::from_secs(3);
