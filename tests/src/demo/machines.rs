//! Part 1: the machines, and that the node cannot be dialled.

use anyhow::{Context, Result};
use proxymux_testkit::netns::Host;

use super::{
    checks::Checks,
    kubectl::{fails_silently, is_refused_dial, succeeds},
    stage::Stage,
};

pub(super) async fn play(show: &mut Checks, stage: &Stage) -> Result<()> {
    show.screen
        .heading("1. Three machines, and a node that cannot be dialled");
    let (master, node) = (Link::of(stage.master_host())?, Link::of(stage.node_host())?);
    show.screen.verbatim(&picture(stage, &master, &node));
    show.screen.gap();
    show.screen.say(&format!(
        "Made of network namespaces and veth links. The node stands in a private subnet. What it starts itself gets out, through the router's \
         NAT and as {}; what is dialled towards it is refused. kube-apiserver and kubelet are \
         stand-ins that speak on the wire as the real ones do; everything else is real. Lines with \
         a $ show what a person would type.",
        stage.cluster().topology().router().ipv4()
    ));
    show.screen.gap();

    show.check(
        node.name == "ens3" && node.mtu == "9000",
        "the node's interface is ens3, with jumbo frames",
        format!("{}, MTU {}", node.name, node.mtu),
    )?;
    let answer = stage.ask_from_node("/healthz").await?;
    succeeds(show, "on the node itself its kubelet answers", answer)?;

    let answer = stage.ask_from_master("/healthz").await?;
    let expected = "from the master's machine it cannot be dialled";
    fails_silently(show, expected, &answer, is_refused_dial)
}

/// A host's interface as the kernel sees it.
struct Link {
    name: String,
    mtu: String,
}

impl Link {
    fn of(host: &Host) -> Result<Self> {
        let line = host.ip(&["-oneline", "link", "show", "dev", host.interface()])?;
        // `2: ens3@if3: <BROADCAST,...> mtu 9000 qdisc ...`
        let mut words = line.split_whitespace();
        let name = words
            .nth(1)
            .map(|name| name.trim_end_matches(':').split('@').next().unwrap_or(name));
        let mtu = words.skip_while(|word| *word != "mtu").nth(1);
        let (name, mtu) = name
            .zip(mtu)
            .with_context(|| format!("cannot read what ip says about a link: {line:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            mtu: mtu.to_owned(),
        })
    }
}

fn picture(stage: &Stage, master: &Link, node: &Link) -> String {
    let master_end = format!("{} {}", master.name, stage.master_host().ipv4());
    let node_end = format!("{} {}", node.name, stage.node_host().ipv4());
    let (left, right) = (format!("MTU {}", master.mtu), format!("MTU {}", node.mtu));
    format!(
        "+---------- master ----------+          +-- router --+          +----------- node -----------+\n\
         | kube-apiserver             |          |            |          |             kubelet :10250 |\n\
         | proxymux-master :12250     |          |    NAT     |          |             proxymux-agent |\n\
         |{master_end:>27} |----------|            |----------| {node_end:<27}|\n\
         +----------------------------+{left:^10}+------------+{right:^10}+----------------------------+\n",
    )
}
