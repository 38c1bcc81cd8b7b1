//! The TC programs of proxymux: one for the node's NIC, one for the other devices of `guard-inf`.
//!
//! They steer kubelet-bound connections to the agent's listeners, guard the kubelet's port, and
//! count. What a packet is and what is done with it is decided by safe code in `proxymux-common`;
//! here are the maps, the answers to that code's questions ([`view`]), and the kernel's helpers
//! ([`raw`]), the only unsafe code.
//! Whatever is not dropped goes on to the next program on the device, as if we were not there.

#![no_std]
#![no_main]
// For one instruction that has no other name, see `raw`. Lints are made for another target, where it
// is not experimental.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

#[cfg(feature = "logging")]
mod log;
mod maps;
mod raw;
mod view;

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    macros::classifier,
    programs::TcContext,
};
use proxymux_common::{Device, Verdict, decide, packet::parse};

use crate::{raw::Frame, view::KernelView};

#[classifier]
fn proxymux_steer(context: TcContext) -> i32 {
    judge(&context, Device::Nic)
}

#[classifier]
fn proxymux_guard(context: TcContext) -> i32 {
    judge(&context, Device::Guarded)
}

#[inline(always)]
fn judge(context: &TcContext, device: Device) -> i32 {
    let frame = Frame::new(context);
    let Some(settings) = maps::SETTINGS.get(0) else {
        return TC_ACT_UNSPEC;
    };
    let parsed = parse(&frame);
    let verdict = decide(&parsed, settings, device, &KernelView::new(&frame));
    raw::count(verdict, frame.length());
    #[cfg(feature = "logging")]
    log::verdict(context, &parsed, verdict);
    match verdict {
        Verdict::Dropped => TC_ACT_SHOT,
        _ => TC_ACT_UNSPEC,
    }
}

/// Never reached: nothing here panics. The linker wants it all the same.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
