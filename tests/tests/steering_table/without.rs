//! Without an agent: what the other tests compare with.

use anyhow::Result;
use proxymux_testkit::{cluster::Cluster, netns::Reach};
use proxymux_tests::visitors::{Family, Holder, Visitors};

#[test]
fn a_node_without_an_agent_has_its_kubelet_answer_both_families() -> Result<()> {
    let cluster = Cluster::builder().reach(Reach::Routed).build()?;
    let node = cluster.node(0);
    let visitors = Visitors::on(cluster.topology().master(), &cluster)?;

    for family in Family::ALL {
        let mut visit = visitors.visit(node, family)?;
        visit.ask()?;
        assert_eq!(visit.holder(node)?, Holder::Kubelet, "{family:?}");
    }
    assert_eq!(cluster.kubelet(0).stats().connections_accepted, 2);
    Ok(())
}
