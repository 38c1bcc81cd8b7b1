//! Part 5: the agent is away, the master restarts, the agent is killed in the middle of a log.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::Signal;
use proxymux_testkit::apiserver::{LogLines, RequestError};
use tokio::time::{Instant, timeout};

use super::{
    checks::Checks,
    kubectl::{LOGS, TYPED_LOGS, fails, prints, status_line, with_sources},
    screen::span,
    stage::{BUDGET, Stage, Who},
};

pub(super) async fn play(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.heading("5. When something is away");
    agent_ends(show, stage).await?;
    show.screen.gap();
    agent_returns(show, stage).await?;
    show.screen.gap();
    master_restarts(show, stage).await?;
    show.screen.gap();
    agent_is_killed(show, stage).await
}

async fn agent_ends(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.say(&format!(
        "The agent is told to end, as in an update. A node that was here a moment ago is waited \
         for, so that an update does not show; when connect-budget ({} s) is over, the line \
         says since when the node is away.",
        BUDGET.as_secs()
    ));
    show.screen.gap();
    ends(show, stage, Who::Agent).await?;
    show.screen.gap();
    show.screen.typed(TYPED_LOGS);
    let target = stage.target();
    let answer = stage.ask(LOGS).await?;
    let node = stage.node_host().ipv4();
    fails(
        show,
        "kubectl logs fails, and its line says since when the node has no session",
        (&target, LOGS),
        &answer,
        |error| {
            status_line(error)
                .strip_prefix(&format!("503 node {node} has no session; last seen "))
                .and_then(|rest| rest.strip_suffix("s ago"))
                .is_some_and(|seconds| seconds.parse::<u64>().is_ok())
        },
    )
}

async fn agent_returns(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.say(
        "It is started again, and the request comes at the same moment, before there is a session:",
    );
    show.screen.gap();
    show.screen.typed(&format!("{TYPED_LOGS} --tail=1"));
    stage.start_agent()?;
    let answer = stage.ask(&format!("{LOGS}?tailLines=1")).await?;
    prints(
        show,
        "a request that comes a little early waits for the agent",
        answer,
    )
    .map(drop)
}

async fn master_restarts(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.say(
        "The master is restarted. Nobody tells the agent: it tries again by itself, after random \
         pauses that grow from 0.2 s, so that a whole fleet does not come back in one moment.",
    );
    show.screen.gap();
    let told = Instant::now();
    ends(show, stage, Who::Master).await?;
    let mark = stage.daemon(Who::Agent).mark();
    let expected = "the master starts again";
    let started = stage.start_master().await;
    let took = show.have(expected, started)?;
    show.check(true, expected, format!("up after {}", span(took)))?;

    let expected = "the agent comes back by itself";
    let line = stage
        .line_of(Who::Agent, mark, "session up", RETURN_LIMIT)
        .await;
    let back = told.elapsed();
    let line = show.have(expected, line)?;
    show.screen.gap();
    show.screen.verbatim(&line);
    show.screen.gap();
    let seen = format!("session up {} after the master was told to end", span(back));
    show.check(true, expected, seen)?;

    show.screen.gap();
    show.screen.typed(&format!("{TYPED_LOGS} --tail=1"));
    let answer = stage.ask(&format!("{LOGS}?tailLines=1")).await?;
    prints(show, "kubectl logs works with the new master", answer).map(drop)
}

async fn agent_is_killed(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.say(
        "Last the agent is killed without a warning while a log is followed. The log must not just \
         stand still, and must not end as if it were complete.",
    );
    show.screen.gap();
    show.screen
        .typed(&format!("{TYPED_LOGS} --tail=1 --follow"));
    let expected = "the log ends with an error at once";
    let followed = stage
        .follow(&format!("{LOGS}?follow=true&tailLines=1"))
        .await?;
    let mut lines = show.have_shown(expected, followed.result, |error| with_sources(error))?;
    for _ in 0..LINES_BEFORE {
        let line = timeout(END_LIMIT, lines.next_line()).await;
        let line = line.map_err(|_| anyhow!("no line within {END_LIMIT:?}"));
        let line = show.have(
            expected,
            line.and_then(|line| line.map_err(|error| anyhow!(with_sources(&error)))),
        )?;
        show.screen
            .verbatim(&line.context("the log ended before anybody was killed")?);
    }
    show.screen
        .typed("kill -9 $(pidof proxymux-agent)     # in another terminal");
    let killed = Instant::now();
    stage.daemon(Who::Agent).signal(Signal::SIGKILL)?;
    let (end, more) = how_it_ends(&mut lines).await;
    let took = killed.elapsed();
    match end {
        None => show.check(false, expected, format!("nothing within {END_LIMIT:?}")),
        Some(Ok(())) => show.check(false, expected, "an end as if the log were complete"),
        Some(Err(error)) => {
            let words = with_sources(&error);
            show.screen.verbatim(&format!("error: {words}"));
            show.screen.gap();
            let short = format!("after {}", span(took));
            let seen = format!("{short} and {more} more lines: {words}");
            show.check_in_short(took <= END_LIMIT, expected, &short, seen)
        }
    }?;

    show.screen.gap();
    show.screen.say(
        "Whoever watches over it (here the demo, else systemd or the kubelet) starts it again:",
    );
    show.screen.gap();
    show.screen.typed(&format!("{TYPED_LOGS} --tail=1"));
    let started = Instant::now();
    stage.start_agent()?;
    let answer = stage.ask(&format!("{LOGS}?tailLines=1")).await?;
    let restarted = started.elapsed();
    let expected = "the next request works";
    prints(show, expected, answer)?;
    show.check(
        restarted <= BUDGET,
        format!(
            "it did so within {} s of the agent's restart",
            BUDGET.as_secs()
        ),
        span(restarted),
    )
}

/// Tells a daemon to end and checks that it does so as it should.
async fn ends(show: &mut Checks, stage: &mut Stage, who: Who) -> Result<()> {
    show.screen
        .typed(&format!("kill -TERM $(pidof {})", who.program()));
    let expected = format!("{} ends when it is told to", who.program());
    let ended = stage.end(who).await;
    let (status, took) = show.have(&expected, ended)?;
    let seen = format!("{status}, {} after SIGTERM", span(took));
    show.check(status.success(), expected, seen)
}

/// Reads on until the log ends, and says how and after how many lines; `None` if it does not.
async fn how_it_ends(lines: &mut LogLines) -> (Option<Result<(), RequestError>>, usize) {
    let mut more = 0;
    let reading = async {
        loop {
            match lines.next_line().await {
                Ok(Some(_)) => more += 1,
                Ok(None) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    };
    let end = timeout(END_LIMIT, reading).await.ok();
    (end, more)
}

/// How many lines of the log are shown before the agent is killed.
const LINES_BEFORE: usize = 4;
/// The kernel closes a killed agent's connections at once; this is for a machine under load.
const END_LIMIT: Duration = Duration::from_secs(5);
/// The pauses between an agent's attempts have doubled a few times at most.
const RETURN_LIMIT: Duration = Duration::from_secs(20);
