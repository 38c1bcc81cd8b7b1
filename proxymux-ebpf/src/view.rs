//! The kernel's answers to what the decision asks.
//!
//! Owns nothing; safe code on [`crate::maps`] and [`crate::raw`].

use aya_ebpf::maps::{LpmTrie, lpm_trie::Key};
use proxymux_common::{
    Address, Assignment, LISTENER_V4, LISTENER_V6, Socket, View, is_alive,
    packet::{Family, Headers},
};

use crate::{
    maps,
    raw::{self, Frame},
};

pub(crate) struct KernelView<'a> {
    frame: &'a Frame<'a>,
}

impl<'a> KernelView<'a> {
    #[inline(always)]
    pub(crate) const fn new(frame: &'a Frame<'a>) -> Self {
        Self { frame }
    }
}

impl View for KernelView<'_> {
    #[inline(always)]
    fn is_own(&self, address: &Address) -> bool {
        maps::ADDRESSES.get_ptr(address).is_some()
    }

    #[inline(always)]
    fn is_source(&self, headers: &Headers) -> bool {
        is_listed(headers, &maps::SOURCES_V4, &maps::SOURCES_V6)
    }

    #[inline(always)]
    fn is_allowed(&self, headers: &Headers) -> bool {
        is_listed(headers, &maps::ALLOWED_V4, &maps::ALLOWED_V6)
    }

    #[inline(always)]
    fn is_alive(&self) -> bool {
        let beat = maps::HEARTBEAT.get(0);
        beat.is_some_and(|beat| is_alive(*beat, raw::now()))
    }

    #[inline(always)]
    fn socket(&self, headers: &Headers) -> Socket {
        raw::socket(self.frame, headers)
    }

    #[inline(always)]
    fn assign(&self, headers: &Headers) -> Assignment {
        let slot = match headers.family {
            Family::V4 => LISTENER_V4,
            Family::V6 => LISTENER_V6,
        };
        raw::assign(self.frame, slot)
    }

    #[inline(always)]
    fn remember(&self, source: &Address) {
        raw::remember(source);
    }
}

#[inline(always)]
fn is_listed(headers: &Headers, v4: &LpmTrie<[u8; 4], u8>, v6: &LpmTrie<Address, u8>) -> bool {
    let source = headers.source;
    match headers.family {
        Family::V4 => {
            let [.., a, b, c, d] = source;
            v4.get(Key::new(32, [a, b, c, d])).is_some()
        }
        Family::V6 => v6.get(Key::new(128, source)).is_some(),
    }
}
