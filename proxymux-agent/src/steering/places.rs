//! Where the programs should be, and where they are.
//!
//! Owns the devices: which are wanted, which exist, what is attached to them. [`Places::look`]
//! compares all three and mends what differs; it is called at the start, when the kernel tells of a
//! change, and every few seconds. What it finds is logged when it changes, not each time.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};
use proxymux_common::{
    Guard as GuardWord, SETTINGS_FLAG_GUARD_NIC, SETTINGS_FLAG_STEER, Settings, names,
};
use proxymux_transport::telemetry::chain as line;

use super::{
    Device, MapFault, Maps, PlaceStatus,
    attach::{self, Attachment},
    chain,
    claim::Claim,
    cost::Cost,
    load::Loaded,
};
use crate::config::{Attach, Config, Guard, Mode};

/// All places of one agent.
#[derive(Debug)]
pub(super) struct Places {
    loaded: Loaded,
    maps: Arc<Maps>,
    places: Vec<Place>,
    how: (Attach, u16),
    /// The node's addresses wherever they are.
    fixed: Vec<IpAddr>,
    /// Why the last look could not do all of its work.
    fault: Option<String>,
    /// Given up when nothing is attached any more, for good.
    claim: Option<Claim>,
}

/// A program, and the device that it should be on.
#[derive(Debug)]
struct Place {
    program: &'static str,
    wanted: Wanted,
    attachment: Option<Attachment>,
    /// Why there is no attachment; empty before the first look.
    problem: Option<String>,
    before: Vec<String>,
    /// Whether it was attached before.
    again: bool,
    /// The name that the device had when somebody last asked.
    seen_as: Option<String>,
}

/// Which device is meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wanted {
    name: Option<String>,
    /// Where `name` is absent or not there: the device that holds this address.
    holder_of: Option<IpAddr>,
}

/// What a look has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Looked {
    /// How many programs were found to be off their device.
    pub(super) lost: u64,
    /// How many could not be attached.
    pub(super) failed: u64,
}

/// Removes what a killed agent left, in whichever mode this one runs.
pub(super) fn clear_leftovers() {
    if let Err(reason) = attach::remove_leftovers() {
        tracing::warn!(reason, "what a killed agent left cannot be removed");
    }
}

/// The device that steering needs, or what is missing in the configuration.
pub(super) fn wanted(config: &Config) -> Result<Wanted, String> {
    let wanted = Wanted {
        name: config.net_inf.as_ref().map(ToString::to_string),
        holder_of: config.private_ip_address,
    };
    if wanted.name.is_none() && wanted.holder_of.is_none() {
        return Err("neither net-inf nor private-ip-address is set".to_owned());
    }
    // Who insists on eBPF insists on this interface; otherwise it may come later.
    let named = wanted.name.as_deref();
    let there = named.map_or_else(|| wanted.device().is_some(), |name| by_name(name).is_some());
    if config.mode == Mode::Ebpf && !there {
        return Err(format!("{wanted} does not exist"));
    }
    Ok(wanted)
}

impl Places {
    pub(super) fn new(
        config: &Config,
        nic: Wanted,
        loaded: Loaded,
        maps: Arc<Maps>,
        claim: Claim,
    ) -> Self {
        let nic_name = nic.name.clone();
        let mut places = vec![Place::new(names::STEER, nic)];
        if config.guard != Guard::Off {
            let others = config.guard_inf.iter().map(ToString::to_string);
            for name in others.filter(|name| Some(name) != nic_name.as_ref()) {
                let wanted = Wanted {
                    name: Some(name),
                    holder_of: None,
                };
                places.push(Place::new(names::GUARD, wanted));
            }
        }
        let fixed = [Some(config.kubelet_addr.ip()), config.private_ip_address];
        let usable = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified();
        Self {
            loaded,
            maps,
            places,
            how: (config.attach, config.steer_priority),
            fixed: fixed.into_iter().flatten().filter(usable).collect(),
            fault: None,
            claim: Some(claim),
        }
    }

    /// Tells the programs what to do, before they see a packet.
    pub(super) fn fill(&self, config: &Config) -> Result<(), MapFault> {
        let on_nic = config.guard_inf.is_empty()
            || config
                .guard_inf
                .iter()
                .any(|device| config.net_inf.as_ref() == Some(device));
        let guard_flag = if on_nic { SETTINGS_FLAG_GUARD_NIC } else { 0 };
        let guard = match config.guard {
            Guard::Off => GuardWord::Off,
            Guard::Audit => GuardWord::Audit,
            Guard::Enforce => GuardWord::Enforce,
        };
        let master = config.server_addrs.first().map_or(0, |addr| addr.port());
        self.maps.set_allowed(&config.guard_allow)?;
        self.maps.set_settings(Settings {
            flags: SETTINGS_FLAG_STEER | guard_flag,
            guard: guard as u32,
            kubelet_port: config.kubelet_addr.port(),
            master_port: master,
            padding: 0,
        })
    }

    /// Attaches what can be; an error if the NIC is there and does not take the program.
    pub(super) fn first_look(&mut self) -> Result<(), String> {
        let looked = self.look();
        let problem = self.places.first().and_then(|nic| nic.problem.clone());
        match problem {
            Some(problem) if looked.failed > 0 => Err(problem),
            _ => Ok(()),
        }
    }

    /// Mends what differs from what is wanted.
    pub(super) fn look(&mut self) -> Looked {
        let mut looked = Looked::default();
        if self.claim.is_none() {
            return looked;
        }
        for place in &mut self.places {
            place.look(&mut self.loaded, self.how, &mut looked);
        }
        let addresses = self.own_addresses();
        let fault = addresses.and_then(|own| {
            let set = self.maps.set_addresses(&own);
            set.map_err(|error| line(&error))
        });
        self.note_fault(fault.err());
        looked
    }

    /// Takes everything off, for good.
    pub(super) fn close(&mut self) {
        for place in &mut self.places {
            if let Some(attachment) = place.attachment.take() {
                tracing::info!(
                    program = place.program,
                    device = %attachment.device,
                    "program detached"
                );
            }
            place.problem = Some("the agent ends".to_owned());
        }
        self.claim = None;
    }

    pub(super) fn cost(&self, program: &str) -> Cost {
        self.loaded.cost(program)
    }

    pub(super) fn status(&self) -> Vec<PlaceStatus> {
        self.places.iter().map(Place::status).collect()
    }

    /// Those of the devices that are attached to, and those of the configuration.
    fn own_addresses(&self) -> Result<Vec<IpAddr>, String> {
        let attached = self
            .places
            .iter()
            .filter_map(|place| place.attachment.as_ref());
        let devices: HashSet<_> = attached.map(|held| held.device.index).collect();
        let mut own = self.fixed.clone();
        for (device, ip) in addresses()? {
            let ours = if_nametoindex(device.as_str()).is_ok_and(|index| devices.contains(&index));
            if ours && !own.contains(&ip) {
                own.push(ip);
            }
        }
        Ok(own)
    }

    fn note_fault(&mut self, fault: Option<String>) {
        if self.fault == fault {
            return;
        }
        match &fault {
            Some(reason) => tracing::warn!(reason, "the node's addresses cannot be kept"),
            None => tracing::info!("the node's addresses are kept again"),
        }
        self.fault = fault;
    }
}

impl Place {
    fn new(program: &'static str, wanted: Wanted) -> Self {
        Self {
            program,
            wanted,
            attachment: None,
            problem: None,
            before: Vec::new(),
            again: false,
            seen_as: None,
        }
    }

    fn look(&mut self, loaded: &mut Loaded, how: (Attach, u16), looked: &mut Looked) {
        let device = self.wanted.device();
        if let Some(attachment) = &self.attachment {
            let moved = self.wanted.is_elsewhere(&attachment.device);
            let moved = moved.then(|| format!("{} is another device now", self.wanted));
            match attachment.lost().or(moved) {
                None => {
                    self.note_name();
                    self.note_before();
                    return;
                }
                Some(reason) => {
                    looked.lost += 1;
                    tracing::warn!(
                        program = self.program,
                        device = %attachment.device,
                        reason,
                        "program is off its device"
                    );
                    self.attachment = None;
                    self.before.clear();
                }
            }
        }
        match device {
            None => self.note_problem(format!("{} does not exist", self.wanted)),
            Some(device) => {
                if let Err(reason) = self.attach(loaded, &device, how) {
                    looked.failed += 1;
                    self.note_problem(reason);
                }
            }
        }
    }

    fn attach(
        &mut self,
        loaded: &mut Loaded,
        device: &Device,
        how: (Attach, u16),
    ) -> Result<(), String> {
        let program = loaded.program(self.program).map_err(|error| line(&error))?;
        let attachment = Attachment::new(program, self.program, device, how);
        let attachment = attachment.map_err(|error| line(&error))?;
        if self
            .wanted
            .name
            .as_deref()
            .is_some_and(|name| name != device.name)
        {
            tracing::warn!(
                device = %device,
                "net-inf does not exist, using the interface that holds private-ip-address"
            );
        }
        tracing::info!(
            program = self.program,
            device = %device,
            attach = attachment.kind().word(),
            again = self.again,
            "program attached"
        );
        self.seen_as = Some(device.name.clone());
        self.attachment = Some(attachment);
        self.problem = None;
        self.again = true;
        self.note_before();
        Ok(())
    }

    /// A device that is renamed keeps its programs; if another gets the name, they move there.
    fn note_name(&mut self) {
        let Some(attachment) = &mut self.attachment else {
            return;
        };
        let Ok(name) = nix::net::if_::if_indextoname(attachment.device.index) else {
            return;
        };
        let name = name.to_string_lossy().into_owned();
        if self.seen_as.as_ref() != Some(&name) {
            tracing::warn!(
                program = self.program,
                device = %attachment.device,
                now = name,
                "device was renamed, the program stays on it"
            );
            attachment.device.name.clone_from(&name);
            self.seen_as = Some(name);
        }
    }

    fn note_before(&mut self) {
        let Some(attachment) = &self.attachment else {
            return;
        };
        let before = match chain::before(attachment) {
            Ok(before) => before,
            Err(error) => {
                tracing::debug!(reason = %error, "what runs before our program is not known");
                return;
            }
        };
        if before != self.before && !before.is_empty() {
            tracing::warn!(
                program = self.program,
                device = %attachment.device,
                before = before.join(", "),
                "other programs come before ours; whether they hide packets from it is not known"
            );
        }
        self.before = before;
    }

    fn note_problem(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(
                program = self.program,
                reason = problem,
                "program is not attached, trying again"
            );
        }
        self.problem = Some(problem);
    }

    fn status(&self) -> PlaceStatus {
        let attached = self.attachment.as_ref();
        PlaceStatus {
            program: self.program,
            wanted: self.wanted.to_string(),
            attached: attached.map(|held| (held.device.clone(), held.kind())),
            problem: self.problem.clone(),
            before: self.before.clone(),
        }
    }
}

impl Wanted {
    /// Whether it is another device than `held` for sure. One that has lost its name is still it.
    fn is_elsewhere(&self, held: &Device) -> bool {
        let now = match &self.name {
            Some(name) => by_name(name),
            None => self.device(),
        };
        now.is_some_and(|now| now.index != held.index)
    }

    /// The device as it is now.
    fn device(&self) -> Option<Device> {
        let named = self.name.as_deref().and_then(by_name);
        named.or_else(|| holder(self.holder_of?))
    }
}

impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.name, self.holder_of) {
            (Some(name), _) => write!(f, "the interface {name}"),
            (None, Some(ip)) => write!(f, "an interface with the address {ip}"),
            (None, None) => f.write_str("no interface"),
        }
    }
}

fn by_name(name: &str) -> Option<Device> {
    let index = if_nametoindex(name).ok()?;
    Some(Device {
        name: name.to_owned(),
        index,
    })
}

/// The device that holds an address. Nothing arrives at the loopback one from elsewhere.
fn holder(ip: IpAddr) -> Option<Device> {
    let all = addresses().ok()?;
    let (name, _) = all.into_iter().find(|(_, held)| *held == ip)?;
    by_name(&name)
}

/// All addresses of all devices except the loopback one.
pub(crate) fn addresses() -> Result<Vec<(String, IpAddr)>, String> {
    let all = getifaddrs().map_err(|error| format!("cannot list addresses: {error}"))?;
    let usable = all.filter(|found| {
        !found
            .flags
            .contains(nix::net::if_::InterfaceFlags::IFF_LOOPBACK)
    });
    let found = usable.filter_map(|found| {
        let address = found.address?;
        let v4 = address.as_sockaddr_in().map(|at| IpAddr::V4(at.ip()));
        let v6 = || address.as_sockaddr_in6().map(|at| IpAddr::V6(at.ip()));
        Some((found.interface_name, v4.or_else(v6)?))
    });
    Ok(found.collect())
}
