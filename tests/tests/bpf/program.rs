//! One of the two programs, loaded, with its maps at hand.
//!
//! Owns how a frame is run and its verdict is read: by which counter went up.

use std::{
    net::{IpAddr, TcpListener},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, PerCpuArray, SockMap, lpm_trie::Key},
    programs::{SchedClassifier, TestRun, TestRunOptions},
};
use ipnet::IpNet;
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};
use proxymux_agent::steering::object::object;
use proxymux_common::{Settings, Verdict, mapped, names};

pub(crate) const NODE_V4: &str = "10.0.10.10:10250";
pub(crate) const NODE_V6: &str = "[fd00:10::10]:10250";

/// What a program answers whenever it drops nothing: the next program's turn.
pub(crate) const NEXT: i32 = -1;
/// What it answers to drop.
pub(crate) const DROP: i32 = 2;

pub(crate) struct Program {
    ebpf: Ebpf,
    name: &'static str,
}

impl Program {
    /// Loads `name` for the node of these tests: two own addresses, sources 192.0.2.0/24 and
    /// 2001:db8::/32, steering on, guard off, and no heartbeat yet.
    pub(crate) fn load(name: &'static str) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot leave the machine's network")?;
        let mut ebpf = Ebpf::load(object(false))?;
        classifier(&mut ebpf, name)?.load()?;
        let mut program = Self { ebpf, name };
        program.set(STEERING)?;
        program.own("10.0.10.10")?;
        program.own("fd00:10::10")?;
        program.list(names::SOURCES_V4, "192.0.2.0/24")?;
        program.list(names::SOURCES_V6, "2001:db8::/32")?;
        Ok(program)
    }

    pub(crate) fn set(&mut self, settings: Settings) -> Result<()> {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&settings.flags.to_ne_bytes());
        bytes[4..8].copy_from_slice(&settings.guard.to_ne_bytes());
        bytes[8..10].copy_from_slice(&settings.kubelet_port.to_ne_bytes());
        bytes[10..12].copy_from_slice(&settings.master_port.to_ne_bytes());
        let mut map: Array<_, [u8; 16]> = self.map_mut(names::SETTINGS)?;
        Ok(map.set(0, bytes, 0)?)
    }

    pub(crate) fn own(&mut self, address: &str) -> Result<()> {
        let mut map: HashMap<_, [u8; 16], u8> = self.map_mut(names::ADDRESSES)?;
        Ok(map.insert(key(address.parse()?), 1, 0)?)
    }

    /// Puts `network` into one of the four lists.
    pub(crate) fn list(&mut self, list: &str, network: &str) -> Result<()> {
        match network.parse()? {
            IpNet::V4(network) => {
                let mut map: LpmTrie<_, [u8; 4], u8> = self.map_mut(list)?;
                let key = Key::new(network.prefix_len().into(), network.addr().octets());
                Ok(map.insert(&key, 1, 0)?)
            }
            IpNet::V6(network) => {
                let mut map: LpmTrie<_, [u8; 16], u8> = self.map_mut(list)?;
                let key = Key::new(network.prefix_len().into(), network.addr().octets());
                Ok(map.insert(&key, 1, 0)?)
            }
        }
    }

    /// The agent's last sign of life was `age` ago.
    pub(crate) fn beat(&mut self, age: Duration) -> Result<()> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let beat = u64::try_from(now.saturating_sub(age).as_nanos())?;
        let mut map: Array<_, u64> = self.map_mut(names::HEARTBEAT)?;
        Ok(map.set(0, beat, 0)?)
    }

    pub(crate) fn listen(&mut self, slot: u32, listener: &TcpListener) -> Result<()> {
        let map = self
            .ebpf
            .map_mut(names::LISTENERS)
            .context("no listeners")?;
        Ok(SockMap::try_from(map)?.set(slot, listener, 0)?)
    }

    /// How many connections of `source` the guard remembers.
    pub(crate) fn audited(&mut self, source: &str) -> Result<u64> {
        let map: HashMap<_, [u8; 16], u64> = self.map_mut(names::AUDITED)?;
        Ok(map.get(&key(source.parse()?), 0)?)
    }

    /// Runs the program on `frame` once: what it counted, and what it answered.
    pub(crate) fn run(&mut self, frame: &[u8]) -> Result<(Verdict, i32)> {
        let before = self.counters()?;
        let name = self.name;
        let program = classifier(&mut self.ebpf, name)?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        let answer = program.test_run(options)?.return_value.cast_signed();
        let after = self.counters()?;
        let mut counted = Vec::new();
        for ((verdict, before), after) in Verdict::ALL.into_iter().zip(before).zip(after) {
            if before != after {
                ensure!(
                    after[0] == before[0] + 1,
                    "{verdict:?} counted more than once"
                );
                let length = u64::try_from(frame.len())?;
                ensure!(after[1] == before[1] + length, "{verdict:?}: wrong length");
                counted.push(verdict);
            }
        }
        match counted[..] {
            [verdict] => Ok((verdict, answer)),
            _ => bail!("one packet was counted as {counted:?}"),
        }
    }

    /// Runs the program on `frame` so many times.
    pub(crate) fn repeat(&mut self, frame: &[u8], times: u32) -> Result<()> {
        let name = self.name;
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.repeat = times;
        classifier(&mut self.ebpf, name)?.test_run(options)?;
        Ok(())
    }

    /// Runs the program on `frame` so many times in each of two threads, which take turns on few
    /// processors and run at once on more.
    pub(crate) fn repeat_in_two_threads(&mut self, frame: &[u8], times: u32) -> Result<()> {
        let name = self.name;
        let program: &SchedClassifier = classifier(&mut self.ebpf, name)?;
        let run = || {
            let mut options = TestRunOptions::new();
            options.data_in = Some(frame);
            options.repeat = times;
            program.test_run(options)
        };
        thread::scope(|scope| {
            let threads = [scope.spawn(run), scope.spawn(run)];
            for thread in threads {
                thread.join().ok().context("a thread panicked")??;
            }
            Ok(())
        })
    }

    /// How long it has run in all, and how often, where the kernel measures that.
    pub(crate) fn cost(&mut self) -> Result<(Duration, u64)> {
        let name = self.name;
        let info = classifier(&mut self.ebpf, name)?.info()?;
        Ok((info.run_time(), info.run_count()))
    }

    /// Packets and bytes by verdict, over all processors.
    fn counters(&mut self) -> Result<Vec<[u64; 2]>> {
        let map: PerCpuArray<_, [u64; 2]> = self.map_mut(names::STATISTICS)?;
        let mut counters = Vec::new();
        for verdict in Verdict::ALL {
            let values = map.get(&(verdict as u32), 0)?;
            let sum = |sum: [u64; 2], value: &[u64; 2]| [sum[0] + value[0], sum[1] + value[1]];
            counters.push(values.iter().fold([0, 0], sum));
        }
        Ok(counters)
    }

    fn map_mut<'a, T>(&'a mut self, name: &str) -> Result<T>
    where
        T: TryFrom<&'a mut aya::maps::Map, Error = aya::maps::MapError>,
    {
        let map = self
            .ebpf
            .map_mut(name)
            .with_context(|| format!("no map {name}"))?;
        Ok(map.try_into()?)
    }
}

/// What the tests begin with.
pub(crate) const STEERING: Settings = Settings {
    flags: proxymux_common::SETTINGS_FLAG_STEER,
    guard: proxymux_common::Guard::Off as u32,
    kubelet_port: 10250,
    master_port: 12250,
    padding: 0,
};

fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn key(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}
