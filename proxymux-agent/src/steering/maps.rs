//! The maps of the loaded programs, with types.
//!
//! Owns every access of the agent to them; what is in them is `proxymux-common`'s. The maps live
//! as long as this or a program that is attached. Writing what a list should hold adds what is new
//! before it removes what is old, so that no packet meets an empty list.

use std::{
    collections::HashSet,
    error::Error,
    hash::Hash,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, BorrowedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SockMap, lpm_trie::Key},
};
use ipnet::IpNet;
use nix::{
    sys::socket::{SockaddrStorage, getsockname},
    time::{ClockId, clock_gettime},
};
use proxymux_common::{
    Address, Counter, LISTENER_V4, LISTENER_V6, Settings, Verdict, mapped, names,
};

use super::{Family, explain::Loaded};

/// All maps.
pub(crate) struct Maps {
    inner: Mutex<Inner>,
}

struct Inner {
    settings: Array<MapData, Settings>,
    heartbeat: Array<MapData, u64>,
    listeners: SockMap<MapData>,
    statistics: PerCpuArray<MapData, Counter>,
    audited: HashMap<MapData, Address, u64>,
    sources: Prefixes,
    allowed: Prefixes,
    addresses: HashMap<MapData, Address, u8>,
    /// What is in `settings`.
    set: Settings,
    /// What is in `addresses`.
    own: HashSet<Address>,
    /// Where what is in `listeners` listens.
    listening: [Option<SocketAddr>; 2],
    /// What is in `heartbeat`; 0 before the first beat.
    beaten: u64,
}

/// A list of networks: a trie for each family.
struct Prefixes {
    v4: LpmTrie<MapData, [u8; 4], u8>,
    v6: LpmTrie<MapData, [u8; 16], u8>,
    held: HashSet<IpNet>,
}

/// A map that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the BPF map {map}")]
pub(crate) struct MapFault {
    map: &'static str,
    #[source]
    source: Box<dyn Error + Send + Sync>,
}

impl Maps {
    /// Takes the maps out of what was loaded.
    pub(super) fn take(loaded: &mut Ebpf) -> Result<Arc<Self>, MapFault> {
        let inner = Inner {
            settings: taken(loaded, names::SETTINGS)?,
            heartbeat: taken(loaded, names::HEARTBEAT)?,
            listeners: taken(loaded, names::LISTENERS)?,
            statistics: taken(loaded, names::STATISTICS)?,
            audited: taken(loaded, names::AUDITED)?,
            sources: Prefixes {
                v4: taken(loaded, names::SOURCES_V4)?,
                v6: taken(loaded, names::SOURCES_V6)?,
                held: HashSet::new(),
            },
            allowed: Prefixes {
                v4: taken(loaded, names::ALLOWED_V4)?,
                v6: taken(loaded, names::ALLOWED_V6)?,
                held: HashSet::new(),
            },
            addresses: taken(loaded, names::ADDRESSES)?,
            set: Settings::default(),
            own: HashSet::new(),
            listening: [None; 2],
            beaten: 0,
        };
        Ok(Arc::new(Self {
            inner: Mutex::new(inner),
        }))
    }

    /// Says what the programs are to do.
    pub(crate) fn set_settings(&self, settings: Settings) -> Result<(), MapFault> {
        let mut inner = self.lock();
        let written = inner.settings.set(0, settings, 0);
        written.map_err(of(names::SETTINGS))?;
        inner.set = settings;
        Ok(())
    }

    /// What the programs are told to do.
    pub(crate) fn settings(&self) -> Settings {
        self.lock().set
    }

    /// Whose connections are steered.
    pub(crate) fn set_sources(&self, sources: &[IpNet]) -> Result<(), MapFault> {
        self.lock().sources.hold(sources, names::SOURCES_V4)
    }

    /// Whose connections are steered now.
    pub(crate) fn sources(&self) -> Vec<IpNet> {
        self.lock().sources.list()
    }

    /// Whom the guard lets in besides.
    pub(crate) fn set_allowed(&self, allowed: &[IpNet]) -> Result<(), MapFault> {
        self.lock().allowed.hold(allowed, names::ALLOWED_V4)
    }

    /// Whom the guard lets in besides the sources.
    pub(crate) fn allowed(&self) -> Vec<IpNet> {
        self.lock().allowed.list()
    }

    /// Which addresses are this node's. Of more than the map holds the last are left out.
    pub(crate) fn set_addresses(&self, addresses: &[IpAddr]) -> Result<(), MapFault> {
        let wanted: HashSet<Address> = addresses
            .iter()
            .take(names::MAX_ADDRESSES as usize)
            .map(|ip| address(*ip))
            .collect();
        let mut inner = self.lock();
        let Inner { addresses, own, .. } = &mut *inner;
        let old: Vec<_> = own.difference(&wanted).copied().collect();
        // The map may be full: here what is old goes first. The node's addresses seldom change.
        for address in old {
            removed(addresses.remove(&address)).map_err(of(names::ADDRESSES))?;
            own.remove(&address);
        }
        for address in wanted {
            if !own.contains(&address) {
                let added = addresses.insert(address, 1, 0);
                added.map_err(of(names::ADDRESSES))?;
                own.insert(address);
            }
        }
        Ok(())
    }

    /// Which addresses are this node's, as the programs know them.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let mut list: Vec<_> = self.lock().own.iter().map(|own| ip(*own)).collect();
        list.sort_unstable();
        list
    }

    /// Gives connections of this family to the socket, which must listen.
    pub(crate) fn set_listener(
        &self,
        family: Family,
        listener: BorrowedFd<'_>,
    ) -> Result<(), MapFault> {
        let mut inner = self.lock();
        let set = inner.listeners.set(slot(family), &listener, 0);
        set.map_err(of(names::LISTENERS))?;
        if let Some(listening) = inner.listening.get_mut(slot(family) as usize) {
            *listening = local_addr(listener);
        }
        Ok(())
    }

    /// Where the listeners are that connections are given to, IPv4 first.
    pub(crate) fn listeners(&self) -> Vec<SocketAddr> {
        self.lock().listening.iter().flatten().copied().collect()
    }

    /// Gives connections to nobody any more.
    pub(crate) fn clear_listeners(&self) -> Result<(), MapFault> {
        let mut inner = self.lock();
        for slot in [LISTENER_V4, LISTENER_V6] {
            let cleared = removed(inner.listeners.clear_index(&slot));
            cleared.map_err(of(names::LISTENERS))?;
            if let Some(listening) = inner.listening.get_mut(slot as usize) {
                *listening = None;
            }
        }
        Ok(())
    }

    /// Says that the agent lives. The programs take it for dead five seconds after the last time.
    pub(crate) fn beat(&self) -> Result<(), MapFault> {
        let now = monotonic().map_err(of(names::HEARTBEAT))?;
        let mut inner = self.lock();
        let written = inner.heartbeat.set(0, now, 0);
        written.map_err(of(names::HEARTBEAT))?;
        inner.beaten = now;
        Ok(())
    }

    /// How long ago the agent last said that it lives; `None` if it never did.
    pub(crate) fn heartbeat_age(&self) -> Option<Duration> {
        let beaten = self.lock().beaten;
        let now = monotonic().ok()?;
        (beaten != 0).then(|| Duration::from_nanos(now.saturating_sub(beaten)))
    }

    /// What the programs have counted, over all processors, by [`Verdict`].
    pub(crate) fn statistics(&self) -> Result<[Counter; Verdict::ALL.len()], MapFault> {
        let inner = self.lock();
        let mut sums = [Counter::default(); Verdict::ALL.len()];
        for (sum, verdict) in sums.iter_mut().zip(Verdict::ALL) {
            let counters = inner.statistics.get(&(verdict as u32), 0);
            for counter in counters.map_err(of(names::STATISTICS))?.iter() {
                sum.packets = sum.packets.wrapping_add(counter.packets);
                sum.bytes = sum.bytes.wrapping_add(counter.bytes);
            }
        }
        Ok(sums)
    }

    /// Whose connections the guard dropped or would have dropped, and how many; the most first.
    pub(crate) fn audited(&self) -> Result<Vec<(IpAddr, u64)>, MapFault> {
        let inner = self.lock();
        let mut list = Vec::new();
        for key in inner.audited.keys().take(names::MAX_AUDITED as usize) {
            let key = key.map_err(of(names::AUDITED))?;
            match inner.audited.get(&key, 0) {
                Ok(count) => list.push((ip(key), count)),
                // The programs have forgotten it meanwhile.
                Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(of(names::AUDITED)(error)),
            }
        }
        list.sort_unstable_by_key(|(ip, count)| (std::cmp::Reverse(*count), *ip));
        Ok(list)
    }

    /// What is in the maps, read from the kernel.
    pub(crate) fn loaded(&self) -> Result<Loaded, MapFault> {
        let inner = self.lock();
        let settings = inner.settings.get(&0, 0).map_err(of(names::SETTINGS))?;
        let beat = inner.heartbeat.get(&0, 0).map_err(of(names::HEARTBEAT))?;
        let now = monotonic().map_err(of(names::HEARTBEAT))?;
        let own: Result<Vec<_>, _> = inner.addresses.keys().collect();
        let mut addresses: Vec<_> = own
            .map_err(of(names::ADDRESSES))?
            .into_iter()
            .map(ip)
            .collect();
        addresses.sort_unstable();
        Ok(Loaded {
            settings,
            sources: inner.sources.read(names::SOURCES_V4)?,
            allowed: inner.allowed.read(names::ALLOWED_V4)?,
            addresses,
            listeners: inner.listening.iter().flatten().copied().collect(),
            beat,
            now,
            ..Loaded::default()
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What a panic leaves half-written the next write of the same list finishes.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Prefixes {
    fn hold(&mut self, wanted: &[IpNet], map: &'static str) -> Result<(), MapFault> {
        let wanted: HashSet<IpNet> = wanted.iter().map(IpNet::trunc).collect();
        let Self { v4, v6, held } = self;
        for net in wanted.difference(&held.clone()) {
            let added = match net {
                IpNet::V4(net) => v4.insert(&key(net.prefix_len(), net.addr().octets()), 1, 0),
                IpNet::V6(net) => v6.insert(&key(net.prefix_len(), net.addr().octets()), 1, 0),
            };
            added.map_err(of(map))?;
            held.insert(*net);
        }
        for net in held.difference(&wanted).copied().collect::<Vec<_>>() {
            let gone = match net {
                IpNet::V4(net) => v4.remove(&key(net.prefix_len(), net.addr().octets())),
                IpNet::V6(net) => v6.remove(&key(net.prefix_len(), net.addr().octets())),
            };
            removed(gone).map_err(of(map))?;
            held.remove(&net);
        }
        Ok(())
    }

    /// The list as the kernel has it.
    fn read(&self, map: &'static str) -> Result<Vec<IpNet>, MapFault> {
        let v4 = self.v4.keys().map(|key| key.map(net));
        let v6 = self.v6.keys().map(|key| key.map(net));
        let nets = v4.chain(v6).filter_map(Result::transpose);
        nets.collect::<Result<_, _>>().map_err(of(map))
    }

    fn list(&self) -> Vec<IpNet> {
        let mut list: Vec<_> = self.held.iter().copied().collect();
        list.sort_unstable();
        list
    }
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maps").finish_non_exhaustive()
    }
}

/// The map of this name, as the type that it should be.
fn taken<T>(loaded: &mut Ebpf, name: &'static str) -> Result<T, MapFault>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = loaded
        .take_map(name)
        .ok_or_else(|| of(name)("it is not in the object"))?;
    T::try_from(map).map_err(of(name))
}

fn of<E: Into<Box<dyn Error + Send + Sync>>>(map: &'static str) -> impl Fn(E) -> MapFault {
    move |error| MapFault {
        map,
        source: error.into(),
    }
}

/// What is not there need not be removed.
fn removed(done: Result<(), MapError>) -> Result<(), MapError> {
    match done {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if matches!(
                error.io_error.raw_os_error(),
                Some(libc_errno::ENOENT | libc_errno::EINVAL)
            ) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// What removing answers where nothing is: tries and hashes the first, socket maps the second.
mod libc_errno {
    pub(super) const ENOENT: i32 = nix::errno::Errno::ENOENT as i32;
    pub(super) const EINVAL: i32 = nix::errno::Errno::EINVAL as i32;
}

fn key<K: Pod + Hash>(prefix: u8, address: K) -> Key<K> {
    Key::new(u32::from(prefix), address)
}

/// The network of a key that [`key`] has made.
fn net<K: Pod + Into<IpAddr>>(key: Key<K>) -> Option<IpNet> {
    let prefix = u8::try_from(key.prefix_len()).ok()?;
    IpNet::new(key.data().into(), prefix).ok()
}

fn slot(family: Family) -> u32 {
    match family {
        Family::V4 => LISTENER_V4,
        Family::V6 => LISTENER_V6,
    }
}

/// An address as the maps have it.
pub(super) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => mapped(ip.octets()),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn local_addr(socket: BorrowedFd<'_>) -> Option<SocketAddr> {
    let at: SockaddrStorage = getsockname(socket.as_raw_fd()).ok()?;
    let v4 = at.as_sockaddr_in().map(|at| SocketAddr::V4((*at).into()));
    v4.or_else(|| at.as_sockaddr_in6().map(|at| SocketAddr::V6((*at).into())))
}

fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// The clock that the programs read too, in nanoseconds; tokio's cannot be compared with theirs.
fn monotonic() -> nix::Result<u64> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}
