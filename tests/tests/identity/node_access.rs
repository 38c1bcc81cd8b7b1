//! How the API server is reached, when what the master shows there is replaced under it: tokens and
//! certificates expire, and service accounts get a new token every hour.
//!
//! The pod of the in-cluster configuration is a mount namespace, in which the account's directory
//! is where a kubelet mounts it, and is replaced as a kubelet does it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use proxymux_testkit::{
    cluster::{MASTER, program},
    pki::{Leaf, Usage},
    process::Daemon,
    wait::eventually,
};
use proxymux_tests::{
    admin::{at_master, status},
    events::{complaints, wait_for, wait_for_message},
    limits::SOON,
};

use super::node_stage::{EXTERNAL, GRANTED, LOCAL, OTHER, STAY, Stage, USER, reaches};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_file_that_is_replaced_is_read_again() -> Result<()> {
    let mut stage = Stage::new(1)?;
    let token = stage.cluster.dir().join("token");
    // As `kubectl create token` writes it.
    let write = |text: &str| -> Result<()> {
        let new = token.with_extension("new");
        fs::write(&new, format!("{text}\n"))?;
        Ok(fs::rename(&new, &token)?)
    };
    write("first")?;
    start_api_with_token(&mut stage, "first")?;
    let kubeconfig = stage.cluster.dir().join("kubeconfig");
    stage.write_kubeconfig_with(&kubeconfig, LOCAL, "tokenFile: token")?;
    stage.start_master_with(&kubeconfig, "")?;
    stage.start_agents(1)?;
    stage.told(0, 0, GRANTED, EXTERNAL)?;

    renewed_in_time(&mut stage, &write)?;
    assert_eq!(complaints(stage.cluster.master(0), 0), []);

    let mark = stage.cluster.master(0).mark();
    expire(&stage)?;
    wait_until_refused(stage.cluster.master(0), mark)?;
    eventually(SOON, || stage.stats().refused >= 3);
    write("third")?;
    wait_for_message(
        stage.cluster.master(0),
        mark,
        SOON,
        "node objects are watched again",
    )?;
    assert_eq!(complaints(stage.cluster.master(0), mark).len(), 1);
    assert_eq!(stage.stats().lists, 1);
    reaches(&stage.cluster.api()?, OTHER).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_pod_the_service_account_is_used_and_its_renewed_token_too() -> Result<()> {
    let mut stage = Stage::new(1)?;
    let account = Account::new(&stage)?;
    account.write("first")?;
    start_api_with_token(&mut stage, "first")?;
    let mut master = account.start_master(&stage)?;
    stage.start_agents(1)?;
    stage.told(0, 0, GRANTED, EXTERNAL)?;
    let shown = status(&at_master(&stage.cluster)).await?;
    let server = format!("https://{LOCAL}/");
    assert_eq!(shown["node_addresses"]["server"], server, "{shown}");
    assert_eq!(shown["node_addresses"]["watching"], true, "{shown}");

    renewed_in_time(&mut stage, &|token| account.write(token))?;
    assert_eq!(complaints(&master, 0), []);

    let mark = master.mark();
    expire(&stage)?;
    wait_until_refused(&mut master, mark)?;
    account.write("third")?;
    wait_for_message(&mut master, mark, SOON, "node objects are watched again")?;
    assert_eq!(complaints(&master, mark).len(), 1);
    reaches(&stage.cluster.api()?, OTHER).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_that_is_replaced_is_read_again() -> Result<()> {
    let mut stage = Stage::new(1)?;
    stage.set(0, &[EXTERNAL]);
    stage.start_api()?;
    // Who may not read nodes, then the one who may, in the same files.
    let write = |stage: &Stage, user: &str| {
        let leaf = Leaf::new(user).usages([Usage::Client]);
        stage.cluster.pki().pair("renewed", &leaf)
    };
    write(&stage, "stranger")?;
    let kubeconfig = stage.cluster.dir().join("kubeconfig");
    let credentials = "client-certificate: renewed.crt, client-key: renewed.key";
    stage.write_kubeconfig_with(&kubeconfig, LOCAL, credentials)?;
    stage.start_master_with(&kubeconfig, "")?;
    stage.start_agents(1)?;
    let said = wait_for_message(
        stage.cluster.master(0),
        0,
        SOON,
        "node objects are not known yet",
    )?;
    let error = said.text("error").context("why")?;
    assert!(error.contains("User \"stranger\""), "{error}");

    write(&stage, USER)?;

    stage.told(0, 0, GRANTED, EXTERNAL)?;
    reaches(&stage.cluster.api()?, EXTERNAL).await
}

/// The stand-in with this token, and node 0 with an address of its object.
fn start_api_with_token(stage: &mut Stage, token: &str) -> Result<()> {
    stage.set(0, &[EXTERNAL]);
    let mut config = stage.api_config()?;
    config.token = Some(token.to_owned());
    let host = stage.cluster.topology().master().clone();
    stage.start_api_at(&host, config)
}

/// A new token is there before the old one is worth nothing: nobody notices.
fn renewed_in_time(stage: &mut Stage, write: &dyn Fn(&str) -> Result<()>) -> Result<()> {
    write("second")?;
    let api = stage.running.as_ref().context("the stand-in runs")?;
    api.set_token("second");
    stage.store.end_watches();
    eventually(SOON, || stage.stats().watches == 2);
    stage.set(0, &[OTHER]);
    stage.told(0, 0, GRANTED, OTHER)?;
    let stats = stage.stats();
    assert_eq!((stats.lists, stats.refused), (1, 0), "{stats:?}");
    Ok(())
}

/// The token is worth nothing before there is a new one.
fn expire(stage: &Stage) -> Result<()> {
    let api = stage.running.as_ref().context("the stand-in runs")?;
    api.set_token("third");
    stage.store.end_watches();
    Ok(())
}

fn wait_until_refused(master: &mut Daemon, mark: usize) -> Result<()> {
    let said = wait_for(master, mark, SOON, |event| event.message == STAY)?;
    let error = said.text("error").context("why")?;
    assert!(
        error.starts_with("the API server: it does not know who we are (Unauthorized)"),
        "{error}"
    );
    Ok(())
}

/// A service account, as a kubelet mounts it into a pod.
struct Account {
    dir: PathBuf,
    ca: PathBuf,
}

impl Account {
    fn new(stage: &Stage) -> Result<Self> {
        let dir = stage.cluster.dir().join("account");
        fs::create_dir(&dir)?;
        for file in ["token", "ca.crt", "namespace"] {
            symlink(Path::new("..data").join(file), dir.join(file))?;
        }
        let ca = stage.cluster.pki().ca_file();
        Ok(Self { dir, ca })
    }

    /// Writes all files anew, and turns one link so that all are new at once.
    fn write(&self, token: &str) -> Result<()> {
        let version = format!("..{token}");
        let files = self.dir.join(&version);
        fs::create_dir(&files)?;
        fs::write(files.join("token"), token)?;
        fs::copy(&self.ca, files.join("ca.crt"))?;
        fs::write(files.join("namespace"), "kube-system")?;
        let link = self.dir.join("..data_tmp");
        symlink(version, &link)?;
        Ok(fs::rename(link, self.dir.join("..data"))?)
    }

    /// A master in a pod with this account: the variables, and the mount.
    ///
    /// What `ip netns exec` starts has mounts of its own, which nobody else sees.
    fn start_master(&self, stage: &Stage) -> Result<Daemon> {
        let cluster = &stage.cluster;
        let path = cluster.dir().join("master-0.yaml");
        let config = cluster.master_config(0)?;
        fs::write(&path, format!("{config}node-addresses: kubernetes\n"))?;
        let mut command = cluster.topology().master().command("sh");
        let (host, port) = LOCAL.split_once(':').context("address and port")?;
        command
            .env("KUBERNETES_SERVICE_HOST", host)
            .env("KUBERNETES_SERVICE_PORT", port)
            .args(["-ec", IN_POD, "sh"])
            .arg(&self.dir)
            .arg(program(MASTER)?)
            .arg(format!("--config={}", path.display()))
            .arg("--verbosity=debug");
        let mut master = Daemon::spawn("master in a pod", command)?;
        master.wait_for_line("master is up", SOON)?;
        Ok(master)
    }
}

const IN_POD: &str = "run=$(readlink -f /var/run)\n\
    mount -t tmpfs pod \"$run\"\n\
    mkdir -p \"$run/secrets/kubernetes.io/serviceaccount\"\n\
    mount --bind \"$1\" \"$run/secrets/kubernetes.io/serviceaccount\"\n\
    shift\n\
    exec \"$@\"\n";
