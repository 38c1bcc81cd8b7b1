//! `deploy/pki/make-certificates.sh`, as its README says: with an authority of its own, and with
//! one like kubeadm's. What it makes is then used by the daemons.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use proxymux_testkit::{
    apiserver::{ApiServer, FrontDoor},
    cluster::Cluster,
    pki::CertFiles,
};
use proxymux_tests::{
    doors::{at_master, both_doors},
    limits::{SOON, within},
};

use crate::yaml::deploy;

fn script(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("sh");
    command
        .arg(deploy("pki/make-certificates.sh"))
        .args(arguments);
    run(command)
}

fn openssl(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(arguments);
    run(command)
}

fn run(mut command: Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("{}: {}", output.status, text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

fn word(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

/// An authority as kubeadm makes it: RSA, its key in the older form.
fn kubeadms_authority(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    let (key, cert) = (dir.join("ca.key"), dir.join("ca.crt"));
    let (key, cert) = (word(&key)?, word(&cert)?);
    openssl(&["genrsa", "-traditional", "-out", key, "2048"])?;
    openssl(&[
        "req",
        "-x509",
        "-new",
        "-sha256",
        "-days",
        "3650",
        "-subj",
        "/CN=kubernetes",
        "-addext",
        "keyUsage=critical,digitalSignature,keyEncipherment,keyCertSign",
        "-addext",
        "subjectAltName=DNS:kubernetes",
        "-key",
        key,
        "-out",
        cert,
    ])?;
    assert!(fs::read_to_string(key)?.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    Ok(())
}

/// Everything that the script can make, used by a master with both front doors, an agent and
/// kube-apiserver.
async fn session_with(authority: &Path, cluster: &mut Cluster) -> Result<()> {
    let (name, node) = (
        cluster.topology().master().ipv4().to_string(),
        cluster.node_name(0),
    );
    let out = cluster.dir().join("made");
    let (from, to) = (word(authority)?, word(&out)?);
    script(&[
        "master",
        from,
        to,
        &name,
        "proxymux-master.example",
        "fd00::10",
    ])?;
    script(&["front-door", from, to, &name])?;
    script(&["apiserver", from, to])?;
    script(&["node", from, to, &node])?;

    // The configurations of the cluster with the script's certificates in place of its own.
    let ca = authority.join("ca.crt");
    let with = |config: String, replaced: &[(PathBuf, PathBuf)]| {
        let all = replaced.iter();
        all.fold(config, |config, (old, new)| {
            config.replace(&*old.to_string_lossy(), &new.to_string_lossy())
        })
    };
    let usual = |file: &str| cluster.dir().join("master").join(file);
    let (old_ca, old_certs) = (cluster.pki().ca_file(), cluster.pki().node_dir(&node));
    let config = with(
        both_doors(cluster)?,
        &[
            (usual("master.crt"), out.join("master.crt")),
            (usual("master.key"), out.join("master.key")),
            (old_ca.clone(), ca.clone()),
        ],
    );
    // The second pair in it is the front door's.
    let door = config
        .rfind("made/master.crt")
        .context("the front door's certificate")?;
    let (head, tail) = config.split_at(door);
    let config = format!("{head}{}", tail.replace("made/master.", "made/front-door."));
    assert_eq!(config.matches("made/front-door.").count(), 2, "{config}");
    let agent = with(
        cluster.agent_config(0)?,
        &[(old_ca.clone(), ca.clone()), (old_certs, out.clone())],
    );

    cluster.start_master_with(0, &config)?;
    cluster.master(0).wait_for_line("master is up", SOON)?;
    cluster.start_agent_with(0, &agent)?;
    cluster.wait_for_sessions()?;

    let kubelet_client = cluster.pki().apiserver_kubelet_client()?;
    let door = FrontDoor::Tcp {
        address: format!("{name}:8131").parse()?,
        server_name: name,
        ca,
        client: Some(CertFiles {
            cert: out.join("kube-apiserver.crt"),
            key: out.join("kube-apiserver.key"),
        }),
    };
    let api = ApiServer::new(door)?.with_kubelet_client(&old_ca, &kubelet_client)?;
    let target = cluster.target(0);
    let reply = at_master(cluster, async {
        within(SOON, "ask", api.get(&target, "/healthz")).await
    })?;
    assert_eq!(reply.status, 200);
    Ok(())
}

#[test]
fn with_an_authority_of_its_own_everybody_finds_each_other() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let authority = cluster.dir().join("own-ca");
    script(&["ca", word(&authority)?])?;

    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(session_with(&authority, &mut cluster))?;

    let again = script(&["ca", word(&authority)?]);
    assert!(
        again.is_err(),
        "an authority that is there is not replaced: {again:?}"
    );
    Ok(())
}

#[test]
fn with_kubeadms_authority_everybody_finds_each_other() -> Result<()> {
    let mut cluster = Cluster::builder().build()?;
    let authority = cluster.dir().join("kubeadm-ca");
    kubeadms_authority(&authority)?;
    let before = fs::read_dir(&authority)?.count();

    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(session_with(&authority, &mut cluster))?;

    let after = fs::read_dir(&authority)?.count();
    assert_eq!(
        after, before,
        "nothing is left in the authority's directory"
    );
    Ok(())
}

#[test]
fn what_is_made_is_for_one_purpose_and_keys_are_for_one_pair_of_eyes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (authority, out) = (dir.path().join("ca"), dir.path().join("out"));
    let (from, to) = (word(&authority)?, word(&out)?);
    script(&["ca", from])?;
    script(&["master", from, to, "192.0.2.10", "fd00::10", "m.example"])?;
    script(&["apiserver", from, to, "system:apiserver"])?;
    script(&["node", from, to, "worker-1.example"])?;

    let shown = |file: &str| -> Result<String> {
        let file = out.join(file);
        let options = ["-noout", "-subject", "-nameopt", "RFC2253", "-ext"];
        let extensions = "extendedKeyUsage,subjectAltName,basicConstraints";
        openssl(
            &[
                &["x509", "-in", word(&file)?],
                options.as_slice(),
                &[extensions],
            ]
            .concat(),
        )
    };
    let cases: [(&str, &[&str]); 3] = [
        (
            "master.crt",
            &[
                "subject=CN=proxymux-master\n",
                "TLS Web Server Authentication\n",
                "IP Address:192.0.2.10, IP Address:FD00:0:0:0:0:0:0:10, DNS:m.example",
                "CA:FALSE",
            ],
        ),
        (
            "kube-apiserver.crt",
            &[
                "subject=CN=system:apiserver\n",
                "TLS Web Client Authentication\n",
            ],
        ),
        (
            "kubelet-client-current.pem",
            &[
                "subject=CN=system:node:worker-1.example,O=system:nodes\n",
                "TLS Web Client Authentication\n",
            ],
        ),
    ];
    for (file, expected) in cases {
        let shown = shown(file)?;
        for expected in expected {
            assert!(shown.contains(expected), "{file}: {expected:?} in {shown}");
        }
    }
    for file in [
        "out/master.key",
        "out/kubelet-client-current.pem",
        "ca/ca.key",
    ] {
        let mode = fs::metadata(dir.path().join(file))?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    Ok(())
}

#[test]
fn names_that_would_be_more_than_a_name_are_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (authority, out) = (dir.path().join("ca"), dir.path().join("out"));
    let (from, to) = (word(&authority)?, word(&out)?);
    script(&["ca", from])?;

    for name in [
        "a/O=system:masters",
        "m.example,IP:10.0.0.1",
        "a b",
        "",
        "a\nb",
    ] {
        for arguments in [["node", from, to, name], ["master", from, to, name]] {
            let refused = script(&arguments)
                .err()
                .context("a name like this is refused")?;
            assert!(refused.to_string().contains("is no name"), "{refused}");
        }
    }
    for arguments in [vec![], vec!["node", from, to], vec!["what", from, to]] {
        let refused = script(&arguments)
            .err()
            .context("wrong arguments are refused")?;
        assert!(refused.to_string().contains("exit status: 2"), "{refused}");
        assert!(
            refused
                .to_string()
                .contains("make-certificates.sh master DIR"),
            "{refused}"
        );
    }
    assert!(!out.exists(), "nothing was made");
    Ok(())
}
