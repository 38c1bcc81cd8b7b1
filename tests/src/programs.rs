//! The daemons as plain programs on this machine, for mistakes that need no network.
//!
//! [`Scratch`] is a directory with certificates and configuration files, good ones at first;
//! [`run`] starts a daemon with any arguments and waits for its end. Nothing listens anywhere
//! but on loopback and on Unix sockets in that directory.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use proxymux_testkit::{cluster::program, pki::Pki, process::Daemon};

use crate::limits::SOON;

/// A directory of its own with all that a daemon needs to start.
#[derive(Debug)]
pub struct Scratch {
    pki: Pki,
}

/// How a program ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// All that it wrote.
    pub lines: Vec<String>,
}

impl Scratch {
    /// Certificates for a master on loopback and for a node of the name [`NODE`].
    ///
    /// # Errors
    ///
    /// A file could not be written.
    pub fn new() -> Result<Self> {
        let pki = Pki::temporary()?;
        pki.master(&["127.0.0.1"])?;
        pki.node_client(&NODE.to_string())?;
        Ok(Self { pki })
    }

    /// The certificates.
    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        self.pki.dir()
    }

    /// A file in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Writes a file into the directory.
    ///
    /// # Errors
    ///
    /// It could not be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// A configuration with which an agent starts, whose master is at a port where nobody is.
    pub fn agent_config(&self) -> String {
        format!(
            "node-name: {NODE}\n\
             private-ip-address: {NODE}\n\
             bind-addr: 127.0.0.1\n\
             server-addr: https://127.0.0.1:1\n\
             cert-path: {certs}\n\
             ca-file: {ca}\n\
             admin: unix:{dir}/agent.admin\n\
             log-format: json\n",
            certs = self.pki.node_dir(&NODE.to_string()).display(),
            ca = self.pki.ca_file().display(),
            dir = self.dir().display(),
        )
    }

    /// A configuration with which a master starts, at a port that the kernel chooses.
    pub fn master_config(&self) -> String {
        format!(
            "listen: 127.0.0.1:0\n\
             cert: {dir}/master/master.crt\n\
             key: {dir}/master/master.key\n\
             client-ca: {ca}\n\
             front-doors: [ {{ unix: {dir}/egress.sock }} ]\n\
             admin: unix:{dir}/master.admin\n\
             log-format: json\n",
            dir = self.dir().display(),
            ca = self.pki.ca_file().display(),
        )
    }

    /// Writes `config` and runs a daemon with it to its end.
    ///
    /// # Errors
    ///
    /// It could not be started, or does not end.
    pub fn run_with(&self, daemon: &str, config: impl AsRef<[u8]>) -> Result<Ended> {
        let file = self.write("config.yaml", config)?;
        run(daemon, &[&config_flag(&file)])
    }

    /// Writes `config` and starts a daemon with it.
    ///
    /// # Errors
    ///
    /// It could not be started.
    pub fn start_with(&self, daemon: &str, config: impl AsRef<[u8]>) -> Result<Daemon> {
        let file = self.write("config.yaml", config)?;
        spawn(daemon, &[&config_flag(&file), "--verbosity=debug"])
    }
}

/// Runs a daemon with these arguments to its end.
///
/// # Errors
///
/// It could not be started, or does not end.
pub fn run(daemon: &str, arguments: &[&str]) -> Result<Ended> {
    let mut process = spawn(daemon, arguments)?;
    let status = process
        .wait(SOON)
        .with_context(|| format!("{:#?}", process.lines()))?;
    Ok(Ended {
        code: status.code(),
        lines: process.lines(),
    })
}

/// The argument that names a configuration file.
pub fn config_flag(file: &Path) -> String {
    format!("--config={}", file.display())
}

fn spawn(daemon: &str, arguments: &[&str]) -> Result<Daemon> {
    let mut command = Command::new(program(daemon)?);
    command.args(arguments);
    Daemon::spawn(daemon, command)
}

impl Ended {
    /// The last line, where a program that fails says why.
    pub fn last_line(&self) -> &str {
        self.lines.last().map_or("", String::as_str)
    }
}

/// The node of a [`Scratch`]: a name that is an address, as on OKE.
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 10, 10);
