//! `--keep`: how to play with the machines, and one of the printed lines tried out.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::{process::Command, time::timeout};

use super::{
    checks::Checks,
    kubectl::LOGS,
    stage::{DOOR_PORT, Stage, Who},
};

pub(super) async fn play(show: &mut Checks, stage: &Stage) -> Result<()> {
    show.screen.heading("9. Yours to play with");
    show.screen
        .say("All of it goes on running. A shell on each machine, as root:");
    show.screen.gap();
    for host in stage.cluster().topology().hosts() {
        let line = format!(
            "ip netns exec {:<20} bash   # {}",
            host.namespace(),
            host.name()
        );
        show.screen.typed(&line);
    }
    show.screen.gap();
    show.screen.say(
        "A request to the kubelet, through the master's second front door, which is for clients \
         with certificates on other machines. The first one is the Unix socket, and curl cannot \
         use that as a proxy.",
    );
    show.screen.gap();
    let line = curl_line(stage);
    show.screen.for_a_shell(&line);
    show.screen.gap();
    try_curl(show, &line).await?;
    show.screen.gap();
    show.screen.say("Where things are:");
    show.screen.gap();
    for who in Who::BOTH {
        let (file, log) = (stage.path(who.file_name()), stage.path(who.log_name()));
        show.screen
            .verbatim(&format!("{:<16} {file}\n{:<16} {log}", who.program(), ""));
    }
    let pki = stage.path("ca.crt");
    show.screen.verbatim(&format!(
        "{:<16} {pki}, and the directories beside it",
        "certificates"
    ));
    show.screen
        .verbatim(&format!("{:<16} {}", "front door", stage.door()));
    for who in Who::BOTH {
        let verb = match who {
            Who::Master => "nodes",
            Who::Agent => "status",
        };
        let (program, file) = (who.program(), stage.path(who.file_name()));
        show.screen.verbatim(&format!(
            "{:<16} {program} {verb} --config={file}",
            "how it is"
        ));
    }
    show.screen.gap();
    show.screen.say(&format!(
        "Ctrl-C, or `kill {}`, ends it and removes all of this.",
        std::process::id()
    ));
    Ok(())
}

/// Prints what a shell needs, to be pasted as it stands.
fn curl_line(stage: &Stage) -> String {
    let (host, dir) = (stage.master_host(), stage.path(""));
    let dir = dir.trim_end_matches('/');
    format!(
        "cd {dir} &&\n\
         ip netns exec {} curl --no-progress-meter \\\n\
         --proxy https://{}:{DOOR_PORT} --proxy-cacert ca.crt \\\n\
         --proxy-cert apiserver/egress.crt --proxy-key apiserver/egress.key \\\n\
         --cacert ca.crt --cert apiserver/kubelet-client.crt --key apiserver/kubelet-client.key \\\n\
         'https://{}{LOGS}?tailLines=2'",
        host.namespace(),
        host.ipv4(),
        stage.target(),
    )
}

async fn try_curl(show: &mut Checks, line: &str) -> Result<()> {
    let installed = run("command -v curl").await?.status.success();
    if !installed {
        show.screen
            .say("(There is no curl on this machine, so this line was not tried out.)");
        return Ok(());
    }
    let expected = "tried out, this line prints the log";
    let output = show.have(expected, run(line).await)?;
    let (said, complaint) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    let works = output.status.success() && said.lines().count() == 2;
    show.screen.verbatim(&said);
    show.screen.gap();
    let seen = format!("{} {complaint}", output.status);
    show.check(works, expected, seen.trim_end())
}

async fn run(line: &str) -> Result<std::process::Output> {
    let mut command = Command::new("sh");
    command.args(["-c", line]).kill_on_drop(true);
    let output = timeout(CURL_LIMIT, command.output()).await;
    output
        .map_err(|_| anyhow!("no end within {CURL_LIMIT:?}"))?
        .with_context(|| format!("cannot start a shell for {line:?}"))
}

const CURL_LIMIT: Duration = Duration::from_secs(10);
