//! Whether a master that dials the kubelet's address finds this agent there.
//!
//! Owns putting the answer together from what is loaded, attached, listening and steered, in words
//! for people, and telling those who wait for a change that there may be one. Whether packets come
//! at all (a firewall, a NAT, another route) nobody here can know: the master tries.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxymux_proto::SteeringStatus;
use tokio::sync::watch;

use super::{PlaceStatus, Steering};

/// Wakes those who want to know whether steering stands.
#[derive(Debug, Default)]
pub(crate) struct Changes(watch::Sender<()>);

/// A master, as far as steering is concerned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Dialled {
    /// The address of the kubelet that this agent has registered.
    pub(crate) kubelet: Option<IpAddr>,
    /// Where the master's session goes.
    pub(crate) master: IpAddr,
    /// The addresses from which it says that it dials.
    pub(crate) sources: Vec<IpAddr>,
}

/// What the kernel has been told, as far as steering is concerned.
#[derive(Clone, Debug, Default)]
struct State {
    places: Vec<PlaceStatus>,
    own: Vec<IpAddr>,
    listeners: Vec<SocketAddr>,
    sources: Vec<IpNet>,
}

impl Changes {
    /// Says that something may have changed.
    pub(crate) fn announce(&self) {
        self.0.send_replace(());
    }

    /// Becomes ready when something may have changed.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

impl Steering {
    /// Whether a master's connections to the kubelet's address are given to this agent, and why
    /// not or where.
    pub(crate) fn standing(&self, dialled: &Dialled) -> SteeringStatus {
        let (stands, reason) = match self.state().and_then(|state| state.judge(dialled)) {
            Ok(device) => (true, device),
            Err(reason) => (false, reason),
        };
        SteeringStatus { stands, reason }
    }

    fn state(&self) -> Result<State, String> {
        let Some(maps) = self.maps() else {
            let (mode, reason) = self.mode();
            return Err(format!("agent runs in mode {mode}: {reason}"));
        };
        if self.detached.is_cancelled() {
            return Err("agent has taken its programs off".to_owned());
        }
        Ok(State {
            places: self.places(),
            own: maps.addresses(),
            listeners: maps.listeners(),
            sources: maps.sources(),
        })
    }
}

impl State {
    /// The device on which the master is steered, or why it is not.
    fn judge(&self, dialled: &Dialled) -> Result<String, String> {
        let kubelet = dialled
            .kubelet
            .ok_or("agent has registered no address of its kubelet")?;
        let here = |ip: &IpAddr| ip.is_loopback() || self.own.contains(&ip.to_canonical());
        if here(&dialled.master) || dialled.sources.iter().any(here) {
            return Err("master is on the node itself".to_owned());
        }
        let place = self.places.iter().find(|place| place.program == STEER);
        let place = place.ok_or("no program is to be attached")?;
        let Some((device, _)) = &place.attached else {
            let why = place.problem.as_deref().unwrap_or("not yet");
            return Err(format!(
                "program is not attached to {}: {why}",
                place.wanted
            ));
        };
        if !self.own.contains(&kubelet.to_canonical()) {
            return Err(format!("{kubelet} is no address of {}", device.name));
        }
        let listens = |at: &&SocketAddr| at.is_ipv4() == kubelet.is_ipv4();
        if !self.listeners.iter().any(|at| listens(&at)) {
            return Err("agent accepts no steered connections for now".to_owned());
        }
        // A master that names none dials from where its session is.
        let master = [dialled.master];
        let from = match dialled.sources.as_slice() {
            [] => &master[..],
            named => named,
        };
        let steered = |ip: &IpAddr| {
            self.sources
                .iter()
                .any(|net| net.contains(&ip.to_canonical()))
        };
        if !from.iter().any(steered) {
            let from: Vec<_> = from.iter().map(ToString::to_string).collect();
            return Err(format!(
                "connections from {} are not steered",
                from.join(", ")
            ));
        }
        Ok(device.name.clone())
    }
}

/// The program that steers, as [`PlaceStatus::program`] has it.
const STEER: &str = "proxymux_steer";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steering::{AttachKind, Device};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn state() -> State {
        let device = Device {
            name: "ens3".to_owned(),
            index: 2,
        };
        State {
            places: vec![PlaceStatus {
                program: STEER,
                wanted: "the interface ens3".to_owned(),
                attached: Some((device, AttachKind::Tcx)),
                problem: None,
                before: Vec::new(),
            }],
            own: vec![ip("10.0.10.10"), ip("fd00::10")],
            listeners: vec!["192.0.0.8:4000".parse().unwrap()],
            sources: vec!["192.0.2.10/32".parse().unwrap()],
        }
    }

    fn dialled() -> Dialled {
        Dialled {
            kubelet: Some(ip("10.0.10.10")),
            master: ip("192.0.2.10"),
            sources: Vec::new(),
        }
    }

    #[test]
    fn it_stands_where_everything_does() {
        assert_eq!(state().judge(&dialled()).as_deref(), Ok("ens3"));
        let named = Dialled {
            sources: vec![ip("198.51.100.1"), ip("::ffff:192.0.2.10")],
            ..dialled()
        };
        assert_eq!(state().judge(&named).as_deref(), Ok("ens3"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let refusal = |state: &State, dialled: &Dialled| state.judge(dialled).unwrap_err();
        let mut detached = state();
        detached.places[0].attached = None;
        detached.places[0].problem = Some("it is gone".to_owned());
        let mut closed = state();
        closed.listeners.clear();
        let mut elsewhere = state();
        elsewhere.sources.clear();
        for (state, expected) in [
            (
                detached,
                "program is not attached to the interface ens3: it is gone",
            ),
            (closed, "agent accepts no steered connections for now"),
            (elsewhere, "connections from 192.0.2.10 are not steered"),
        ] {
            assert_eq!(refusal(&state, &dialled()), expected);
        }
        let none = Dialled {
            kubelet: None,
            ..dialled()
        };
        assert_eq!(
            refusal(&state(), &none),
            "agent has registered no address of its kubelet"
        );
        let other = Dialled {
            kubelet: Some(ip("10.0.99.1")),
            ..dialled()
        };
        assert_eq!(refusal(&state(), &other), "10.0.99.1 is no address of ens3");
        // There is a listener for IPv4 alone.
        let v6 = Dialled {
            kubelet: Some(ip("fd00::10")),
            ..dialled()
        };
        assert_eq!(
            refusal(&state(), &v6),
            "agent accepts no steered connections for now"
        );
    }

    #[test]
    fn a_master_on_the_node_itself_is_never_direct() {
        for (master, sources) in [
            ("127.0.0.1", vec![]),
            ("10.0.10.10", vec![]),
            ("192.0.2.10", vec![ip("10.0.10.10")]),
        ] {
            let here = Dialled {
                master: ip(master),
                sources,
                ..dialled()
            };
            assert_eq!(
                state().judge(&here).unwrap_err(),
                "master is on the node itself"
            );
        }
    }

    #[test]
    fn without_ebpf_the_reason_is_that_of_the_mode() {
        let steering = Steering::userspace("configured");
        let status = steering.standing(&dialled());
        assert!(!status.stands);
        assert_eq!(status.reason, "agent runs in mode userspace: configured");
    }
}
