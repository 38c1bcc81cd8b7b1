//! Checks of single values that both daemons' configuration files need.
//!
//! Owns the step from text to a typed value: durations, addresses, paths, ranges, choices. Which
//! key has which bounds and default is left to the daemons.
//! Each check is a function from `&str` to a value or a [`ValueError`], whose text completes
//! `file:line: key: value: ...`.

use std::{
    fmt, net::SocketAddr, num::NonZeroU32, ops::RangeInclusive, path::PathBuf, time::Duration,
};

pub use self::{
    address::{
        cidr, cidr_or_ip, ip, listen_addr, node_ip, port, port_range, server_name, socket_addr,
        split_port,
    },
    size::{ByteSize, FlowBuffer, flow_buffer, size},
};

mod address;
mod size;

/// What is wrong with a value.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ValueError {
    /// No duration.
    #[error("must be a duration such as 250ms, 30s or 5m")]
    NotADuration,
    /// A duration below its lower bound.
    #[error("must be at least {}", humantime::format_duration(*.min))]
    TooShort {
        /// The bound.
        min: Duration,
    },
    /// A duration above its upper bound.
    #[error("must be at most {}", humantime::format_duration(*.max))]
    TooLong {
        /// The bound.
        max: Duration,
    },
    /// A number out of its bounds.
    #[error("must be from {min} to {max}")]
    OutOfRange {
        /// The lower bound.
        min: u32,
        /// The upper bound.
        max: u32,
    },
    /// No size.
    #[error("must be a size with its unit such as 512KiB, 64MiB or 1GiB")]
    NotASize,
    /// Neither a size nor the word for letting the kernel choose.
    #[error("must be auto, or a size with its unit such as 256KiB or 1MiB")]
    NotAFlowBuffer,
    /// A unit of powers of ten, which may be meant or not.
    #[error("must be in KiB, MiB or GiB, which are powers of 1024")]
    DecimalSize,
    /// A size out of its bounds.
    #[error("must be from {min} to {max}")]
    SizeOutOfRange {
        /// The lower bound.
        min: ByteSize,
        /// The upper bound.
        max: ByteSize,
    },
    /// None of the words that the key takes.
    #[error("must be {}", list_words(.words))]
    NotAChoice {
        /// These it takes.
        words: Vec<&'static str>,
    },
    /// A relative path, which would depend on where the daemon was started.
    #[error("must be an absolute path")]
    NotAbsolute,
    /// A path that cannot exist.
    #[error("must be a path without NUL bytes")]
    NulInPath,
    /// A path that does not fit into a Unix socket's address.
    #[error("must be a path of at most {max} bytes, has {len}", max = MAX_SOCKET_PATH)]
    SocketPathTooLong {
        /// Its length.
        len: usize,
    },
    /// No permission bits.
    #[error("must be octal digits such as \"0660\", at most \"0777\"")]
    NotAMode,
    /// Neither form of an administration address.
    #[error("must be unix:/PATH, or a loopback address and port such as 127.0.0.1:12252")]
    NotAnAdminAddr,
    /// An administration address that others can reach.
    #[error("must be a loopback address, or unix:/PATH")]
    AdminNotLoopback,
    /// A text with bytes that would garble a log.
    #[error("must be text without control characters")]
    ControlCharacter,
    /// A text longer than anybody writes one.
    #[error("must have at most {max} bytes, has {len}", max = MAX_LABEL_BYTES)]
    LabelTooLong {
        /// Its length.
        len: usize,
    },
    /// No IP address.
    #[error("must be an IPv4 or IPv6 address")]
    NotAnIp,
    /// An IP address under which nobody reaches a node.
    #[error("is {kind}, must be an address under which others reach this node")]
    NotANodeIp {
        /// What kind of address it is.
        kind: &'static str,
    },
    /// No IP address with a port.
    #[error("must be an IP address and port such as 10.0.10.10:10250 or [fd00::1]:10250")]
    NotASocketAddr,
    /// No port.
    #[error("must have a port from 1 to 65535")]
    BadPort,
    /// An IPv6 address whose end cannot be told from a port.
    #[error("must have its IPv6 address in brackets, such as [fd00::1]:10250")]
    BareIpv6,
    /// Brackets that are not around an IPv6 address.
    #[error("must have brackets around an IPv6 address only, such as [fd00::1]:10250")]
    BadBrackets,
    /// Neither a name nor an address.
    #[error("must be a DNS name or an IP address")]
    NotAHost,
    /// No network.
    #[error("must be a network such as 10.244.0.0/16 or fd00::/8")]
    NotACidr,
    /// Neither network nor address.
    #[error("must be a network such as 10.244.0.0/16, or an IP address")]
    NotACidrOrIp,
    /// A network with bits that its prefix says do not count.
    #[error("has bits set behind its prefix, must be {net} or a longer prefix")]
    HostBits {
        /// The network that the prefix cuts out.
        net: ipnet::IpNet,
    },
    /// No range of ports.
    #[error("must be a port or a range such as \"8000-8999\", from 1 to 65535")]
    NotAPortRange,
    /// A range that ends before it starts.
    #[error("must be a range whose first port is not above its last")]
    PortRangeReversed,
}

/// A setting that takes one of a few words.
pub trait Choice: Copy + PartialEq + 'static {
    /// The words, in the order in which messages list them.
    const WORDS: &'static [(&'static str, Self)];

    /// The word for this choice.
    fn word(self) -> &'static str {
        let found = Self::WORDS.iter().find(|(_, choice)| *choice == self);
        found.map_or("", |(word, _)| word)
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum LogFormat {
    /// One JSON object per line, for collectors.
    Json,
    /// For people.
    #[default]
    Text,
}

impl Choice for LogFormat {
    const WORDS: &'static [(&'static str, Self)] = &[("text", Self::Text), ("json", Self::Json)];
}

/// A function that is on where it is possible, or off.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AutoOff {
    /// Used where possible.
    #[default]
    Auto,
    /// Not used.
    Off,
}

impl Choice for AutoOff {
    const WORDS: &'static [(&'static str, Self)] = &[("auto", Self::Auto), ("off", Self::Off)];
}

/// Where a daemon's administration requests come in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AdminAddr {
    /// A loopback address, for reading only.
    Tcp(SocketAddr),
    /// A Unix socket, for everything.
    Unix(PathBuf),
}

impl fmt::Display for AdminAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The settings in force, for the log line at start-up.
///
/// ```
/// use proxymux_transport::config_file::values::EffectiveSettings;
/// let mut settings = EffectiveSettings::default();
/// settings.add("mode", "auto").add("listen", "[::]:12250");
/// assert_eq!(settings.to_string(), "mode=auto listen=[::]:12250");
/// ```
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EffectiveSettings(Vec<(&'static str, String)>);

impl EffectiveSettings {
    /// Adds a key and its value.
    pub fn add(&mut self, key: &'static str, value: impl fmt::Display) -> &mut Self {
        self.0.push((key, value.to_string()));
        self
    }

    /// Adds a key with several values, separated by commas.
    pub fn add_list<T: fmt::Display>(
        &mut self,
        key: &'static str,
        values: impl IntoIterator<Item = T>,
    ) -> &mut Self {
        let shown: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
        self.add(key, format_args!("[{}]", shown.join(",")))
    }

    /// The keys and values, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(key, value)| (*key, value.as_str()))
    }
}

impl fmt::Display for EffectiveSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, value)) in self.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            // A path may have spaces, or characters that would garble a log.
            if value.chars().all(|c| c.is_ascii_graphic() && c != '"') {
                write!(f, "{space}{key}={value}")?;
            } else {
                write!(f, "{space}{key}={value:?}")?;
            }
        }
        Ok(())
    }
}

/// Reads a duration such as `8s`, `5m` or `250ms` within bounds.
///
/// # Errors
///
/// When the text is no duration, or out of bounds.
pub fn duration(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, ValueError> {
    let value = humantime::parse_duration(text).map_err(|_| ValueError::NotADuration)?;
    if value < *bounds.start() {
        return Err(ValueError::TooShort {
            min: *bounds.start(),
        });
    }
    if value > *bounds.end() {
        return Err(ValueError::TooLong { max: *bounds.end() });
    }
    Ok(value)
}

/// Reads a duration within bounds, or `off`.
///
/// # Errors
///
/// When the text is neither, or out of bounds.
pub fn duration_or_off(
    text: &str,
    bounds: &RangeInclusive<Duration>,
) -> Result<Option<Duration>, ValueError> {
    if text == OFF {
        Ok(None)
    } else {
        duration(text, bounds).map(Some)
    }
}

/// The word that [`duration_or_off`] reads for this value.
#[must_use]
pub fn show_duration_or_off(value: Option<Duration>) -> String {
    match value {
        Some(value) => humantime::format_duration(value).to_string(),
        None => OFF.to_owned(),
    }
}

/// Checks a number that is at least one.
///
/// # Errors
///
/// When the number is zero or above `max`.
pub fn count(number: u64, max: u32) -> Result<NonZeroU32, ValueError> {
    let small = u32::try_from(number).ok().filter(|&small| small <= max);
    small
        .and_then(NonZeroU32::new)
        .ok_or(ValueError::OutOfRange { min: 1, max })
}

/// Reads one of the words of a choice.
///
/// # Errors
///
/// When the text is none of them.
pub fn choice<T: Choice>(text: &str) -> Result<T, ValueError> {
    let found = T::WORDS.iter().find(|(word, _)| *word == text);
    found
        .map(|(_, value)| *value)
        .ok_or_else(|| ValueError::NotAChoice {
            words: T::WORDS.iter().map(|(word, _)| *word).collect(),
        })
}

/// Reads the path of a file or directory.
///
/// # Errors
///
/// When the path is not absolute, or can be none.
pub fn path(text: &str) -> Result<PathBuf, ValueError> {
    if text.contains('\0') {
        return Err(ValueError::NulInPath);
    }
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(ValueError::NotAbsolute)
    }
}

/// Reads the path of a Unix socket.
///
/// # Errors
///
/// When the path is not absolute, or longer than a socket's address holds.
pub fn socket_path(text: &str) -> Result<PathBuf, ValueError> {
    let path = path(text)?;
    if text.len() > MAX_SOCKET_PATH {
        return Err(ValueError::SocketPathTooLong { len: text.len() });
    }
    Ok(path)
}

/// Reads the permission bits of a file, in octal.
///
/// # Errors
///
/// When the text is no octal number of three or four digits up to 0777.
pub fn unix_mode(text: &str) -> Result<u32, ValueError> {
    let digits = matches!(text.len(), 3 | 4) && text.bytes().all(|b| matches!(b, b'0'..=b'7'));
    let mode = if digits {
        u32::from_str_radix(text, 8).ok()
    } else {
        None
    };
    mode.filter(|&mode| mode <= 0o777)
        .ok_or(ValueError::NotAMode)
}

/// Reads `unix:/PATH`, or a loopback address with a port.
///
/// # Errors
///
/// When the text is neither.
pub fn admin_addr(text: &str) -> Result<AdminAddr, ValueError> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(AdminAddr::Unix);
    }
    let addr = socket_addr(text, None).map_err(|error| match error {
        ValueError::BadPort => error,
        _ => ValueError::NotAnAdminAddr,
    })?;
    if addr.ip().is_loopback() {
        Ok(AdminAddr::Tcp(addr))
    } else {
        Err(ValueError::AdminNotLoopback)
    }
}

/// Checks a text that is only shown and compared.
///
/// # Errors
///
/// When the text is too long for that, or has control characters.
pub fn label(text: &str) -> Result<String, ValueError> {
    if text.len() > MAX_LABEL_BYTES {
        return Err(ValueError::LabelTooLong { len: text.len() });
    }
    if text.chars().any(char::is_control) {
        return Err(ValueError::ControlCharacter);
    }
    Ok(text.to_owned())
}

/// `a`, `a or b`, `a, b or c`.
fn list_words(words: &[&'static str]) -> String {
    match words {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [rest @ .., last] => format!("{} or {last}", rest.join(", ")),
    }
}

const OFF: &str = "off";

/// `sun_path` has 108 bytes and ends in NUL.
const MAX_SOCKET_PATH: usize = 107;

/// The identifiers of Oracle's cloud have at most this many bytes.
const MAX_LABEL_BYTES: usize = 255;

#[cfg(test)]
mod tests;
