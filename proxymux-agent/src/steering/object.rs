//! The eBPF objects that the agent carries in itself.
//!
//! Owns their bytes, which the build script has made out of `proxymux-ebpf`. They are aligned as
//! the structures of an ELF file are, which are read where they lie.

/// The object to load: the silent one, or the one that logs what opens connections.
///
/// The one that logs has a ring buffer, which needs kernel 5.8 and CAP_PERFMON.
#[must_use]
pub const fn object(logging: bool) -> &'static [u8] {
    if logging { &LOGGING.0 } else { &SILENT.0 }
}

#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static SILENT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
    env!("OUT_DIR"),
    "/proxymux-silent.o"
)));

static LOGGING: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(
    env!("OUT_DIR"),
    "/proxymux-logging.o"
)));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_objects_are_aligned_elf_files_and_differ() {
        for logging in [false, true] {
            assert!(object(logging).starts_with(b"\x7fELF"));
            assert!(object(logging).as_ptr().cast::<u64>().is_aligned());
        }
        assert_ne!(object(false), object(true));
    }
}
