//! Part 4: what travels through the session: a followed log, an exec, metrics.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use proxymux_testkit::{
    kubelet::{exec_trailer, log_line_number},
    pattern::Digest,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

use super::{
    checks::Checks,
    kubectl::{EXEC, LOGS, TYPED_LOGS, succeeds, with_sources},
    screen::{size, span},
    stage::{Stage, answer},
};

/// Returns how many bytes of metrics there were.
pub(super) async fn play(show: &mut Checks, stage: &mut Stage) -> Result<u64> {
    show.screen.heading("4. What travels through the session");
    follow(show, stage).await?;
    show.screen.gap();
    exec(show, stage).await?;
    show.screen.gap();
    metrics(show, stage).await
}

async fn follow(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.say(
        "A log that is followed: three lines that are there already, then new ones as the \
         container writes them, ten a second. In front the time at which each arrived.",
    );
    show.screen.gap();
    show.screen
        .typed(&format!("{TYPED_LOGS} --tail=3 --follow"));
    let expected = "every line arrives, in order, when it is written";
    let path = format!("{LOGS}?follow=true&tailLines={OLD_LINES}");
    let asked = Instant::now();
    let followed = stage.follow(&path).await?;
    let mut lines = show.have_shown(expected, followed.result, |error| with_sources(error))?;
    let mut arrivals = Vec::new();
    for _ in 0..OLD_LINES + NEW_LINES {
        let next = timeout(LINE_LIMIT, lines.next_line()).await;
        let next = next
            .map_err(|_| anyhow!("no line within {LINE_LIMIT:?}"))
            .and_then(|line| line.map_err(|error| anyhow!(with_sources(&error))))
            .and_then(|line| line.context("the log ended"));
        let line = show.have(expected, next)?;
        let at = asked.elapsed();
        show.screen
            .verbatim(&format!("+{:.3} s  {line}", at.as_secs_f64()));
        arrivals.push((log_line_number(&line), at));
    }
    show.screen.gap();
    let numbers: Vec<_> = arrivals.iter().map(|(number, _)| *number).collect();
    let in_order = numbers
        .windows(2)
        .all(|pair| matches!(pair, [Some(one), Some(next)] if *next == one + 1));
    let spread = arrivals
        .first()
        .zip(arrivals.last())
        .map(|((_, first), (_, last))| *last - *first)
        .unwrap_or_default();
    let seen = format!("{} lines in {}, none missing", numbers.len(), span(spread));
    // Had they been held back and sent together, there would be no time between them.
    show.check(in_order && spread >= LEAST_SPREAD, expected, seen)
}

async fn exec(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.say(
        "An exec. Its connection is upgraded, then both sides talk at once. When the client has \
         said all, it closes its direction only, and still gets what the other side has to say.",
    );
    show.screen.gap();
    show.screen
        .typed("echo 'hello, node' | kubectl -n kube-system exec -i kube-flannel-ds-h9cm9 -- cat");
    let expected = "an exec echoes, and the end of one direction leaves the other open";
    let (api, target) = stage.dial();
    let opened = answer(api.exec(&target, EXEC)).await?;
    let mut stream = show.have_shown(expected, opened.result, |error| with_sources(error))?;
    let talk = async {
        let asked = Instant::now();
        stream.write_all(GREETING).await?;
        stream.flush().await?;
        let mut echo = vec![0; GREETING.len()];
        stream.read_exact(&mut echo).await?;
        let round_trip = asked.elapsed();
        stream.shutdown().await?;
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await?;
        anyhow::Ok((echo, round_trip, rest))
    };
    let talked = timeout(EXEC_LIMIT, talk).await;
    let talked = talked.unwrap_or_else(|_| Err(anyhow!("no end within {EXEC_LIMIT:?}")));
    let (echo, round_trip, rest) = show.have(expected, talked)?;
    let mut sent = Digest::default();
    sent.update(GREETING);
    show.screen.verbatim(&String::from_utf8_lossy(&echo));
    show.screen.verbatim(&rest);
    show.screen.gap();
    let short = format!("echo after {}", span(round_trip));
    let seen = format!("{short}, then {:?} and the end", rest.trim_end());
    let holds = echo == GREETING && rest == exec_trailer(&sent);
    show.check_in_short(holds, expected, &short, seen)
}

async fn metrics(show: &mut Checks, stage: &mut Stage) -> Result<u64> {
    show.screen
        .say("And something larger, compared with what the kubelet gives the node itself.");
    show.screen.gap();
    show.screen
        .typed("kubectl get --raw /api/v1/nodes/10.0.10.10/proxy/metrics | wc -c");
    let on_the_node = stage.ask_from_node("/metrics").await?;
    let expected = "on the node itself the kubelet gives its metrics";
    let original = show.have_shown(expected, on_the_node.result, |e| with_sources(e))?;
    let answer = stage.ask("/metrics").await?;
    let took = answer.took;
    if let Ok(reply) = &answer.result {
        show.screen.verbatim(&reply.body.len().to_string());
        show.screen.gap();
    }
    let reply = succeeds(show, "the kubelet's metrics arrive", answer)?;
    let length = reply.body.len() as u64;
    show.check(
        length >= LEAST_METRICS && reply.body == original.body,
        "they are megabytes, and not a byte is different",
        format!("{} in {}, the same bytes", size(length), span(took)),
    )?;
    Ok(length)
}

const GREETING: &[u8] = b"hello, node\n";

const OLD_LINES: usize = 3;
const NEW_LINES: usize = 7;
/// The container writes ten a second.
const LINE_LIMIT: Duration = Duration::from_secs(5);
/// Less than half the time in which the new lines are written, for a machine that is busy.
const LEAST_SPREAD: Duration = Duration::from_millis(300);
const EXEC_LIMIT: Duration = Duration::from_secs(10);
const LEAST_METRICS: u64 = 1 << 20;
