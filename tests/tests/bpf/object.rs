//! The objects themselves: which maps they have, and who may load them.

use std::{collections::BTreeMap, env, process::Command};

use anyhow::{Context, Result};
use aya::{Ebpf, maps::MapType, programs::SchedClassifier};
use proxymux_agent::steering::object::object;
use proxymux_common::names;

#[test]
fn the_silent_object_has_the_maps_of_the_interface_and_no_buffer_for_messages() -> Result<()> {
    let expected = BTreeMap::from([
        (names::SETTINGS, MapType::Array),
        (names::SOURCES_V4, MapType::LpmTrie),
        (names::SOURCES_V6, MapType::LpmTrie),
        (names::ALLOWED_V4, MapType::LpmTrie),
        (names::ALLOWED_V6, MapType::LpmTrie),
        (names::ADDRESSES, MapType::Hash),
        (names::LISTENERS, MapType::SockMap),
        (names::STATISTICS, MapType::PerCpuArray),
        (names::HEARTBEAT, MapType::Array),
        (names::AUDITED, MapType::LruHash),
    ]);

    let types = map_types(object(false))?;

    let types: BTreeMap<&str, &str> = borrowed(&types);
    let expected: Vec<_> = expected
        .iter()
        .map(|(name, kind)| (*name, format!("{kind:?}")))
        .collect();
    let types: Vec<_> = types
        .into_iter()
        .map(|(name, kind)| (name, kind.to_owned()))
        .collect();
    assert_eq!(types, expected);
    // The kernel cuts longer names.
    assert!(expected.iter().all(|(name, _)| name.len() <= 15));
    Ok(())
}

#[test]
fn the_object_that_logs_has_a_ring_buffer_for_its_messages() -> Result<()> {
    let types = map_types(object(true))?;

    assert!(types.values().any(|kind| kind == "RingBuf"), "{types:?}");
    Ok(())
}

/// The test starts itself again with fewer capabilities, because a process that has dropped them
/// does not get them back for the next test.
/// The kernel shows the lines of source, which are in BTF, beside its verifier's complaints.
#[test]
fn the_objects_have_types_and_lines_for_the_kernel_and_nothing_for_debuggers() -> Result<()> {
    for logging in [false, true] {
        let object = object(logging);
        let has = |name: &[u8]| object.windows(name.len()).any(|part| part == name);

        assert!(has(b".BTF\0") && has(b".BTF.ext\0"));
        assert!(!has(b".debug_"));
        let mut loaded = Ebpf::load(object)?;
        let program = loaded.program_mut(names::STEER).context("the program")?;
        let program: &mut SchedClassifier = program.try_into()?;
        program.load()?;
        assert!(program.info()?.btf_id().is_some(), "the kernel has its BTF");
    }
    Ok(())
}

#[test]
fn the_silent_object_loads_with_cap_bpf_and_cap_net_admin_alone() -> Result<()> {
    if env::var_os(CHILD).is_some() {
        println!("loaded with capabilities {}", load_all()?);
        return Ok(());
    }
    let output = Command::new("setpriv")
        .args([
            "--inh-caps=-all,+bpf,+net_admin",
            "--bounding-set=-all,+bpf,+net_admin",
        ])
        .arg(env::current_exe()?)
        .args(["--exact", "--nocapture"])
        .arg("object::the_silent_object_loads_with_cap_bpf_and_cap_net_admin_alone")
        .env(CHILD, "1")
        .output()
        .context("cannot start setpriv, of package util-linux")?;

    let told = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}\n{errors}");
    assert!(
        told.contains("loaded with capabilities 0000008000001000"),
        "{told}"
    );
    Ok(())
}

const CHILD: &str = "PROXYMUX_TEST_FEW_CAPABILITIES";

/// Loads both programs; hands back with which capabilities.
fn load_all() -> Result<String> {
    let mut ebpf = Ebpf::load(object(false))?;
    for name in [names::STEER, names::GUARD] {
        let program: &mut SchedClassifier = ebpf.program_mut(name).context(name)?.try_into()?;
        program.load()?;
    }
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .context("no CapEff")?;
    Ok(effective.trim().to_owned())
}

/// The kernel's word for the type of each map, by name.
fn map_types(object: &[u8]) -> Result<BTreeMap<String, String>> {
    let ebpf = Ebpf::load(object)?;
    let mut types = BTreeMap::new();
    for (name, map) in ebpf.maps() {
        let data = match map {
            aya::maps::Map::Array(data)
            | aya::maps::Map::HashMap(data)
            | aya::maps::Map::LpmTrie(data)
            | aya::maps::Map::LruHashMap(data)
            | aya::maps::Map::PerCpuArray(data)
            | aya::maps::Map::RingBuf(data)
            | aya::maps::Map::SockMap(data) => data,
            other => anyhow::bail!("{name} is {other:?}"),
        };
        types.insert(name.to_owned(), format!("{:?}", data.info()?.map_type()?));
    }
    Ok(types)
}

fn borrowed(types: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    types
        .iter()
        .map(|(name, kind)| (name.as_str(), kind.as_str()))
        .collect()
}
