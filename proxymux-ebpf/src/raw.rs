//! The kernel's helpers that have no safe wrapper.
//!
//! Owns every unsafe block of the programs. A socket that was looked up is released before its
//! function returns, on every path: the verifier refuses the program otherwise.

use core::{
    arch::asm,
    mem::{MaybeUninit, size_of},
    ptr,
};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_F_CURRENT_NETNS, BPF_NOEXIST, bpf_sock, bpf_sock_tuple},
    cty::c_void,
    helpers::{
        bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skb_load_bytes,
        bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use proxymux_common::{
    Address, Assignment, Counter, Socket, Verdict,
    packet::{Bytes, Family, Headers},
};

use crate::maps;

/// Asked for by helpers that the kernel lends to free programs only.
// SAFETY: nothing else is in this section, which the loader reads as a string that ends with zero.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// The states of a TCP socket that matter here, as the kernel numbers them.
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;

/// The packet that the program was called for.
pub(crate) struct Frame<'a> {
    context: &'a TcContext,
}

impl<'a> Frame<'a> {
    #[inline(always)]
    pub(crate) const fn new(context: &'a TcContext) -> Self {
        Self { context }
    }

    #[inline(always)]
    pub(crate) fn length(&self) -> u32 {
        self.context.len()
    }

    #[inline(always)]
    fn buffer(&self) -> *mut __sk_buff {
        self.context.skb.skb
    }
}

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes N bytes to where there is room for N, or fails.
        let result = unsafe {
            bpf_skb_load_bytes(
                self.context.as_ptr(),
                offset,
                bytes.as_mut_ptr().cast(),
                N as u32,
            )
        };
        if result != 0 {
            return None;
        }
        // SAFETY: it did not fail, so all N bytes are written.
        Some(unsafe { bytes.assume_init() })
    }

    #[inline(always)]
    fn protocol(&self) -> u16 {
        // SAFETY: the context of a running program is valid. The field holds 16 bits in network
        // byte order.
        u16::from_be(unsafe { (*self.buffer()).protocol } as u16)
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: the context of a running program is valid.
        unsafe { (*self.buffer()).vlan_present != 0 }
    }
}

/// The monotonic clock, in nanoseconds.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: the helper has no conditions.
    unsafe { bpf_ktime_get_ns() }
}

/// The socket that the stack will find for the packet.
#[inline(always)]
pub(crate) fn socket(frame: &Frame<'_>, headers: &Headers) -> Socket {
    let found = match headers.family {
        Family::V4 => look_up(frame, &TupleV4::new(headers)),
        Family::V6 => look_up(frame, &TupleV6::new(headers)),
    };
    if found.is_null() {
        return Socket::Absent;
    }
    // SAFETY: not null, so it is a socket, which is ours until it is released.
    let state = unsafe { (*found).state };
    // SAFETY: it was looked up above and is not used any more.
    unsafe { bpf_sk_release(found.cast()) };
    match state {
        TCP_LISTEN => Socket::Listening,
        TCP_TIME_WAIT => Socket::Ended,
        _ => Socket::Standing,
    }
}

/// Addresses and ports in network byte order, as the first half of `bpf_sock_tuple` has them. Whole
/// words, so that filling it in takes no loop, which the verifier refuses to the unprivileged.
#[repr(C)]
struct TupleV4 {
    source: [u8; 4],
    destination: [u8; 4],
    source_port: u16,
    destination_port: u16,
}

#[repr(C)]
struct TupleV6 {
    source: Address,
    destination: Address,
    source_port: u16,
    destination_port: u16,
}

const _: () = assert!(size_of::<TupleV4>() == 12 && size_of::<TupleV6>() == 36);

impl TupleV4 {
    #[inline(always)]
    fn new(headers: &Headers) -> Self {
        let [.., s0, s1, s2, s3] = headers.source;
        let [.., d0, d1, d2, d3] = headers.destination;
        Self {
            source: [s0, s1, s2, s3],
            destination: [d0, d1, d2, d3],
            source_port: headers.source_port.to_be(),
            destination_port: headers.destination_port.to_be(),
        }
    }
}

impl TupleV6 {
    #[inline(always)]
    fn new(headers: &Headers) -> Self {
        Self {
            source: headers.source,
            destination: headers.destination,
            source_port: headers.source_port.to_be(),
            destination_port: headers.destination_port.to_be(),
        }
    }
}

/// A socket that has to be released, or null. `T` is one of the two tuples.
#[inline(always)]
fn look_up<T>(frame: &Frame<'_>, tuple: &T) -> *mut bpf_sock {
    // SAFETY: the tuple is as long as the helper is told, and only read. The network namespace is
    // the device's own.
    unsafe {
        bpf_skc_lookup_tcp(
            frame.context.as_ptr(),
            ptr::from_ref(tuple).cast::<bpf_sock_tuple>().cast_mut(),
            size_of::<T>() as u32,
            BPF_F_CURRENT_NETNS as u64,
            0,
        )
    }
}

/// Gives the packet to the listener in `slot`.
#[inline(always)]
pub(crate) fn assign(frame: &Frame<'_>, slot: u32) -> Assignment {
    let map: *mut c_void = ptr::from_ref(&maps::LISTENERS).cast_mut().cast();
    // SAFETY: the map is ours, its keys are u32, and the key lives through the call.
    let listener = unsafe { bpf_map_lookup_elem(map, ptr::from_ref(&slot).cast_mut().cast()) };
    if listener.is_null() {
        return Assignment::NoListener;
    }
    // SAFETY: a socket out of a socket map, which is ours until it is released.
    let result = unsafe { bpf_sk_assign(frame.context.as_ptr(), listener, 0) };
    // SAFETY: it was looked up above and is not used any more; the packet has its own reference.
    unsafe { bpf_sk_release(listener) };
    if result == 0 {
        Assignment::Done
    } else {
        Assignment::Failed
    }
}

/// Counts a packet of `length` bytes.
#[inline(always)]
pub(crate) fn count(verdict: Verdict, length: u32) {
    let Some(counter) = maps::STATISTICS.get_ptr_mut(verdict as u32) else {
        return;
    };
    // SAFETY: it is this processor's own, and a program is not interrupted by itself here.
    let counter: &mut Counter = unsafe { &mut *counter };
    counter.packets = counter.packets.wrapping_add(1);
    counter.bytes = counter.bytes.wrapping_add(u64::from(length));
}

/// Counts a connection from `source` that the guard dropped or would have. When the map is full, the
/// kernel forgets the source that was seen longest ago, with its count.
#[inline(always)]
pub(crate) fn remember(source: &Address) {
    if count_again(source) {
        return;
    }
    let first = maps::AUDITED.insert(source, 1, u64::from(BPF_NOEXIST));
    if first.is_err() {
        // Another processor was faster, or there is no memory: then it is not remembered.
        count_again(source);
    }
}

/// Counts one more connection from `source`, if there was one before.
#[inline(always)]
fn count_again(source: &Address) -> bool {
    let Some(count) = maps::AUDITED.get_ptr_mut(source) else {
        return false;
    };
    // One instruction, since processors share the count. `core` has no atomic addition for this
    // target, though every kernel has the instruction.
    // SAFETY: the kernel keeps the entry, which is aligned, until the program ends.
    unsafe {
        asm!(
            "lock *(u64 *)({count} + 0) += {one}",
            count = in(reg) count,
            one = in(reg) 1_u64,
            options(nostack),
        );
    }
    true
}
