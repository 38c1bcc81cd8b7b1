//! Part 3: the agent starts, and the same request succeeds.

use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::{
    checks::Checks,
    kubectl::{LOGS, TYPED_LOGS, prints},
    screen::span,
    stage::{Stage, Who},
};
use crate::admin::command;

pub(super) async fn play(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.heading("3. The agent starts");
    show.screen.say(
        "The file below is that of a node on OKE, as its bootstrap writes it. Changed is where the \
         certificates are, and added what stands behind the last line of that file, because these \
         machines share one file system.",
    );
    show.screen.gap();
    show.screen.quietly(&stage.agent_file());
    show.screen.gap();
    show.screen.typed(&format!(
        "proxymux-agent --config={} --verbosity=info",
        stage.path(Who::Agent.file_name())
    ));
    session_comes_up(show, stage).await?;

    show.screen.gap();
    show.screen.say("And the same request once more:");
    show.screen.gap();
    show.screen.typed(&format!("{TYPED_LOGS} --tail=3"));
    let answer = stage.ask(&format!("{LOGS}?tailLines=3")).await?;
    let expected = "kubectl logs works, through the session";
    let reply = prints(show, expected, answer)?;
    let lines = reply.text().lines().count();
    show.check(
        lines == 3,
        "it prints the three lines asked for",
        format!("{lines} lines"),
    )?;
    agent_says_that_it_is_ready(show, stage)
}

fn agent_says_that_it_is_ready(show: &mut Checks, stage: &Stage) -> Result<()> {
    show.screen.gap();
    show.screen
        .say("The agent can be asked how it is doing, by people and by probes:");
    show.screen.gap();
    let config = format!("--config={}", stage.path(Who::Agent.file_name()));
    show.screen
        .typed(&format!("proxymux-agent status --ready {config}"));
    let expected = "the agent says that it is ready";
    let asked = command("proxymux-agent", &["status", "--ready", &config]);
    let said = show.have(expected, asked)?;
    show.screen.verbatim(&said.stdout);
    show.screen.gap();
    let seen = format!("{}{}", said.stdout, said.stderr);
    show.check(said.code == Some(0), expected, seen.trim_end())
}

async fn session_comes_up(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    let mark = stage.daemon(Who::Master).mark();
    let started = Instant::now();
    stage.start_agent()?;
    let expected = "the agent has a session within 10 s";
    let up = stage
        .line_of(Who::Agent, 0, "session up", SESSION_LIMIT)
        .await;
    let took = started.elapsed();
    let agents_line = show.have(expected, up)?;
    let masters_line = stage
        .line_of(Who::Master, mark, "session up", SESSION_LIMIT)
        .await;
    let masters_line = show.have(expected, masters_line)?;
    show.screen.verbatim(&agents_line);
    show.screen.verbatim(&masters_line);
    show.screen.gap();
    let seen = format!("{} after it was started", span(took));
    show.check(took <= SESSION_LIMIT, expected, seen)?;

    let router = stage.cluster().topology().router().ipv4();
    let peer = masters_line
        .split(" peer=")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .unwrap_or("no peer in the master's line");
    show.check(
        peer.starts_with(&format!("{router}:")),
        "the master sees it come from the router, so it crossed the NAT",
        peer,
    )?;

    let granted = "address leads to this node";
    let expected = "the node's address leads to it, proven by its certificate";
    let granted = stage.line_of(Who::Agent, 0, granted, SESSION_LIMIT).await;
    let granted = show.have(expected, granted)?;
    let address = format!("address={}", stage.node_host().ipv4());
    show.check(granted.contains(&address), expected, address)
}

const SESSION_LIMIT: Duration = Duration::from_secs(10);
