//! Several masters, each with flows of its own, and one that is not root.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use anyhow::{Context, Result, ensure};
use nix::unistd::{Gid, Uid, chown};
use proxymux_testkit::{
    cluster::{Cluster, MASTER, program},
    process::Daemon,
};
use proxymux_tests::{
    access::access_lines_now,
    asking::Asking,
    limits::{SOON, within},
};
use proxymux_transport::limits::raise_open_files;
use tokio::task::JoinSet;

use crate::stage::{by_path, direct, goes_by, metrics, reverse};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_masters_have_flows_of_their_own_and_one_that_dies_takes_only_its_own() -> Result<()> {
    for (builder, path) in [(reverse(), "reverse"), (direct(), "direct")] {
        let mut cluster = builder.masters(2).start()?;
        for master in 0..2 {
            goes_by(&cluster, master, path).await?;
        }
        let target = cluster.target(0);
        let (first, second) = (cluster.api_of(0)?, cluster.api_of(1)?);
        let asking = Asking::start(&first, &target);
        for _ in 0..20 {
            let reply = within(SOON, "healthz", second.get(&target, "/healthz")).await?;
            assert_eq!(reply.status, 200);
        }
        for master in 0..2 {
            let opened = format!("proxymux_master_streams_opened_total{{path=\"{path}\"}}");
            let fast = metrics(&cluster, master).await?.get(&opened);
            ensure!(fast > 0.0, "master {master} has used no flow");
        }

        cluster.master(1).kill()?;

        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        let answers = asking.stop().await?;
        assert_eq!(answers.failures, Vec::<String>::new());
        let lines = access_lines_now(cluster.master(0));
        ensure!(by_path(&lines, path) > 20, "{path}: {} lines", lines.len());
    }
    Ok(())
}

/// The kernel gives users who are not root less room in pipes: 600 connections move bytes at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_is_not_root_relays_600_fast_connections_at_once() -> Result<()> {
    raise_open_files();
    let mut cluster = direct().build()?;
    let config = cluster.master_config(0)?;
    let mut master = spawn_as(&cluster, UNPRIVILEGED, &config)?;
    master.wait_for_line("master is up", SOON)?;
    cluster.start_agent(0)?;
    cluster.wait_for_sessions()?;
    goes_by(&cluster, 0, "direct").await?;
    let (api, target) = (cluster.api()?, cluster.target(0));

    let mut users = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(within(SOON, "connect", api.connect_kubelet(&target)).await?);
    }
    let open = "proxymux_master_streams_open{path=\"direct\"}";
    let fast = metrics(&cluster, 0).await?.get(open);
    ensure!(
        fast >= 0.9 * f64::from(CONNECTIONS),
        "only {fast} connections are direct"
    );
    for (connection, seed) in connections.into_iter().zip(0_u64..) {
        users.spawn(async move {
            let path = format!("/bytes?n={BYTES}&seed={seed}");
            connection.get_pattern(&path, seed).await
        });
    }

    let limit = 6 * SOON;
    for got in within(limit, "all bodies", async {
        anyhow::Ok(users.join_all().await)
    })
    .await?
    {
        assert_eq!(got?, BYTES);
    }
    let metrics = metrics(&cluster, 0).await?;
    let spliced = metrics.get("proxymux_master_spliced_relays_total");
    ensure!(spliced >= fast, "{spliced} relays were spliced");
    ensure!(metrics.get("proxymux_master_pipes{state=\"held\"}") >= 0.0);
    eprintln!(
        "{fast} direct; fallbacks: {:?}",
        metrics
            .beginning_with("proxymux_master_splice_fallbacks")
            .collect::<Vec<_>>()
    );
    Ok(())
}

/// Starts the master as another user, to whom the cluster's directory is made over.
fn spawn_as(cluster: &Cluster, user: u32, config: &str) -> Result<Daemon> {
    let dir = cluster.dir();
    let file = dir.join("master-0.yaml");
    fs::write(&file, config)?;
    make_over(dir, user)?;
    let mut command = cluster.topology().master().command("setpriv");
    let (uid, gid) = (format!("--reuid={user}"), format!("--regid={user}"));
    command.args([
        &uid,
        &gid,
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]);
    // The program may lie where only root may look.
    let copy = dir.join(MASTER);
    fs::copy(program(MASTER)?, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    command.arg(&copy);
    command.arg(format!("--config={}", file.display()));
    command.arg("--verbosity=info");
    Daemon::spawn("a master that is not root", command)
}

fn make_over(path: &Path, user: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(user));
    chown(path, Some(uid), Some(gid)).with_context(|| format!("{}", path.display()))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            make_over(&entry?.path(), user)?;
        }
    }
    Ok(())
}

const UNPRIVILEGED: u32 = 65_534;
const CONNECTIONS: u32 = 600;
const BYTES: u64 = 300_000;
