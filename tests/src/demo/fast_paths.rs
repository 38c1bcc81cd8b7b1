//! Part 8: the paths beside the session: what each carries, and one after the other taken away.
//!
//! The master is restarted with the line that allows fast paths. The figures are those of its own
//! command `perf`; paths are cut by firewall rules on the master's machine, while four users ask.
//! Where the kernel takes no eBPF program there is no direct path, and the part says so.

use std::time::Duration;

use anyhow::{Context, Result};
use proxymux_testkit::{cluster::MASTER, netns::Reach};
use proxymux_transport::config_file::values::AdminAddr;
use tokio::time::{Instant, sleep};

use super::{
    access::AccessLine,
    checks::Checks,
    screen::span,
    stage::{Stage, Who},
};
use crate::{admin, asking::Asking};

pub(super) async fn play(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.heading("8. Faster than the session");
    show.screen.say(
        "What kube-apiserver and kubelet say to each other is encrypted by them already. If the \
         API server also verifies the kubelet's certificate, a connection needs no second \
         encryption, and no multiplexer: it may have a TCP connection of its own between master and \
         agent, which both relay inside the kernel. The agent dials some and keeps them ready \
         (reverse), or the master dials the node, whose agent steers (direct). The master's file \
         has to say so:",
    );
    show.screen.gap();
    stage.cluster().topology().set_reach(Reach::Routed)?;
    show.screen.quietly(VERIFIED);
    show.screen.gap();
    stage.end(Who::Agent).await?;
    stage.end(Who::Master).await?;
    stage.start_master_with(VERIFIED).await?;
    stage.start_agent()?;
    let direct = goes_by(stage, "direct", UP_LIMIT).await?;
    let best = if direct { "direct" } else { "reverse" };
    if !direct {
        show.screen.say(
            "The direct path is not there: it needs the program on the NIC, and this kernel takes \
             none from us, or something on the way is in its way. The rest goes on without it.",
        );
        show.screen.gap();
    }
    let ready = direct || goes_by(stage, best, UP_LIMIT).await?;
    let expected = format!("connections to the kubelet now go by the path {best}");
    show.check(ready, &expected, path_now(stage).await?)?;
    show.screen.gap();
    measure(show, stage, direct).await?;
    show.screen.gap();
    cut(show, stage, direct).await
}

/// One download, and more, by each path.
async fn measure(show: &mut Checks, stage: &Stage, direct: bool) -> Result<()> {
    let node = stage.cluster().node_name(0);
    show.screen
        .typed(&format!("proxymux-master perf --node {node} --seconds 1"));
    let flag = format!("--config={}", stage.path(Who::Master.file_name()));
    let node = format!("--node={node}");
    let order = [&*flag, "perf", &*node, "--seconds=1"].map(str::to_owned);
    let printed = tokio::task::spawn_blocking(move || {
        let order: Vec<&str> = order.iter().map(String::as_str).collect();
        admin::command(MASTER, &order)
    });
    let printed = printed.await.context("the command panicked")??;
    show.screen.gap();
    show.screen.verbatim(&printed.stdout);
    show.screen.gap();
    let measured = |path: &str| {
        let mut lines = printed.stdout.lines();
        lines.any(|line| line.starts_with(path) && line.contains("MiB/s"))
    };
    let expected: &[&str] = if direct {
        &["session", "reverse", "direct"]
    } else {
        &["session", "reverse"]
    };
    let all = printed.code == Some(0) && expected.iter().all(|path| measured(path));
    let seen = match printed.code {
        Some(0) => expected.join(", "),
        _ => printed.stderr,
    };
    show.check(all, "each path has moved bytes both ways", seen)
}

/// Path after path is cut while users ask without a pause.
async fn cut(show: &mut Checks, stage: &Stage, direct: bool) -> Result<()> {
    show.screen.say(
        "Now four users ask without a pause, and firewall rules on the master's machine take one \
         path after the other away. Nobody tells the daemons.",
    );
    show.screen.gap();
    let api = stage.cluster().api()?;
    let asking = Asking::start(&api, &stage.target());
    if direct {
        block(show, stage, "output", DIALS_TO_KUBELETS)?;
        let expected = "without the direct path they go by reverse";
        falls_back(show, stage, expected, "reverse", &["direct"]).await?;
    }
    block(show, stage, "input", DIALS_OF_AGENTS)?;
    let expected = "without flows they go by the session";
    falls_back(show, stage, expected, "session", &["reverse", "direct"]).await?;
    show.screen.typed("nft delete table inet blocked_input");
    stage.master_host().nft("delete table inet blocked_input")?;
    let expected = "flows that pass again are taken again";
    falls_back(show, stage, expected, "reverse", &[]).await?;
    if direct {
        stage
            .master_host()
            .nft("delete table inet blocked_output")?;
    }
    let answers = asking.stop().await?;
    let failures = answers.failures.first().map_or("", String::as_str);
    show.check(
        answers.failures.is_empty() && answers.good > 0,
        "no request failed meanwhile",
        format!(
            "{} answers, the slowest after {}, {} failures{failures}",
            answers.good,
            span(answers.slowest),
            answers.failures.len()
        ),
    )
}

fn block(show: &mut Checks, stage: &Stage, hook: &str, matches: &str) -> Result<()> {
    show.screen.typed(&format!(
        "nft add rule inet blocked_{hook} it {matches} drop"
    ));
    stage.master_host().nft(&format!(
        "table inet blocked_{hook} {{\n\
         chain it {{\n\
         type filter hook {hook} priority 0; policy accept;\n\
         {matches} drop\n\
         }}\n\
         }}\n"
    ))
}

/// Waits until requests go by a path, and no more by those that are gone, for a second.
async fn falls_back(
    show: &mut Checks,
    stage: &Stage,
    expected: &str,
    path: &str,
    gone: &[&str],
) -> Result<()> {
    let began = Instant::now();
    loop {
        let mark = stage.log_of(Who::Master)?.len();
        sleep(A_SECOND).await;
        let log = stage.log_of(Who::Master)?;
        let lines = AccessLine::all(log.get(mark..).unwrap_or_default());
        let by = |path: &str| lines.iter().filter(|line| line.is_by(path)).count();
        let there = by(path) > 0 && gone.iter().all(|gone| by(gone) == 0);
        if there || began.elapsed() >= FALL_BACK_LIMIT {
            let counts = ["direct", "reverse", "session"];
            let counts = counts.map(|path| format!("{} by {path}", by(path)));
            let seen = format!("in one second {}", counts.join(", "));
            return show.check(there, expected, seen);
        }
    }
}

/// Whether the master comes to send the node's connections this way. One that has just started may
/// not answer yet.
async fn goes_by(stage: &Stage, path: &str, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        let now = path_now(stage).await;
        if now.as_deref().is_ok_and(|now| now == path) {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return now.map(|_| false);
        }
        sleep(INTERVAL).await;
    }
}

/// The path of a connection to the node's kubelet, as the master would choose it now; "none" while
/// the node has no session.
async fn path_now(stage: &Stage) -> Result<String> {
    let at = AdminAddr::Unix(stage.path("master.admin").into());
    let status = admin::status(&at).await?;
    let path = status.pointer("/nodes/0/session/path");
    Ok(path
        .and_then(|path| path.as_str())
        .unwrap_or("none")
        .to_owned())
}

const VERIFIED: &str = "kubelet-certificates: verified\n";
/// New connections to kubelets, and to the port for agents.
const DIALS_TO_KUBELETS: &str = "tcp dport 10250 tcp flags & (syn | ack) == syn";
const DIALS_OF_AGENTS: &str = "tcp dport 12250 tcp flags & (syn | ack) == syn";
/// A session, a probe, and a margin for a busy machine.
const UP_LIMIT: Duration = Duration::from_secs(15);
/// What was proven is believed for a minute, unless a request finds out.
const FALL_BACK_LIMIT: Duration = Duration::from_secs(40);
const A_SECOND: Duration = Duration::from_secs(1);
const INTERVAL: Duration = Duration::from_millis(20);
