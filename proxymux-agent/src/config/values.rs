//! Types of settings that only the agent has.
//!
//! Owns their written forms; which key has which of them is in `checked`.

use std::{fmt, path::PathBuf};

use proxymux_proto::DEFAULT_SESSION_PORT;
use proxymux_transport::config_file::values::{self, Choice, ValueError};
use rustls::pki_types::ServerName;

/// Where a master is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerAddr {
    host: ServerName<'static>,
    /// Not 0.
    port: u16,
}

/// Why a text is no master's address.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ServerAddrError {
    /// Another scheme, or none.
    #[error("must be https://HOST:PORT")]
    NotHttps,
    /// A part of a URL that means nothing here.
    #[error("must be https://HOST:PORT without {part}")]
    HasPart {
        /// The part.
        part: &'static str,
    },
    /// A host or port that is none.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// An address at which no one master can be.
    #[error("must have the address of a master")]
    NotOneHost,
    /// The same address again.
    #[error("is listed twice")]
    Twice,
}

impl ServerAddr {
    /// Reads `https://HOST:PORT`; without a port it is 12250, and an IPv6 host is in brackets.
    ///
    /// # Errors
    ///
    /// When the text is not of this form, or has a user, a path, a query or a fragment.
    pub fn parse(text: &str) -> Result<Self, ServerAddrError> {
        let (scheme, rest) = text.split_once("://").ok_or(ServerAddrError::NotHttps)?;
        if !scheme.eq_ignore_ascii_case("https") {
            return Err(ServerAddrError::NotHttps);
        }
        // A lone slash is what many templates and libraries put behind the authority.
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        for (mark, part) in [
            ('#', "a fragment"),
            ('?', "a query"),
            ('/', "a path"),
            ('@', "a user name"),
        ] {
            if authority.contains(mark) {
                return Err(ServerAddrError::HasPart { part });
            }
        }
        let (host, port) = values::split_port(authority)?;
        let host = values::server_name(host)?;
        if let ServerName::IpAddress(ip) = &host {
            let ip = std::net::IpAddr::from(*ip);
            if ip.is_unspecified() || ip.is_multicast() {
                return Err(ServerAddrError::NotOneHost);
            }
        }
        let port = port
            .map(values::port)
            .transpose()?
            .unwrap_or(DEFAULT_SESSION_PORT);
        Ok(Self { host, port })
    }

    /// The host: a name to be resolved, or an address.
    #[must_use]
    pub fn host(&self) -> &ServerName<'static> {
        &self.host
    }

    /// The port, from 1 to 65535.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for ServerAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.host.to_str();
        if host.contains(':') {
            write!(f, "https://[{host}]:{}", self.port)
        } else {
            write!(f, "https://{host}:{}", self.port)
        }
    }
}

/// Where the agent's certificate and its private key are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClientIdentity {
    /// To be looked for in the kubelet's directory.
    Directory(PathBuf),
    /// In these files, which may be one and the same.
    Files {
        /// The certificate and those that it leads through.
        cert: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

/// The name of a network interface, in a form that Linux accepts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InterfaceName(String);

/// A text that cannot name a network interface.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("must be the name of a network interface, at most 15 bytes without '/', ':' or spaces")]
pub struct InterfaceNameError;

impl InterfaceName {
    /// Reads the name of an interface, which need not exist.
    ///
    /// # Errors
    ///
    /// When Linux would not take the name.
    pub fn parse(text: &str) -> Result<Self, InterfaceNameError> {
        let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let fits = (1..=MAX_INTERFACE_NAME).contains(&text.len());
        if !fits || text == "." || text == ".." || text.contains(bad) {
            return Err(InterfaceNameError);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How much of the kernel's help the agent uses.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// What this kernel offers.
    #[default]
    Auto,
    /// eBPF, or no start.
    Ebpf,
    /// None: the session path only.
    Userspace,
}

impl Choice for Mode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("ebpf", Self::Ebpf),
        ("userspace", Self::Userspace),
    ];
}

/// What happens to a steered connection that starts with TLS instead of a hello.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SteerPlain {
    /// It is relayed to the kubelet as it is.
    #[default]
    Relay,
    /// It is closed.
    Refuse,
}

impl Choice for SteerPlain {
    const WORDS: &'static [(&'static str, Self)] =
        &[("relay", Self::Relay), ("refuse", Self::Refuse)];
}

/// Whether something is done at all.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnOff {
    /// It is.
    #[default]
    On,
    /// It is not.
    Off,
}

impl Choice for OnOff {
    const WORDS: &'static [(&'static str, Self)] = &[("on", Self::On), ("off", Self::Off)];
}

/// What happens to kubelet-bound connections from elsewhere than the masters.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Guard {
    /// They are counted, and their sources remembered.
    Audit,
    /// They are dropped unless allowed.
    Enforce,
    /// Nothing.
    #[default]
    Off,
}

impl Choice for Guard {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("audit", Self::Audit),
        ("enforce", Self::Enforce),
    ];
}

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Attach {
    /// By TCX where the kernel has it, else by netlink.
    #[default]
    Auto,
    /// By a TCX link, or not at all.
    Tcx,
    /// By a filter at a clsact qdisc, or not at all.
    Netlink,
}

impl Choice for Attach {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("auto", Self::Auto),
        ("tcx", Self::Tcx),
        ("netlink", Self::Netlink),
    ];
}

/// `IFNAMSIZ` is 16, with the NUL at the end.
const MAX_INTERFACE_NAME: usize = 15;
