//! The maps of an agent that was built without eBPF: there are none.
//!
//! Owns only the form of `maps`, so that what uses them is the same in both builds. Neither type
//! has a value.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    os::fd::BorrowedFd,
    time::Duration,
};

use ipnet::IpNet;
use proxymux_common::{Counter, Settings, Verdict};

use super::{Family, explain::Loaded};

/// Never there.
#[derive(Debug)]
pub(crate) struct Maps(Infallible);

/// Never happens.
#[derive(Debug, thiserror::Error)]
#[error("built without eBPF")]
pub(crate) struct MapFault(Infallible);

macro_rules! never {
    ($($name:ident(&self $(, $argument:ident: $kind:ty)*) -> $result:ty;)*) => {
        impl Maps {
            $(pub(crate) fn $name(&self $(, $argument: $kind)*) -> $result {
                $(let _ = $argument;)*
                match self.0 {}
            })*
        }
    };
}

never! {
    settings(&self) -> Settings;
    set_sources(&self, sources: &[IpNet]) -> Result<(), MapFault>;
    sources(&self) -> Vec<IpNet>;
    allowed(&self) -> Vec<IpNet>;
    addresses(&self) -> Vec<IpAddr>;
    set_listener(&self, family: Family, listener: BorrowedFd<'_>) -> Result<(), MapFault>;
    listeners(&self) -> Vec<SocketAddr>;
    clear_listeners(&self) -> Result<(), MapFault>;
    beat(&self) -> Result<(), MapFault>;
    heartbeat_age(&self) -> Option<Duration>;
    statistics(&self) -> Result<[Counter; Verdict::ALL.len()], MapFault>;
    loaded(&self) -> Result<Loaded, MapFault>;
    audited(&self) -> Result<Vec<(IpAddr, u64)>, MapFault>;
}
