//! What the agent needs of the kernel that neither `aya` nor `nix` has in safe form.
//!
//! Owns the `unsafe` of the user side: what may be copied to and from maps, which programs a
//! device has in its TCX chain, and giving memory back after loading. Only with the feature `user`;
//! the eBPF programs are built without it.

use std::{io, vec::Vec};

use crate::{Counter, Settings};

// SAFETY: `repr(C)`, integers only, and no padding that is not a field (its size is asserted).
unsafe impl aya::Pod for Settings {}
// SAFETY: as for `Settings`.
unsafe impl aya::Pod for Counter {}

/// One program of a device's TCX chain.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TcxEntry {
    /// The program's id.
    pub program: u32,
    /// The id of the link that holds it there; 0 if it is there without one.
    pub link: u32,
}

/// The programs that see what the device receives, in the order in which they run.
///
/// Needs `CAP_NET_ADMIN`.
///
/// # Errors
///
/// The device is gone, or this kernel has no TCX (`EINVAL`).
pub fn tcx_ingress(ifindex: u32) -> io::Result<Vec<TcxEntry>> {
    let mut programs = [0_u32; MAX_CHAIN as usize];
    let mut links = [0_u32; MAX_CHAIN as usize];
    let mut query = Query {
        target: ifindex,
        attach_type: BPF_TCX_INGRESS,
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr() as u64,
        count: MAX_CHAIN,
        padding: 0,
        program_flags: 0,
        links: links.as_mut_ptr() as u64,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: `query` is laid out as the kernel has it, and stays in place for the call. Both
    // arrays outlive the call, and have as many elements as `count` says.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    let entries = programs.iter().zip(links).take(query.count as usize);
    let entry = |(program, link): (&u32, u32)| TcxEntry {
        program: *program,
        link,
    };
    Ok(entries.map(entry).collect())
}

/// Gives memory that was freed back to the system.
///
/// The loader reads the kernel's own types, a few megabytes in many small pieces, and what is
/// allocated meanwhile keeps the allocator from returning them by itself.
pub fn return_freed_memory() {
    // SAFETY: it has no preconditions.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The part of `union bpf_attr` that `BPF_PROG_QUERY` reads and writes.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

const _: () = assert!(size_of::<Query>() == 64);

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_TCX_INGRESS: u32 = 46;

/// As many as the kernel allows on one device.
const MAX_CHAIN: u32 = 64;
