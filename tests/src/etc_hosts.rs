//! A hosts file, or a name server, of a simulated machine's own.
//!
//! `ip netns exec` mounts what is in `/etc/netns/NAMESPACE` over `/etc` for the program it runs,
//! so that names can mean something on one host only. Removed on drop; one that a killed test
//! left behind belongs to a namespace that is gone, and disturbs nobody.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use proxymux_testkit::netns::Host;

/// The hosts file of one host, for programs that are started there from now on.
#[derive(Debug)]
pub struct EtcHosts {
    dir: PathBuf,
}

/// A name server of one host's own, for programs that are started there from now on.
#[derive(Debug)]
pub struct Resolver {
    _hosts: EtcHosts,
}

impl EtcHosts {
    /// Makes `name` mean these addresses on `host`.
    ///
    /// # Errors
    ///
    /// The file could not be written.
    pub fn new(host: &Host, name: &str, addresses: &[IpAddr]) -> Result<Self> {
        let dir = Path::new(ETC_NETNS).join(host.namespace());
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let hosts = Self { dir };
        hosts.set(name, addresses)?;
        // No other name means anything, and that is known at once: nobody answers there.
        let resolver = hosts.dir.join("resolv.conf");
        fs::write(&resolver, "nameserver 127.0.0.1\n")
            .with_context(|| format!("cannot write {}", resolver.display()))?;
        Ok(hosts)
    }

    /// Makes `name` mean these addresses instead, for programs that run already too.
    ///
    /// # Errors
    ///
    /// The file could not be written.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let lines = addresses
            .iter()
            .map(|address| format!("{address} {name}\n"));
        let path = self.dir.join("hosts");
        // Not replaced by a new file: what is mounted is this one.
        fs::write(&path, lines.collect::<String>())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Resolver {
    /// Lets programs on `host` ask only this name server, for a minute and a half per name.
    ///
    /// # Errors
    ///
    /// The file could not be written.
    pub fn new(host: &Host, server: IpAddr) -> Result<Self> {
        let hosts = EtcHosts::new(host, "localhost", &[IpAddr::from([127, 0, 0, 1])])?;
        let path = hosts.dir.join("resolv.conf");
        fs::write(
            &path,
            format!("nameserver {server}\noptions timeout:30 attempts:3\n"),
        )
        .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { _hosts: hosts })
    }
}

impl Drop for EtcHosts {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            eprintln!("{} was not removed: {error}", self.dir.display());
        }
        // The directory of all namespaces goes with the last one in it.
        match fs::remove_dir(ETC_NETNS) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            Err(error) => eprintln!("{ETC_NETNS} was not removed: {error}"),
        }
    }
}

const ETC_NETNS: &str = "/etc/netns";
