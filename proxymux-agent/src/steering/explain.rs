//! `proxymux-agent explain SRC[:PORT]`: what becomes of a connection from there to the kubelet.
//!
//! Owns both ends of it: the question, the verdict and the rule behind it, and what is printed.
//! The verdict is that of [`decide`], the very code of the loaded programs, over what is in their
//! maps; nothing is remembered and nothing is assigned. The packet is one that opens a connection
//! from `SRC` to the node's address and the kubelet's port.

use std::{
    cell::RefCell,
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use ipnet::IpNet;
use proxymux_common::{
    Address, Assignment, Device, Guard, SETTINGS_FLAG_GUARD_NIC, SETTINGS_FLAG_STEER, Settings,
    Socket, Verdict, View, decide, is_alive, mapped, names,
    packet::{Family, Headers, Parsed},
};
use proxymux_transport::{
    command::{Table, text},
    telemetry::chain,
};
use serde_json::{Value, json};

use super::{PlaceStatus, Steering, report::no_ebpf};

/// The path at the admin address.
pub const PATH: &str = "/explain";

/// Where a packet comes from: an address, and a port if it matters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Source {
    ip: IpAddr,
    port: Option<u16>,
}

/// What is no [`Source`].
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "`{0}` is neither an address nor an address and a port; write it as 192.0.2.10, \
     192.0.2.10:40000, fd00::10 or [fd00::10]:40000"
)]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(written: &str) -> Result<Self, SourceError> {
        let bare = written
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        if let Ok(ip) = bare.unwrap_or(written).parse::<IpAddr>() {
            return Ok(Self {
                ip: ip.to_canonical(),
                port: None,
            });
        }
        match written.parse::<SocketAddr>() {
            Ok(at) if at.port() != 0 => Ok(Self {
                ip: at.ip().to_canonical(),
                port: Some(at.port()),
            }),
            _ => Err(SourceError(written.to_owned())),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

impl Source {
    /// What to ask the running agent.
    #[must_use]
    pub fn question(&self) -> String {
        format!("{PATH}?src={self}")
    }

    /// The source that a query asks for.
    pub(crate) fn of_query(query: &str) -> Result<Self, String> {
        let asked = query.strip_prefix("src=");
        let asked = asked.ok_or_else(|| "ask for ?src=ADDRESS or ?src=ADDRESS:PORT".to_owned())?;
        let source = asked.parse();
        source.map_err(|error: SourceError| error.to_string())
    }
}

/// What the running agent answers.
pub(crate) fn answer(steering: &Steering, query: &str) -> Result<Value, String> {
    let source = Source::of_query(query)?;
    let maps = steering.maps().ok_or_else(|| no_ebpf(steering))?;
    let mut loaded = maps.loaded().map_err(|error| chain(&error))?;
    loaded.devices = steering.places().into_iter().filter_map(device).collect();
    loaded.explain(source)
}

/// The device that a program is attached to.
fn device(place: PlaceStatus) -> Option<(Device, String)> {
    let (device, _) = place.attached?;
    let kind = match place.program {
        names::STEER => Device::Nic,
        _ => Device::Guarded,
    };
    Some((kind, device.name))
}

/// What is in the maps of the loaded programs, as the kernel has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    pub(crate) sources: Vec<IpNet>,
    pub(crate) allowed: Vec<IpNet>,
    pub(crate) addresses: Vec<IpAddr>,
    /// The one thing that the kernel does not tell: what it was given.
    pub(crate) listeners: Vec<SocketAddr>,
    /// When the agent last said that it lives, by the programs' clock; 0 before the first time.
    pub(crate) beat: u64,
    /// What the programs' clock shows now.
    pub(crate) now: u64,
    /// Those that have a program, which is in no map.
    pub(crate) devices: Vec<(Device, String)>,
}

impl Loaded {
    /// The verdict for each device that has a program, and the rule that decided.
    fn explain(&self, source: Source) -> Result<Value, String> {
        let own = self.own(source.ip)?;
        let headers = Headers {
            family: match source.ip {
                IpAddr::V4(_) => Family::V4,
                IpAddr::V6(_) => Family::V6,
            },
            source: address(source.ip),
            destination: address(own),
            source_port: source.port.unwrap_or(EPHEMERAL),
            destination_port: self.settings.kubelet_port,
            opens: true,
        };
        let verdicts = self.devices.iter().map(|(device, name)| {
            let asked = Asked {
                loaded: self,
                answers: RefCell::default(),
            };
            let verdict = decide(&Parsed::Tcp(headers), &self.settings, *device, &asked);
            let mut rules = asked.answers.into_inner();
            rules.push(self.outcome(verdict, *device, source.ip).to_owned());
            json!({ "device": name, "verdict": verdict.word(), "rules": rules })
        });
        Ok(json!({
            "source": source.to_string(),
            "destination": SocketAddr::new(own, self.settings.kubelet_port).to_string(),
            "verdicts": verdicts.collect::<Vec<_>>(),
        }))
    }

    /// An address of this node that such a packet may go to.
    fn own(&self, source: IpAddr) -> Result<IpAddr, String> {
        let mut own = self.addresses.iter();
        let own = own.find(|own| own.is_ipv4() == source.is_ipv4());
        own.copied().ok_or_else(|| {
            let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
            format!("the loaded programs know no {family} address of this node: such packets pass")
        })
    }

    /// What follows from the verdict, which is the last that is said.
    fn outcome(&self, verdict: Verdict, device: Device, source: IpAddr) -> &'static str {
        match verdict {
            Verdict::Assigned | Verdict::Followed => "the agent accepts it",
            Verdict::NoListener => "the agent has no listener of this family: the kubelet answers",
            Verdict::Stale => "the agent is taken for dead or hung: the kubelet answers",
            Verdict::AssignFailed => "the kernel refuses: the kubelet answers",
            Verdict::Dropped => "guard is enforce: nobody answers",
            Verdict::Audited => "guard is audit: it is remembered, and the kubelet answers",
            Verdict::Passed => self.why_passed(device, source),
            Verdict::Unrelated
            | Verdict::Session
            | Verdict::Connected
            | Verdict::Unreadable
            | Verdict::Opaque => "the kernel goes on with it",
        }
    }

    /// In the order in which it is decided.
    fn why_passed(&self, device: Device, source: IpAddr) -> &'static str {
        let has = |flag| self.settings.flags & flag != 0;
        let steered = self.sources.iter().any(|net| net.contains(&source));
        match device {
            Device::Nic if steered && !has(SETTINGS_FLAG_STEER) => {
                "nothing is steered: the kubelet answers"
            }
            Device::Guarded if steered => "who is steered is let in: the kubelet answers",
            Device::Nic if !has(SETTINGS_FLAG_GUARD_NIC) => {
                "nobody guards this device: the kubelet answers"
            }
            _ if self.settings.guard == Guard::Off as u32 => "guard is off: the kubelet answers",
            _ => "the guard lets it in: the kubelet answers",
        }
    }
}

/// Answers the questions of [`decide`] from the maps, and notes what it was asked.
struct Asked<'a> {
    loaded: &'a Loaded,
    answers: RefCell<Vec<String>>,
}

impl Asked<'_> {
    fn note(&self, answer: String) {
        self.answers.borrow_mut().push(answer);
    }

    fn covers(&self, list: &str, nets: &[IpNet], source: &Address) -> bool {
        let source = ip(*source);
        let covering = nets.iter().filter(|net| net.contains(&source));
        let longest = covering.max_by_key(|net| net.prefix_len());
        match longest {
            Some(net) => self.note(format!("{list} has {net}")),
            None => self.note(format!("{list} does not have it")),
        }
        longest.is_some()
    }
}

impl View for Asked<'_> {
    fn is_own(&self, address: &Address) -> bool {
        self.loaded.addresses.contains(&ip(*address))
    }

    fn is_source(&self, headers: &Headers) -> bool {
        self.covers("steer-from", &self.loaded.sources, &headers.source)
    }

    fn is_allowed(&self, headers: &Headers) -> bool {
        self.covers("guard-allow", &self.loaded.allowed, &headers.source)
    }

    fn is_alive(&self) -> bool {
        let Loaded { beat, now, .. } = *self.loaded;
        let alive = is_alive(beat, now);
        if beat == 0 {
            self.note("the agent never said that it lives".to_owned());
        } else {
            let word = if alive { "fresh" } else { "stale" };
            let age = Duration::from_nanos(now.saturating_sub(beat)).as_millis();
            self.note(format!("the heartbeat is {word}: {age} ms old"));
        }
        alive
    }

    /// What a packet that opens a connection finds: the kubelet that waits for it.
    fn socket(&self, _headers: &Headers) -> Socket {
        Socket::Listening
    }

    fn assign(&self, headers: &Headers) -> Assignment {
        let wanted = headers.family == Family::V4;
        let mut listeners = self.loaded.listeners.iter();
        if listeners.any(|at| at.is_ipv4() == wanted) {
            Assignment::Done
        } else {
            Assignment::NoListener
        }
    }

    fn remember(&self, _source: &Address) {}
}

/// The answer as people see it.
#[must_use]
pub fn show(answer: &Value) -> String {
    let mut table = Table::new(&["DEVICE", "VERDICT", "BECAUSE"]);
    let verdicts = answer.get("verdicts").and_then(Value::as_array);
    for verdict in verdicts.into_iter().flatten() {
        let rules = verdict.get("rules").and_then(Value::as_array);
        let rules: Vec<_> = rules
            .into_iter()
            .flatten()
            .map(|rule| text(rule, ""))
            .collect();
        table.row([
            text(verdict, "/device"),
            text(verdict, "/verdict"),
            rules.join("; "),
        ]);
    }
    let (source, destination) = (text(answer, "/source"), text(answer, "/destination"));
    let told = format!("a new connection from {source} to {destination}:\n");
    if table.is_empty() {
        format!("{told}no program is attached: the kubelet answers\n")
    } else {
        format!("{told}{}", table.show())
    }
}

fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => mapped(ip.octets()),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn ip(address: Address) -> IpAddr {
    Ipv6Addr::from(address).to_canonical()
}

/// A port that nobody serves, for a client whose port is not known.
const EPHEMERAL: u16 = 50_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded() -> Loaded {
        Loaded {
            settings: Settings {
                flags: SETTINGS_FLAG_STEER | SETTINGS_FLAG_GUARD_NIC,
                guard: Guard::Enforce as u32,
                kubelet_port: 10250,
                master_port: 12250,
                padding: 0,
            },
            sources: vec!["192.0.2.10/32".parse().unwrap()],
            allowed: vec![
                "10.0.0.0/8".parse().unwrap(),
                "10.0.10.0/28".parse().unwrap(),
            ],
            addresses: vec!["10.0.10.10".parse().unwrap()],
            listeners: vec!["127.0.0.1:1".parse().unwrap()],
            beat: BEAT,
            now: at(1000),
            devices: vec![(Device::Nic, "ens3".to_owned())],
        }
    }

    const BEAT: u64 = 1_234_567;

    /// So many milliseconds after the heartbeat.
    fn at(milliseconds: u64) -> u64 {
        BEAT + milliseconds * 1_000_000
    }

    /// Verdict and rules.
    fn asked(loaded: &Loaded, source: &str) -> (String, String) {
        let answer = loaded.explain(source.parse().unwrap()).unwrap();
        let rules = answer.pointer("/verdicts/0/rules").unwrap().as_array();
        let rules: Vec<_> = rules.unwrap().iter().map(|rule| text(rule, "")).collect();
        (text(&answer, "/verdicts/0/verdict"), rules.join("; "))
    }

    #[test]
    fn a_source_is_an_address_with_or_without_a_port() {
        for (written, shown) in [
            ("192.0.2.10", "192.0.2.10"),
            ("192.0.2.10:40000", "192.0.2.10:40000"),
            ("::ffff:192.0.2.10", "192.0.2.10"),
            ("fd00::10", "fd00::10"),
            ("[fd00::10]", "fd00::10"),
            ("[fd00::10]:443", "[fd00::10]:443"),
        ] {
            let source: Source = written.parse().unwrap();
            assert_eq!(source.to_string(), shown);
            let query = source.question();
            let query = query.split_once('?').unwrap().1;
            assert_eq!(Source::of_query(query), Ok(source));
        }
        for wrong in [
            "",
            "node",
            "192.0.2.10:0",
            "192.0.2.10:99999",
            "192.0.2.0/24",
            "[::1",
        ] {
            let error = wrong.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{wrong}` is neither")), "{error}");
        }
        for wrong in ["", "source=::1", "src=", "src=x"] {
            assert!(Source::of_query(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_steered_source_is_given_to_the_agent_while_it_lives_and_listens() {
        let mut maps = loaded();
        let (verdict, rules) = asked(&maps, "192.0.2.10");
        assert_eq!(verdict, "assigned");
        assert_eq!(
            rules,
            "steer-from has 192.0.2.10/32; the heartbeat is fresh: 1000 ms old; \
             the agent accepts it"
        );

        maps.listeners = vec!["[::1]:1".parse().unwrap()];
        assert_eq!(asked(&maps, "192.0.2.10").0, "no-listener");

        maps.now = at(4999);
        assert_eq!(asked(&maps, "192.0.2.10").0, "no-listener");
        maps.now = at(5000);
        let (verdict, rules) = asked(&maps, "192.0.2.10");
        assert_eq!(verdict, "stale");
        assert!(
            rules.contains("the heartbeat is stale: 5000 ms old"),
            "{rules}"
        );

        maps.settings.flags = 0;
        let (verdict, rules) = asked(&maps, "192.0.2.10");
        assert_eq!(verdict, "passed");
        assert!(
            rules.ends_with("nothing is steered: the kubelet answers"),
            "{rules}"
        );
    }

    #[test]
    fn the_rule_that_decides_is_the_longest_prefix() {
        let (verdict, rules) = asked(&loaded(), "10.0.10.3");
        assert_eq!(verdict, "passed");
        assert_eq!(
            rules,
            "steer-from does not have it; guard-allow has 10.0.10.0/28; \
             the guard lets it in: the kubelet answers"
        );
        assert!(
            asked(&loaded(), "10.0.11.1")
                .1
                .contains("guard-allow has 10.0.0.0/8")
        );
    }

    #[test]
    fn a_stranger_is_dropped_by_a_guard_that_lives() {
        let mut maps = loaded();
        let (verdict, rules) = asked(&maps, "198.51.100.1:4444");
        assert_eq!(verdict, "dropped");
        assert!(rules.contains("guard-allow does not have it"), "{rules}");

        maps.beat = 0;
        let (verdict, rules) = asked(&maps, "198.51.100.1");
        assert_eq!(verdict, "passed");
        assert!(
            rules.contains("the agent never said that it lives"),
            "{rules}"
        );
        maps.beat = BEAT;
        maps.settings.guard = Guard::Audit as u32;
        assert_eq!(asked(&maps, "198.51.100.1").0, "audited");
        maps.settings.flags = SETTINGS_FLAG_STEER;
        let (verdict, rules) = asked(&maps, "198.51.100.1");
        assert_eq!(verdict, "passed");
        assert!(
            rules.ends_with("nobody guards this device: the kubelet answers"),
            "{rules}"
        );
    }

    #[test]
    fn a_family_that_the_node_has_no_address_of_is_said() {
        let error = loaded().explain("fd00::1".parse().unwrap()).unwrap_err();
        assert!(error.contains("know no IPv6 address"), "{error}");
    }

    #[test]
    fn people_see_a_row_for_each_device() {
        let mut maps = loaded();
        maps.devices.push((Device::Guarded, "flannel.1".to_owned()));
        let answer = maps.explain("198.51.100.1".parse().unwrap()).unwrap();

        let shown = show(&answer);

        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(
            lines[0],
            "a new connection from 198.51.100.1 to 10.0.10.10:10250:"
        );
        assert!(
            lines[2].starts_with("ens3       dropped  steer-from does not"),
            "{shown}"
        );
        assert!(lines[3].starts_with("flannel.1  dropped  "), "{shown}");
    }
}
