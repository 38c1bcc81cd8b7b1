//! Both images as containers: their own root and nothing else of this machine, in a namespace
//! each, with the flags of the DaemonSet.
//!
//! The root is the image's with the files that a pod would have mounted; `/proc` is there, as in
//! every container, and no library, no shell, no device.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
};

use anyhow::{Context, Result};
use proxymux_testkit::{
    apiserver::{ApiServer, FrontDoor},
    cluster::Cluster,
    netns::Host,
    process::Daemon,
};
use proxymux_tests::{
    events::{complaints, wait_for_message},
    limits::{SOON, within},
};

use crate::archive::Unpacked;

/// Starts an image on a host, with these arguments for its entry point.
fn start(host: &Host, image: &Unpacked, arguments: &[&str]) -> Result<Daemon> {
    let root = image.root();
    // A mount namespace comes with `ip netns exec`, and so /proc goes with the process.
    let script = "mount -t proc proc \"$1/proc\" && root=$1 user=$2 && shift 2 && \
                  exec chroot --userspec=\"$user\" \"$root\" \"$@\"";
    fs::create_dir_all(root.join("proc"))?;
    let mut command = host.command("sh");
    command.args(["-c", script, "sh"]).arg(&root);
    command
        .args([image.user()?, image.entry_point()?])
        .args(arguments);
    command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    Daemon::spawn(format!("image on {}", host.name()), command)
}

/// What a pod has mounted: a file at a place of the image's root, for its user.
fn mount(image: &Unpacked, at: &str, content: impl AsRef<[u8]>) -> Result<()> {
    let (uid, gid) = image.user()?.split_once(':').context("user and group")?;
    let file = image.root().join(at);
    fs::create_dir_all(file.parent().context("a directory")?)?;
    fs::write(&file, content).with_context(|| at.to_owned())?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    chown(&file, Some(uid.parse()?), Some(gid.parse()?))?;
    Ok(())
}

fn copy(image: &Unpacked, from: impl AsRef<Path>, at: &str) -> Result<()> {
    mount(image, at, fs::read(from)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_images_carry_logs_through_the_tunnel() -> Result<()> {
    let cluster = Cluster::builder().build()?;
    let (pki, name) = (cluster.pki(), cluster.node_name(0));
    let master_at = cluster.topology().master().ipv4();

    let master_image = Unpacked::new("proxymux-master")?;
    copy(
        &master_image,
        pki.dir().join("master/master.crt"),
        "etc/proxymux/pki/master.crt",
    )?;
    copy(
        &master_image,
        pki.dir().join("master/master.key"),
        "etc/proxymux/pki/master.key",
    )?;
    copy(&master_image, pki.ca_file(), "etc/kubernetes/pki/ca.crt")?;
    let minimal = include_str!("../../../deploy/samples/master-minimal.yaml");
    mount(
        &master_image,
        "etc/proxymux/master.yaml",
        format!("{minimal}log-format: json\n"),
    )?;
    let mut master = start(
        cluster.topology().master(),
        &master_image,
        &["--verbosity=info"],
    )?;
    wait_for_message(&mut master, 0, SOON, "master is up")?;

    let agent_image = Unpacked::new("proxymux-agent")?;
    let seed = include_str!("../../../deploy/samples/agent-seed.yaml");
    let config = seed
        .replace("https://192.0.2.10:12250", "https://master.example:12250")
        .replace("10.0.10.10", &name);
    let ours = format!("{config}log-format: json\nserver-name: {master_at}\n");
    mount(&agent_image, "mnt/etc/proxymux/config.yaml", ours)?;
    // On the host's network a pod has the host's names.
    mount(
        &agent_image,
        "etc/hosts",
        format!("{master_at} master.example\n"),
    )?;
    copy(&agent_image, pki.ca_file(), "etc/kubernetes/ca.crt")?;
    copy(
        &agent_image,
        pki.node_dir(&name).join("kubelet-client-current.pem"),
        "var/lib/kubelet/pki/kubelet-client-current.pem",
    )?;
    let flags = ["--config=/mnt/etc/proxymux/config.yaml", "--verbosity=info"];
    let mut agent = start(cluster.node(0), &agent_image, &flags)?;
    wait_for_message(&mut agent, 0, SOON, "session up")?;

    let door = FrontDoor::Unix(master_image.root().join("run/proxymux/egress.sock"));
    let api = ApiServer::new(door)?
        .with_kubelet_client(pki.ca_file(), &pki.apiserver_kubelet_client()?)?;
    let target = cluster.target(0);
    for path in [
        "/healthz",
        "/containerLogs/kube-system/kube-flannel-ds-h9cm9/kube-flannel",
    ] {
        let reply = within(SOON, path, api.get(&target, path)).await?;
        assert_eq!(reply.status, 200, "{path}");
    }
    assert_eq!(complaints(&master, 0), []);
    // The probe of the DaemonSet, in the same container.
    let probe = [
        "status",
        "--ready",
        "--config=/mnt/etc/proxymux/config.yaml",
    ];
    let mut probe = start(cluster.node(0), &agent_image, &probe)?;
    assert!(probe.wait(SOON)?.success());
    assert_eq!(probe.lines(), ["ready"]);

    for daemon in [&mut agent, &mut master] {
        daemon.signal(nix::sys::signal::Signal::SIGTERM)?;
        assert!(daemon.wait(SOON)?.success());
    }
    Ok(())
}
