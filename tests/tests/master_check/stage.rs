//! A control plane's host in a directory: the master's files, and kube-apiserver's.
//!
//! Everything is good at first, so that a check has nothing to say; a test spoils one thing.
//! Read [`Stage`] and [`Row`].

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU8, Ordering},
};

use anyhow::{Context, Result, bail, ensure};
use proxymux_testkit::{
    cluster::{MASTER, program},
    pki::{Leaf, Pki, Usage},
    process::Daemon,
};
use proxymux_tests::{events::wait_for_message, limits::SOON, programs::config_flag};
use serde_json::Value;

/// The host.
#[derive(Debug)]
pub(crate) struct Stage {
    pki: Pki,
    /// Of this stage alone.
    ip: Ipv4Addr,
    /// A program and arguments that the check is run by.
    pub(crate) by: Vec<String>,
}

/// What a check has told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) code: Option<i32>,
    pub(crate) findings: Vec<Finding>,
}

/// One line of it.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) topic: String,
    pub(crate) level: String,
    pub(crate) found: String,
    pub(crate) fix: String,
}

/// One broken situation.
pub(crate) struct Row<'a> {
    pub(crate) what: &'static str,
    pub(crate) spoil: &'a dyn Fn(&Stage) -> Result<()>,
    /// Level, topic, and words of what was found and of the fix.
    pub(crate) told: (&'a str, &'a str, &'a str, &'a str),
    pub(crate) mend: Mend<'a>,
}

/// How the fix is followed.
pub(crate) enum Mend<'a> {
    /// By running the command that it has in backquotes.
    Obey,
    /// By hand.
    By(&'a dyn Fn(&Stage) -> Result<()>),
}

impl Stage {
    /// A good one.
    pub(crate) fn new() -> Result<Self> {
        let pki = Pki::temporary()?;
        let [_, _, b, c] = std::process::id().to_be_bytes();
        let number = STAGES.fetch_add(1, Ordering::Relaxed) % 64;
        let stage = Self {
            pki,
            ip: Ipv4Addr::new(127, 64 + number, b, c),
            by: Vec::new(),
        };
        let ip = stage.ip.to_string();
        stage.pki.master(&[&ip])?;
        let door = Leaf::new("front-door").usages([Usage::Server]);
        stage
            .pki
            .pair("master/door", &door.names([ip.as_str(), DOOR_NAME]))?;
        stage.pki.apiserver_egress_client()?;
        stage.pki.apiserver_kubelet_client()?;
        fs::create_dir(stage.path("run"))?;
        stage.write_all()?;
        Ok(stage)
    }

    /// Writes every text file as it is at first.
    pub(crate) fn write_all(&self) -> Result<()> {
        let (dir, ip) = (self.pki.dir().display(), self.ip);
        let files = [
            (
                CONFIG,
                format!(
                    "listen: {ip}:12250\n\
                     cert: {dir}/master/master.crt\n\
                     key: {dir}/master/master.key\n\
                     client-ca: {dir}/ca.crt\n\
                     front-doors:\n\
                     - unix: {dir}/run/egress.sock\n\
                     - listen: {ip}:8131\n  \
                       cert: {dir}/master/door.crt\n  \
                       key: {dir}/master/door.key\n  \
                       client-ca: {dir}/ca.crt\n  \
                       client-names: [ kube-apiserver ]\n\
                     node-addresses: {{ file: {dir}/nodes.yaml }}\n\
                     kubelet-certificates: verified\n\
                     connect-budget: 100ms\n\
                     max-sessions: 1000\n\
                     admin: unix:{dir}/run/master.sock\n\
                     log-format: json\n"
                ),
            ),
            ("nodes.yaml", "10.0.10.10: 10.0.10.10\n".to_owned()),
            (SELECTOR, UNIX_SELECTOR.to_owned()),
            (
                MANIFEST,
                format!(
                    "apiVersion: v1\n\
                     kind: Pod\n\
                     metadata: {{ name: kube-apiserver, namespace: kube-system }}\n\
                     spec:\n  \
                       hostNetwork: true\n  \
                       containers:\n  \
                       - name: kube-apiserver\n    \
                         image: registry.k8s.io/kube-apiserver:v1.31.0\n    \
                         command:\n    \
                         - kube-apiserver\n    \
                         - --egress-selector-config-file=/etc/kubernetes/egress/selector.yaml\n    \
                         - --kubelet-certificate-authority=/etc/kubernetes/pki/ca.crt\n    \
                         - --kubelet-client-certificate=/etc/kubernetes/pki/kubelet-client.crt\n    \
                         - --kubelet-client-key=/etc/kubernetes/pki/kubelet-client.key\n    \
                         - --kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname\n    \
                         volumeMounts:\n    \
                         - {{ name: egress, mountPath: /etc/kubernetes/egress, readOnly: true }}\n    \
                         - {{ name: pki, mountPath: /etc/kubernetes/pki, readOnly: true }}\n    \
                         - {{ name: proxymux, mountPath: /run/proxymux }}\n  \
                       volumes:\n  \
                       - {{ name: egress, hostPath: {{ path: {dir}/egress }} }}\n  \
                       - {{ name: pki, hostPath: {{ path: {dir} }} }}\n  \
                       - {{ name: proxymux, hostPath: {{ path: {dir}/run }} }}\n"
                ),
            ),
        ];
        for (name, text) in files {
            self.write(name, &text)?;
        }
        Ok(())
    }

    /// The certificates.
    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The host's address.
    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// A path on it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.pki.dir().join(name)
    }

    /// Writes a file.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        let directory = path.parent().context("a directory")?;
        fs::create_dir_all(directory)?;
        fs::write(&path, text).with_context(|| name.to_owned())
    }

    /// Replaces words of a file, which must be there. `DIR` and `IP` stand for this host's.
    pub(crate) fn edit(&self, name: &str, from: &str, to: &str) -> Result<()> {
        let text = fs::read_to_string(self.path(name))?;
        let (from, to) = (self.fill(from), self.fill(to));
        ensure!(text.contains(&from), "no {from} in {text}");
        self.write(name, &text.replace(&from, &to))
    }

    fn fill(&self, text: &str) -> String {
        let dir = self.pki.dir().display().to_string();
        text.replace("DIR", &dir)
            .replace("IP:", &format!("{}:", self.ip))
    }

    /// Starts the master.
    pub(crate) fn start(&self) -> Result<Daemon> {
        let mut command = Command::new(program(MASTER)?);
        command.arg(config_flag(&self.path(CONFIG)));
        let mut master = Daemon::spawn(MASTER, command)?;
        wait_for_message(&mut master, 0, SOON, "master is up")?;
        // The admin address has a thread of its own.
        wait_for_message(&mut master, 0, SOON, "admin address open")?;
        Ok(master)
    }

    /// Runs a check of all files.
    pub(crate) fn check(&self) -> Result<Told> {
        let manifest = format!("--apiserver-manifest={}", self.path(MANIFEST).display());
        self.check_with(&[&manifest])
    }

    /// Runs a check with these arguments.
    pub(crate) fn check_with(&self, arguments: &[&str]) -> Result<Told> {
        let config = config_flag(&self.path(CONFIG));
        let master = program(MASTER)?.display().to_string();
        let mut words = self.by.clone();
        words.extend([master, "check".to_owned(), "--json".to_owned(), config]);
        words.extend(arguments.iter().map(|argument| self.fill(argument)));
        let (first, rest) = words.split_first().context("a program")?;
        let output = Command::new(first).args(rest).output()?;
        let stdout = String::from_utf8(output.stdout)?;
        let report: Value = serde_json::from_str(&stdout)
            .with_context(|| format!("{stdout}{}", String::from_utf8_lossy(&output.stderr)))?;
        let findings = report.get("findings").and_then(Value::as_array);
        let text = |finding: &Value, key: &str| {
            let text = finding.get(key).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let told = Told {
            code: output.status.code(),
            findings: findings
                .context("findings")?
                .iter()
                .map(|finding| Finding {
                    topic: text(finding, "topic"),
                    level: text(finding, "level"),
                    found: text(finding, "found"),
                    fix: text(finding, "fix"),
                })
                .collect(),
        };
        let errors = told.findings.iter().any(|finding| finding.level == "error");
        ensure!(told.code == Some(i32::from(errors)), "{told:?}");
        Ok(told)
    }
}

impl Told {
    /// All that is not as it should be, but that no master runs.
    pub(crate) fn complaints(&self) -> Vec<&Finding> {
        let stopped = |finding: &Finding| finding.found.starts_with("no master answers at ");
        let findings = self.findings.iter();
        findings
            .filter(|finding| finding.level != "ok" && !stopped(finding))
            .collect()
    }
}

impl Row<'_> {
    /// Spoils a stage, checks, follows the advice, and checks again.
    pub(crate) fn prove(
        &self,
        stage: &Stage,
        check: &dyn Fn(&Stage) -> Result<Told>,
    ) -> Result<()> {
        (self.spoil)(stage)?;
        let told = check(stage)?;
        let (level, topic, found, fix) = self.told;
        let (found, fix) = (stage.fill(found), stage.fill(fix));
        let is_it = |finding: &&&Finding| {
            finding.level == level
                && finding.topic == topic
                && finding.found.contains(&found)
                && finding.fix.contains(&fix)
        };
        let complaints = told.complaints();
        let Some(finding) = complaints.iter().find(is_it) else {
            bail!("expected {level} {topic}: {found}; {fix}; told {complaints:#?}");
        };
        match &self.mend {
            Mend::Obey => obey(&finding.fix)?,
            Mend::By(mend) => mend(stage)?,
        }
        let told = check(stage)?;
        let complaints = told.complaints();
        ensure!(complaints.is_empty(), "after the fix: {complaints:#?}");
        Ok(())
    }
}

/// Proves rows, each on a stage of its own on which no master runs.
pub(crate) fn prove_each(rows: &[Row<'_>]) -> Result<()> {
    for row in rows {
        let stage = Stage::new()?;
        row.prove(&stage, &Stage::check).context(row.what)?;
    }
    Ok(())
}

/// Proves rows beside one running master, which they leave alone.
pub(crate) fn prove_beside(stage: &Stage, rows: &[Row<'_>]) -> Result<()> {
    for row in rows {
        stage.write_all()?;
        row.prove(stage, &Stage::check).context(row.what)?;
    }
    Ok(())
}

/// Runs the command that an advice has in backquotes.
fn obey(fix: &str) -> Result<()> {
    let command = fix
        .split('`')
        .nth(1)
        .with_context(|| format!("a command in {fix}"))?;
    let output = Command::new("sh").args(["-ec", command]).output()?;
    ensure!(output.status.success(), "{command}: {output:?}");
    Ok(())
}

/// Whether somebody can be connected to there.
pub(crate) fn is_served(path: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(path).is_ok()
}

/// How many there have been in this process.
static STAGES: AtomicU8 = AtomicU8::new(0);

pub(crate) const CONFIG: &str = "master.yaml";
pub(crate) const MANIFEST: &str = "manifests/kube-apiserver.yaml";
pub(crate) const SELECTOR: &str = "egress/selector.yaml";

/// A name of the front door on TCP besides its address.
pub(crate) const DOOR_NAME: &str = "proxymux-master.kube-system.svc";

const UNIX_SELECTOR: &str = "apiVersion: apiserver.k8s.io/v1beta1
kind: EgressSelectorConfiguration
egressSelections:
- name: cluster
  connection:
    proxyProtocol: HTTPConnect
    transport: { uds: { udsName: /run/proxymux/egress.sock } }
";
