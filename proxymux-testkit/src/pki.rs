//! A throwaway PKI like a cluster's: one CA, the certificates of nodes, master and API server.
//!
//! [`Pki`] puts files where the daemons look for them; [`Leaf`] varies a certificate (expired,
//! wrong use, another name, another CA), [`Authority`] signs it. All keys are ECDSA P-256.
//! Everything is valid in the eyes of a real verifier unless a test asks otherwise.

mod authority;
mod files;
mod key;
mod leaf;

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result};
use tempfile::TempDir;

pub use self::{
    authority::Authority,
    files::{CertFiles, Issued},
    key::KeyForm,
    leaf::{Leaf, Usage, Validity},
};

/// A cluster's certificates on disk.
///
/// ```text
/// DIR/ca.crt                                     the cluster CA
/// DIR/nodes/NAME/pki/kubelet-client-current.pem  certificate and key of the node, in one file
/// DIR/nodes/NAME/pki/tls.pem, tls.key            what the kubelet serves
/// DIR/master/master.crt, master.key
/// DIR/apiserver/kubelet-client.crt, .key         kube-apiserver to the kubelet
/// DIR/apiserver/egress.crt, .key                 kube-apiserver to the master's front door
/// ```
///
/// ```
/// use proxymux_testkit::pki::Pki;
///
/// # fn main() -> anyhow::Result<()> {
/// let pki = Pki::temporary()?;
/// let node = pki.node_client("10.0.10.10")?;
/// assert!(node.cert.ends_with("nodes/10.0.10.10/pki/kubelet-client-current.pem"));
/// assert_eq!(node.cert, node.key, "both are in one file");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Pki {
    dir: PathBuf,
    ca: Authority,
    rotations: AtomicU32,
    /// Removes the directory, if it was made for this PKI.
    _temporary: Option<TempDir>,
}

impl Pki {
    /// Makes a CA (`CN=kubernetes-ca`) and writes its certificate to `dir`, which is created.
    ///
    /// # Errors
    ///
    /// A file or directory could not be written.
    pub fn new(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        let ca = Authority::new("kubernetes-ca")?;
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let pki = Self {
            dir,
            ca,
            rotations: AtomicU32::new(0),
            _temporary: None,
        };
        pki.trust(&[&pki.ca])?;
        Ok(pki)
    }

    /// A PKI in a directory of its own that goes with it.
    ///
    /// # Errors
    ///
    /// A file or directory could not be written.
    pub fn temporary() -> Result<Self> {
        let dir = TempDir::with_prefix("proxymux-pki-").context("cannot make a directory")?;
        let mut pki = Self::new(dir.path())?;
        pki._temporary = Some(dir);
        Ok(pki)
    }

    /// Where the files are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The cluster CA, to sign a [`Leaf`] that has no method here.
    pub fn ca(&self) -> &Authority {
        &self.ca
    }

    /// The file with the CA's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.dir.join("ca.crt")
    }

    /// Replaces the CA file by a bundle of these, as an operator does who rotates the CA.
    ///
    /// # Errors
    ///
    /// The file could not be written.
    pub fn trust(&self, authorities: &[&Authority]) -> Result<()> {
        let bundle: String = authorities
            .iter()
            .map(|authority| authority.pem())
            .collect();
        files::write_atomically(&self.ca_file(), &bundle, files::PUBLIC)
    }

    /// The directory that is `cert-path` on the node: `/var/lib/kubelet/pki` in real life.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.dir.join("nodes").join(node).join("pki")
    }

    /// The node's client certificate (`CN=system:node:NAME`, `O=system:nodes`) with its key in
    /// one file, as the kubelet keeps it. A second call rotates it.
    ///
    /// # Errors
    ///
    /// A file could not be written.
    pub fn node_client(&self, node: &str) -> Result<CertFiles> {
        self.install_node_client(node, &self.ca.issue(&Leaf::node_client(node))?)
    }

    /// Puts any certificate where the kubelet keeps its client certificate, in the way it does:
    /// a new file beside the old, then the link `kubelet-client-current.pem` is moved over.
    ///
    /// # Errors
    ///
    /// A file could not be written.
    pub fn install_node_client(&self, node: &str, issued: &Issued) -> Result<CertFiles> {
        let dir = self.node_dir(node);
        let rotation = self.rotations.fetch_add(1, Ordering::Relaxed);
        let dated = dir.join(format!("kubelet-client-2020-05-20-10-00-{rotation:02}.pem"));
        issued.write_combined(&dated)?;
        let current = dir.join("kubelet-client-current.pem");
        files::link_atomically(&dated, &current)?;
        Ok(CertFiles {
            cert: current.clone(),
            key: current,
        })
    }

    /// What the node's kubelet serves: `tls.pem` and `tls.key` beside the client certificate,
    /// for the node's name and these addresses.
    ///
    /// # Errors
    ///
    /// A file could not be written.
    pub fn kubelet_serving(&self, node: &str, addresses: &[IpAddr]) -> Result<CertFiles> {
        let issued = self.ca.issue(&Leaf::kubelet_serving(node, addresses))?;
        let dir = self.node_dir(node);
        issued.write_pair(dir.join("tls.pem"), dir.join("tls.key"))
    }

    /// The master's server certificate for these names and addresses.
    ///
    /// # Errors
    ///
    /// A file could not be written.
    pub fn master(&self, names: &[&str]) -> Result<CertFiles> {
        let leaf = Leaf::new("proxymux-master")
            .usages([Usage::Server])
            .names(names.iter().copied());
        self.pair("master/master", &leaf)
    }

    /// kube-apiserver's client certificate for kubelets (`CN=kube-apiserver-kubelet-client`,
    /// `O=system:masters`).
    ///
    /// # Errors
    ///
    /// A file could not be written.
    pub fn apiserver_kubelet_client(&self) -> Result<CertFiles> {
        let leaf = Leaf::new("kube-apiserver-kubelet-client")
            .organisations(["system:masters"])
            .usages([Usage::Client]);
        self.pair("apiserver/kubelet-client", &leaf)
    }

    /// kube-apiserver's client certificate for the master's front door (`CN=kube-apiserver`).
    ///
    /// # Errors
    ///
    /// A file could not be written.
    pub fn apiserver_egress_client(&self) -> Result<CertFiles> {
        let leaf = Leaf::new("kube-apiserver").usages([Usage::Client]);
        self.pair("apiserver/egress", &leaf)
    }

    /// Issues any leaf from the cluster CA as `DIR/STEM.crt` and `DIR/STEM.key`.
    ///
    /// # Errors
    ///
    /// A file could not be written.
    pub fn pair(&self, stem: &str, leaf: &Leaf) -> Result<CertFiles> {
        let path = |extension: &str| self.dir.join(format!("{stem}.{extension}"));
        self.ca.issue(leaf)?.write_pair(path("crt"), path("key"))
    }
}

#[cfg(test)]
mod tests;
