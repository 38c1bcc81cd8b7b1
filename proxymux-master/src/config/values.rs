//! Types of settings that only the master has.
//!
//! Owns their written forms; which key has which of them is in `checked`.

use std::{fmt, net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use proxymux_proto::{Host, TargetAddr, TargetError};
use proxymux_transport::config_file::values::{self, Choice, ValueError};

/// Where kube-apiserver comes in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum FrontDoor {
    /// A TCP listener that asks for a client certificate.
    Tcp {
        /// The listener's address.
        listen: SocketAddr,
        /// The certificate shown to clients, and those that it leads through.
        cert: PathBuf,
        /// The private key of the certificate.
        key: PathBuf,
        /// The certificates that a client's must lead to.
        client_ca: PathBuf,
        /// Who may come in; at least one.
        client_names: Vec<String>,
    },
    /// A Unix socket, guarded by its permissions alone.
    Unix {
        /// The socket's path.
        path: PathBuf,
        /// Its permission bits, at most 0o777.
        mode: u32,
    },
}

impl fmt::Display for FrontDoor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp {
                listen,
                client_names,
                ..
            } => {
                write!(f, "{listen} for {}", client_names.join("|"))
            }
            Self::Unix { path, mode } => write!(f, "unix:{} mode {mode:04o}", path.display()),
        }
    }
}

/// What makes an address lead to a node.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum NodeAddresses {
    /// The agent's word, as far as it can be proven.
    #[default]
    Declared,
    /// A [`super::NodeAddressFile`], besides what can be proven.
    File(PathBuf),
    /// The Node objects of the API server that a kubeconfig leads to, besides what can be proven.
    Kubernetes(Kubeconfig),
}

/// How the API server is reached.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Kubeconfig {
    /// With the pod's service account if there is one, else with this file.
    InClusterOr(PathBuf),
    /// With this file.
    File(PathBuf),
}

impl fmt::Display for NodeAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Declared => f.write_str(DECLARED),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Kubernetes(Kubeconfig::InClusterOr(_)) => f.write_str(KUBERNETES),
            Self::Kubernetes(Kubeconfig::File(path)) => {
                write!(f, "{KUBERNETES}:{}", path.display())
            }
        }
    }
}

/// What happens to targets in a network that are no node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Route {
    /// The network, without bits behind its prefix.
    pub net: IpNet,
    /// What happens.
    pub via: Via,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.net, self.via.word())
    }
}

/// Who dials a target that is no node.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Via {
    /// The master.
    Direct,
    /// The node that allows it.
    Node,
    /// Nobody.
    Refuse,
}

impl Choice for Via {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("direct", Self::Direct),
        ("node", Self::Node),
        ("refuse", Self::Refuse),
    ];
}

/// Whether kube-apiserver checks kubelets' certificates itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum KubeletCertificates {
    /// It does not: the session's TLS is all that protects a connection.
    #[default]
    Unverified,
    /// It runs with `--kubelet-certificate-authority`.
    Verified,
}

impl Choice for KubeletCertificates {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("unverified", Self::Unverified),
        ("verified", Self::Verified),
    ];
}

/// Why a text is no place at which agents can dial the master.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum AdvertiseError {
    /// Not of the form.
    #[error("must be HOST:PORT such as master.example:12250 or [fd00::1]:12250")]
    NotHostPort(TargetError),
    /// A host that is none.
    #[error(transparent)]
    Host(#[from] ValueError),
    /// An address at which no one master can be.
    #[error("must have an address under which agents reach this master")]
    NotOneHost,
}

/// Reads where agents can dial the master.
pub(super) fn advertise(text: &str) -> Result<TargetAddr, AdvertiseError> {
    let target: TargetAddr = text.parse().map_err(AdvertiseError::NotHostPort)?;
    match &target.host {
        Host::Ip(ip) if ip.is_unspecified() || ip.is_multicast() => {
            return Err(AdvertiseError::NotOneHost);
        }
        Host::Ip(_) => {}
        Host::Name(name) => {
            // A node's name may be more than a DNS name can.
            values::server_name(name.as_str())?;
        }
    }
    Ok(target)
}

/// Why a text is no name of a client.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum ClientNameError {
    /// What no text that we show may have.
    #[error(transparent)]
    Text(#[from] ValueError),
    /// A pattern, which would be compared letter by letter.
    #[error("must be a whole name, patterns are not understood")]
    Pattern,
}

/// Reads the common name of a client's certificate.
pub(super) fn client_name(text: &str) -> Result<String, ClientNameError> {
    if text.contains('*') {
        return Err(ClientNameError::Pattern);
    }
    Ok(values::label(text)?)
}

/// The word for [`NodeAddresses::Declared`].
pub(super) const DECLARED: &str = "declared";

/// The word for [`NodeAddresses::Kubernetes`].
pub(super) const KUBERNETES: &str = "kubernetes";

/// Beside the master's other files, which a static pod has mounted.
pub(super) const DEFAULT_KUBECONFIG: &str = "/etc/proxymux/kubeconfig";
