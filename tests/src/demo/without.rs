//! Part 2: what a person sees who has no agent on the node.

use anyhow::Result;

use super::{
    checks::Checks,
    kubectl::{LOGS, TYPED_LOGS, fails, is_refused_dial, status_line},
    screen::span,
    stage::{BUDGET, Stage, Who},
};

pub(super) async fn play(show: &mut Checks, stage: &mut Stage) -> Result<()> {
    show.screen.heading("2. Without an agent");
    let target = stage.target();

    show.screen.say(
        "First as in a cluster without any tunnel: kube-apiserver dials the kubelet itself. On OKE \
         this is what is left when the proxymux-client DaemonSet is deleted; there the line ends \
         in `EOF`.",
    );
    show.screen.gap();
    show.screen.typed(TYPED_LOGS);
    let answer = stage.ask_from_master(LOGS).await?;
    fails(
        show,
        "kubectl logs fails when kube-apiserver dials the kubelet itself",
        (&target, LOGS),
        &answer,
        is_refused_dial,
    )?;

    show.screen.gap();
    show.screen.say(
        "Now the master. It takes agents on port 12250, and kube-apiserver's HTTP CONNECT on a \
         Unix socket, the place that an EgressSelectorConfiguration names. Its file:",
    );
    show.screen.gap();
    show.screen.quietly(&stage.master_file());
    show.screen.gap();
    show.screen.typed(&format!(
        "proxymux-master --config={} --verbosity=info",
        stage.path(Who::Master.file_name())
    ));
    let expected = "the master starts";
    let started = stage.start_master().await;
    let took = show.have(expected, started)?;
    show.check(true, expected, format!("up after {}", span(took)))?;

    show.screen.gap();
    show.screen.say(&format!(
        "kube-apiserver asks there for {target}, and there is no agent yet. The answer takes as \
         long as connect-budget, {} s here and 8 s by default: in its first 15 s a master waits for \
         nodes that may be on their way back to it.",
        BUDGET.as_secs(),
    ));
    show.screen.gap();
    show.screen.typed(TYPED_LOGS);
    let answer = stage.ask(LOGS).await?;
    fails(
        show,
        "without an agent kubectl logs fails, and its line says why",
        (&target, LOGS),
        &answer,
        |error| status_line(error).starts_with(&format!("503 no route to {target}: ")),
    )
}
