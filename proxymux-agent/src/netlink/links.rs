//! The links of the network namespace, as `ip -details link` shows them.
//!
//! Owns reading the few attributes that tell what a device is for another: bridge, bond, VLAN.
//! Asked by `check` only. Anybody may ask.

use std::io;

use super::{DUMP, Message, ask, attribute, number, text};

/// A device.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// `bridge`, `bond`, `vlan`, `veth`, ...; none of a physical one.
    pub(crate) kind: Option<String>,
    pub(crate) mtu: u32,
    /// Whether it was brought up.
    pub(crate) up: bool,
    /// Whether anything is at its other end.
    pub(crate) carrier: bool,
    /// The bridge or bond that it is part of.
    pub(crate) master: Option<u32>,
    /// Of a VLAN, the device that its frames come by.
    pub(crate) parent: Option<u32>,
}

/// All of them.
pub(crate) fn links() -> io::Result<Vec<Link>> {
    let mut found = Vec::new();
    ask(RTM_GETLINK, DUMP, &[0; IFINFOMSG_LEN], |message| {
        found.push(link(message));
    })?;
    Ok(found)
}

fn link(message: &Message<'_>) -> Link {
    let flags = message.number(8);
    let attributes = message.attributes(IFINFOMSG_LEN);
    let value = |kind| attribute(attributes, kind);
    let index_of = |kind| value(kind).map(|value| number(value, 0));
    let info = value(IFLA_LINKINFO).unwrap_or_default();
    Link {
        index: message.number(4),
        name: value(IFLA_IFNAME).map(text).unwrap_or_default(),
        kind: attribute(info, IFLA_INFO_KIND).map(text),
        mtu: index_of(IFLA_MTU).unwrap_or_default(),
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        master: index_of(IFLA_MASTER),
        // With this attribute the other index is one of another namespace.
        parent: index_of(IFLA_LINK).filter(|_| value(IFLA_LINK_NETNSID).is_none()),
    }
}

const RTM_GETLINK: u16 = 18;
const IFINFOMSG_LEN: usize = 16;

const IFF_UP: u32 = 0x1;
const IFF_LOWER_UP: u32 = 0x1_0000;

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_among_the_links_of_every_namespace() {
        let links = links().unwrap();
        let index = nix::net::if_::if_nametoindex("lo").unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!(loopback.index, index);
        assert!(loopback.mtu > 0, "{loopback:?}");
        assert_eq!((loopback.master, loopback.parent), (None, None));
    }

    #[test]
    fn a_message_that_is_cut_off_is_a_device_without_properties() {
        assert_eq!(link(&Message(&[])), Link::default());
    }
}
