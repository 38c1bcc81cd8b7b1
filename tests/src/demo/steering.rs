//! Part 6: the kubelet's port on a node that can be dialled: steering off and on, and the guard.
//!
//! Each step restarts the agent with one more line in its file and looks at what the program on
//! the NIC has counted. Where the kernel takes no eBPF program the part says so and is left out.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use proxymux_testkit::{cluster::AGENT, netns::Reach};
use proxymux_transport::config_file::values::AdminAddr;
use tokio::time::{Instant, sleep, timeout};

use super::{
    access::AccessLine,
    checks::Checks,
    kubectl::succeeds,
    screen::span,
    stage::{Stage, Who},
};
use crate::admin;

pub(super) async fn play(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen
        .heading("6. A node that can be dialled: steering and guard");
    show.screen.say(
        "In other clusters the nodes' subnet is routed, and a control plane dials the kubelet by \
         itself. From here on the router routes. A program on the node's ens3 then gives what \
         the masters dial to the agent, and can keep everybody else from the kubelet's port.",
    );
    stage.cluster().topology().set_reach(Reach::Routed)?;
    show.screen.gap();
    off(show, stage).await?;
    show.screen.gap();
    if on(show, stage).await? {
        show.screen.gap();
        killed(show, stage).await?;
        show.screen.gap();
        audit(show, stage).await?;
        show.screen.gap();
        enforce(show, stage).await?;
    }
    // As it was, for whoever keeps the machines.
    stage.cluster().topology().set_reach(Reach::Nat)?;
    with(show, stage, "").await
}

async fn off(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.say("First without it. The agent's file says:");
    show.screen.gap();
    with(show, stage, "mode: userspace\n").await?;
    let before = steered(stage)?;
    show.screen.typed(TYPED);
    let answer = stage.ask_from_master("/healthz").await?;
    let expected = "without steering the kubelet answers who dials it";
    succeeds(show, expected, answer)?;
    let count = steered(stage)? - before;
    show.check(
        count == 0,
        "the agent has not seen it",
        format!("{count} lines with path steered in its log"),
    )
}

/// Whether there is eBPF.
async fn on(show: &mut Checks, stage: &mut Stage) -> Result<bool> {
    show.screen.say(
        "Now with what is the default, mode: auto. Whom to steer the agent knows from its \
         server-addr.",
    );
    show.screen.gap();
    let mark = stage.log_of(Who::Agent)?.lines().count();
    with(show, stage, "").await?;
    let log = stage.log_of(Who::Agent)?;
    let mut fresh = log.lines().skip(mark);
    let chosen = fresh.find(|line| line.contains("mode chosen"));
    let chosen = chosen.context("the agent has not said its mode")?;
    show.screen.verbatim(chosen);
    show.screen.gap();
    if !chosen.contains("ebpf") || chosen.contains("mode=\"userspace\"") {
        show.screen.say(
            "This kernel takes no eBPF program from us, for the reason above: the agent goes on \
             without it, and the rest of this part is left out.",
        );
        return Ok(false);
    }
    let (before, assigned) = (steered(stage)?, counted(stage, ASSIGNED).await?);
    show.screen.typed(TYPED);
    let answer = stage.ask_from_master("/healthz").await?;
    succeeds(show, "with steering the same is answered", answer)?;
    let assigned = counted(stage, ASSIGNED).await? - assigned;
    let accepted = counted(stage, ACCEPTED).await?;
    show.check(
        assigned >= 1.0 && accepted >= 1.0,
        "the program has assigned it, and the agent has accepted it",
        format!("{assigned} assigned, {accepted} accepted"),
    )?;
    let expected = "the agent's log has it, with the path steered";
    let lines = lines_after(stage, before).await?;
    show.check(lines == 1, expected, format!("{lines} line"))?;
    Ok(true)
}

async fn killed(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen
        .say("The agent is killed in the middle of it, and nobody starts it again.");
    show.screen.gap();
    show.screen.typed("kill -9 $(pidof proxymux-agent)");
    let before = steered(stage)?;
    stage.daemon(Who::Agent).signal(Signal::SIGKILL)?;
    while stage.daemon(Who::Agent).is_running()? {
        sleep(INTERVAL).await;
    }
    show.screen.typed(TYPED);
    let answer = stage.ask_from_master("/healthz").await?;
    let expected = "with a dead agent the kubelet answers, at once";
    succeeds(show, expected, answer)?;
    let count = steered(stage)? - before;
    show.check(
        count == 0,
        "the node's network is as if there had never been an agent",
        format!("{count} lines with path steered since it died"),
    )
}

async fn audit(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.say(
        "The guard says who comes to the kubelet's port besides the masters. The router, which \
         stands in the nodes' subnet too, plays a metrics-server that scrapes kubelets.",
    );
    show.screen.gap();
    with(show, stage, "guard: audit\n").await?;
    show.screen.typed(TYPED);
    let reached = answers_third(stage, UP_LIMIT).await?;
    let audited = counted(stage, AUDITED).await?;
    show.check(
        reached && audited >= 1.0,
        "in audit a third machine gets through, and is counted",
        format!("answered, {audited} audited"),
    )?;
    show.screen.typed("proxymux-agent guard suggest");
    let file = stage.path(Who::Agent.file_name());
    let flag = format!("--config={file}");
    let printed = admin::command(AGENT, &[&flag, "guard", "suggest"])?;
    show.screen.gap();
    show.screen.verbatim(&printed.stdout);
    show.screen.gap();
    let third = third(stage);
    show.check(
        printed.code == Some(0) && printed.stdout.contains(&third),
        "the agent suggests the line that would let it in",
        third,
    )
}

async fn enforce(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen
        .say("Then it is enforced, with somebody else in guard-allow:");
    show.screen.gap();
    with(show, stage, ENFORCE).await?;
    show.screen.typed(TYPED);
    let reached = answers_third(stage, PATIENCE).await?;
    let dropped = counted(stage, DROPPED).await?;
    let expected = "the third machine's packets are dropped";
    let outcome = if reached { "answered" } else { "no answer" };
    let seen = format!("{outcome} within {}, {dropped} dropped", span(PATIENCE));
    show.check(!reached && dropped >= 1.0, expected, seen)?;
    let answer = stage.ask_from_master("/healthz").await?;
    succeeds(show, "the control plane still gets through", answer).map(drop)
}

/// Restarts the agent with these lines at the end of its file, and waits for its session.
async fn with(show: &mut Checks, stage: &mut Stage, lines: &str) -> Result<()> {
    if !lines.is_empty() {
        show.screen.quietly(lines);
        show.screen.gap();
    }
    if stage.daemon(Who::Agent).is_running()? {
        stage.end(Who::Agent).await?;
    }
    stage.start_agent_with(lines)?;
    let up = stage.line_of(Who::Agent, 0, "session up", UP_LIMIT).await;
    show.have("the agent has a session again", up).map(drop)
}

/// How many steered connections are in the agent's log, in all its lives.
fn steered(stage: &Stage) -> Result<usize> {
    let log = stage.log_of(Who::Agent)?;
    let lines = AccessLine::all(&log);
    Ok(lines.iter().filter(|line| line.is_steered()).count())
}

/// Waits for a line that is written a moment after its client has gone.
async fn lines_after(stage: &Stage, before: usize) -> Result<usize> {
    let deadline = Instant::now() + UP_LIMIT;
    loop {
        let lines = steered(stage)? - before;
        if lines > 0 || Instant::now() >= deadline {
            return Ok(lines);
        }
        sleep(INTERVAL).await;
    }
}

/// A metric of the agent that runs.
async fn counted(stage: &Stage, sample: &str) -> Result<f64> {
    let at = AdminAddr::Unix(stage.path("agent.admin").into());
    Ok(admin::scrape(&at).await?.get(sample))
}

/// Whether a machine that is neither a master nor this node gets an answer from the kubelet.
async fn answers_third(stage: &Stage, limit: Duration) -> Result<bool> {
    let (api, target) = (stage.direct().clone(), stage.target());
    let runtime = stage.cluster().topology().router().runtime()?;
    let asked = async move { timeout(limit, api.get(&target, "/healthz")).await };
    let asked = runtime.spawn(asked).await.context("the request panicked")?;
    Ok(matches!(asked, Ok(Ok(_))))
}

/// The address that the third machine has in the nodes' subnet.
fn third(stage: &Stage) -> String {
    let [a, b, c, _] = stage.node_host().ipv4().octets();
    format!("{a}.{b}.{c}.1/32")
}

const TYPED: &str = "curl --cert apiserver-kubelet-client.crt https://10.0.10.10:10250/healthz";
const ENFORCE: &str = "guard: enforce\nguard-allow: [ 10.0.10.99/32 ]\n";
const ASSIGNED: &str = "proxymux_agent_steering_packets_total{verdict=\"assigned\"}";
const AUDITED: &str = "proxymux_agent_steering_packets_total{verdict=\"audited\"}";
const DROPPED: &str = "proxymux_agent_steering_packets_total{verdict=\"dropped\"}";
const ACCEPTED: &str = "proxymux_agent_steered_accepted_total";
/// In which a first packet is sent twice.
const PATIENCE: Duration = Duration::from_millis(1500);
const UP_LIMIT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(5);
