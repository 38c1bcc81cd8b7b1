//! Checks of addresses, networks and ports.
//!
//! Owns their written forms. An IPv4-mapped IPv6 address becomes the IPv4 address it stands for,
//! so that one host has one form. Scope ids (`fe80::1%eth0`) are not taken.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use ipnet::{IpNet, Ipv4Net};
use rustls::pki_types::ServerName;

use super::ValueError;

/// Reads an IP address.
///
/// # Errors
///
/// When the text is none.
pub fn ip(text: &str) -> Result<IpAddr, ValueError> {
    let ip: IpAddr = text.parse().map_err(|_| ValueError::NotAnIp)?;
    Ok(ip.to_canonical())
}

/// Reads an IP address under which others can reach a node.
///
/// # Errors
///
/// When the text is no IP address, or an unspecified, loopback, multicast or broadcast one.
pub fn node_ip(text: &str) -> Result<IpAddr, ValueError> {
    let ip = ip(text)?;
    let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
    let kind = match ip {
        ip if ip.is_unspecified() => "the unspecified address",
        ip if ip.is_loopback() => "a loopback address",
        ip if ip.is_multicast() => "a multicast address",
        _ if broadcast => "the broadcast address",
        ip => return Ok(ip),
    };
    Err(ValueError::NotANodeIp { kind })
}

/// Reads an IP address with a port that others dial. Without `default_port` the text must have
/// a port.
///
/// # Errors
///
/// When the text is no such pair.
pub fn socket_addr(text: &str, default_port: Option<u16>) -> Result<SocketAddr, ValueError> {
    let (host, port) = split_port(text)?;
    let ip = ip(host).map_err(|_| ValueError::NotASocketAddr)?;
    let port = match port {
        Some(port) => self::port(port)?,
        None => default_port.ok_or(ValueError::NotASocketAddr)?,
    };
    Ok(SocketAddr::new(ip, port))
}

/// Reads an IP address with a port to listen on; port 0 lets the kernel choose one.
///
/// # Errors
///
/// When the text is no such pair.
pub fn listen_addr(text: &str) -> Result<SocketAddr, ValueError> {
    match split_port(text)? {
        (host, Some("0")) => ip(host).map(|ip| SocketAddr::new(ip, 0)),
        _ => socket_addr(text, None),
    }
    .map_err(|error| match error {
        ValueError::NotAnIp => ValueError::NotASocketAddr,
        other => other,
    })
}

/// Cuts `host:port`, where the port may be missing and an IPv6 host is in brackets.
///
/// Both parts come as text; the host has lost its brackets, and if it had them it is an IPv6
/// address.
///
/// # Errors
///
/// When an IPv6 address has no brackets, or brackets hold or are followed by something else.
pub fn split_port(text: &str) -> Result<(&str, Option<&str>), ValueError> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(ValueError::BareIpv6);
    }
    let Some(rest) = text.strip_prefix('[') else {
        return Ok(match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        });
    };
    let (host, rest) = rest.split_once(']').ok_or(ValueError::BadBrackets)?;
    host.parse::<Ipv6Addr>()
        .map_err(|_| ValueError::BadBrackets)?;
    match rest.strip_prefix(':') {
        Some(port) => Ok((host, Some(port))),
        None if rest.is_empty() => Ok((host, None)),
        None => Err(ValueError::BadBrackets),
    }
}

/// Reads a port.
///
/// # Errors
///
/// When the text is no number from 1 to 65535.
pub fn port(text: &str) -> Result<u16, ValueError> {
    // `u16::from_str` would also take a plus sign.
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let port = if digits { text.parse().ok() } else { None };
    port.filter(|&port| port != 0).ok_or(ValueError::BadPort)
}

/// Reads a DNS name or an IP address.
///
/// # Errors
///
/// When the text is neither.
pub fn server_name(text: &str) -> Result<ServerName<'static>, ValueError> {
    if let Ok(ip) = ip(text) {
        return Ok(ServerName::from(ip));
    }
    ServerName::try_from(text.to_owned()).map_err(|_| ValueError::NotAHost)
}

/// Reads a network in CIDR form.
///
/// # Errors
///
/// When the text is none, or has bits set that the prefix excludes: it is then unclear which of
/// the two is meant, and these lists say who may connect where.
pub fn cidr(text: &str) -> Result<IpNet, ValueError> {
    let net: IpNet = text.parse().map_err(|_| ValueError::NotACidr)?;
    if net.trunc() != net {
        return Err(ValueError::HostBits {
            net: canonical(net.trunc()),
        });
    }
    Ok(canonical(net))
}

/// Reads a network in CIDR form, or an IP address, which is the network of that address alone.
///
/// # Errors
///
/// When the text is neither, or has bits set that the prefix excludes.
pub fn cidr_or_ip(text: &str) -> Result<IpNet, ValueError> {
    match ip(text) {
        Ok(ip) => Ok(IpNet::from(ip)),
        Err(_) => cidr(text).map_err(|error| match error {
            ValueError::NotACidr => ValueError::NotACidrOrIp,
            other => other,
        }),
    }
}

/// Reads a port, or two with a hyphen between them.
///
/// # Errors
///
/// When the text is neither, or the range is empty.
pub fn port_range(text: &str) -> Result<RangeInclusive<u16>, ValueError> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |text: &str| port(text.trim()).map_err(|_| ValueError::NotAPortRange);
    let (first, last) = (port(first)?, port(last)?);
    if first > last {
        return Err(ValueError::PortRangeReversed);
    }
    Ok(first..=last)
}

/// The IPv4 network that an IPv4-mapped IPv6 network stands for.
fn canonical(net: IpNet) -> IpNet {
    let mapped = match net {
        IpNet::V6(v6) => v6
            .addr()
            .to_ipv4_mapped()
            .zip(v6.prefix_len().checked_sub(96)),
        IpNet::V4(_) => None,
    };
    mapped
        .and_then(|(addr, prefix)| Ipv4Net::new(addr, prefix).ok())
        .map_or(net, IpNet::V4)
}
