//! The maps, which the agent fills and reads by the names in `proxymux_common::names`.
//!
//! Owns their kinds and sizes. The name of a static is the name of its map.

use aya_ebpf::{
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, SockMap},
};
use proxymux_common::{
    Address, Counter, Settings, Verdict,
    names::{MAX_ADDRESSES, MAX_AUDITED, MAX_PREFIXES},
};

#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static SOURCES_V4: LpmTrie<[u8; 4], u8> = LpmTrie::with_max_entries(MAX_PREFIXES, 0);

#[map]
pub(crate) static SOURCES_V6: LpmTrie<Address, u8> = LpmTrie::with_max_entries(MAX_PREFIXES, 0);

#[map]
pub(crate) static ALLOWED_V4: LpmTrie<[u8; 4], u8> = LpmTrie::with_max_entries(MAX_PREFIXES, 0);

#[map]
pub(crate) static ALLOWED_V6: LpmTrie<Address, u8> = LpmTrie::with_max_entries(MAX_PREFIXES, 0);

#[map]
pub(crate) static ADDRESSES: HashMap<Address, u8> = HashMap::with_max_entries(MAX_ADDRESSES, 0);

#[map]
pub(crate) static LISTENERS: SockMap = SockMap::with_max_entries(2, 0);

#[map]
pub(crate) static STATISTICS: PerCpuArray<Counter> =
    PerCpuArray::with_max_entries(Verdict::ALL.len() as u32, 0);

#[map]
pub(crate) static HEARTBEAT: Array<u64> = Array::with_max_entries(1, 0);

#[map]
pub(crate) static AUDITED: LruHashMap<Address, u64> = LruHashMap::with_max_entries(MAX_AUDITED, 0);
